import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { parse, parseByScan } from '../src/json.js';
import * as all from '../src/index.js';

const home = new URL('..', import.meta.url);
const manifest = JSON.parse(readFileSync(new URL('package.json', home)));
const MAX_BYTES = 12 * 1024;

test('the sources, each without its comments, are at most 12 KiB with gzip', () => {
    // A bound that needs no tool: a minifier only makes less of it.
    const sources = readdirSync(new URL('src/', home)).map((name) => readFileSync(new URL(`src/${name}`, home), 'utf8'));
    const bytes = gzipSync(sources.join('\n').replace(/^ *(\/\/|\/\*\*).*$/gm, ''), { level: 9 }).length;
    assert.ok(bytes <= MAX_BYTES, `${bytes} bytes`);
});

test('the bundle for mini-programs is at most 12 KiB with gzip, and is CommonJS', (t) => {
    let bundle;
    try {
        bundle = execFileSync('npm', ['run', '--silent', 'bundle'], { cwd: home, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
    } catch (error) {
        // Where there is no npm, or it reaches no registry, the bound above holds alone.
        if (error.code !== 'ENOENT' && !/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENOTCACHED/.test(error.stderr)) throw error;
        t.skip('no npm or no registry here');
        return;
    }
    const bytes = gzipSync(bundle, { level: 9 }).length;
    t.diagnostic(`${Buffer.byteLength(bundle)} bytes minified, ${bytes} with gzip`);
    assert.ok(bytes <= MAX_BYTES, `${bytes} bytes`);
    const module = { exports: {} };
    new Function('module', 'exports', bundle)(module, module.exports);
    assert.deepEqual(Object.keys(module.exports).sort(), Object.keys(all).sort());
});

test('the package has no dependencies, and the files that it names', () => {
    assert.equal(manifest.dependencies, undefined);
    const { types, default: main } = manifest.exports['.'];
    for (const file of [types, main, manifest.main, manifest.types]) assert.ok(existsSync(new URL(file, home)), file);
    assert.ok(manifest.files.includes(manifest.miniprogram));
});

test('the package is found by its name', async () => {
    const { Client } = await import('@kmarket/client');
    assert.equal(Client, all.Client);
    assert.ok(createRequire(import.meta.url).resolve('@kmarket/client/package.json'));
});

test('every export has a type, and every type an export', () => {
    const declared = [...readFileSync(new URL('index.d.ts', home), 'utf8').matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name);
    assert.deepEqual(declared.sort(), Object.keys(all).sort());
});

test('both ways to parse keep numbers as text and everything else as it is', () => {
    const text = '{"a":[2.10,-0,1e5,1.5E-3,0.0,null,true,"1.0","\\"2","\\\\",{"b 1":"x\\u0041 3.0"}],"1":10,"":""}';
    const expected = { a: ['2.10', '-0', '1e5', '1.5E-3', '0.0', null, true, '1.0', '"2', '\\', { 'b 1': 'xA 3.0' }], 1: '10', '': '' };
    assert.deepEqual(parse(text), expected);
    assert.deepEqual(parseByScan(text), expected);
    for (const bad of ['{', '"', '01', '1.', '{"a":-}', '[1 2]']) assert.throws(() => parseByScan(bad), SyntaxError, bad);
});
