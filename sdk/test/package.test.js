import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { parse, parseByScan } from '../src/json.js';
import * as all from '../src/index.js';
import { World, update } from './world.js';

const home = new URL('..', import.meta.url);
const manifest = JSON.parse(readFileSync(new URL('package.json', home)));
const MAX_BYTES = 12 * 1024;

test('the sources, without what a minifier removes, have at most 12 KiB with gzip', () => {
    // This bound needs no bundler, and the minified bundle is smaller.
    const sources = readdirSync(new URL('src/', home)).map((name) => readFileSync(new URL(`src/${name}`, home), 'utf8')).join('\n');
    const code = sources.replace(/^ *(\/\/|\/\*\*|\* |\*\/).*$/gm, '').replace(/ \/\/ .*$/gm, '').replace(/^import .*$/gm, '');
    const declared = new Set([...code.matchAll(/\b(?:const|let|function|class) (\w+)/g)].map(([, name]) => name));
    const names = new Map();
    const short = (name) => {
        if (!names.has(name)) names.set(name, `${name[0] === '#' ? '#' : ''}n${names.size}`);
        return names.get(name);
    };
    const minified = code.replace(/#\w+|\b[A-Z]+_[A-Z_]+\b/g, short)
        .replace(/(?<![.'\w])\b[a-zA-Z]\w+\b(?!['\w:])/g, (name) => (declared.has(name) ? short(name) : name))
        .replace(/\s+/g, ' ').replace(/ ?([-=+*/<>{}()[\],;:?&|!]) ?/g, '$1');
    const bytes = gzipSync(minified, { level: 9 }).length;
    assert.ok(bytes <= MAX_BYTES, `${bytes} bytes`);
});

test('the bundle for mini-programs has at most 12 KiB with gzip, is CommonJS and works', async (t) => {
    let bundle;
    try {
        bundle = execFileSync('npm', ['run', '--silent', 'bundle'], { cwd: home, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
    } catch (error) {
        // Without npm or a registry there is only the bound above.
        if (error.code !== 'ENOENT' && !/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENOTCACHED/.test(error.stderr)) throw error;
        t.skip('npm is missing or reaches no registry');
        return;
    }
    const bytes = gzipSync(bundle, { level: 9 }).length;
    t.diagnostic(`${Buffer.byteLength(bundle)} bytes minified, ${bytes} with gzip`);
    assert.ok(bytes <= MAX_BYTES, `${bytes} bytes`);
    const module = { exports: {} };
    new Function('module', 'exports', bundle)(module, module.exports);
    assert.deepEqual(Object.keys(module.exports).sort(), Object.keys(all).sort());
    const world = await new World({ Client: module.exports.Client }).live();
    world.receive(update(1001, 3));
    world.requests[0].respond({ epoch: 7, complete: true, updates: [update(1001, 2)] });
    await world.settle();
    world.close(1006);
    await world.resumed();
    world.receive({ ...update(1001, 9), from: 3 });
    assert.deepEqual([world.seq(), world.client.market(1001).fresh, world.of('error')], [9, true, []]);
});

test('the package has no dependencies, and every file that it names exists', () => {
    assert.equal(manifest.dependencies, undefined);
    const { types, default: main } = manifest.exports['.'];
    for (const file of [types, main, manifest.main, manifest.types]) assert.ok(existsSync(new URL(file, home)), file);
    assert.ok(manifest.files.includes(manifest.miniprogram));
});

test('the package can be imported by its name', async () => {
    const { Client } = await import('@kmarket/client');
    assert.equal(Client, all.Client);
    assert.ok(createRequire(import.meta.url).resolve('@kmarket/client/package.json'));
});

test('index.d.ts declares exactly the exports', () => {
    const declared = [...readFileSync(new URL('index.d.ts', home), 'utf8').matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name);
    assert.deepEqual(declared.sort(), Object.keys(all).sort());
});

test('both parsers keep numbers as text and everything else unchanged', () => {
    const text = '{"a":[2.10,-0,1e5,1.5E-3,0.0,null,true,"1.0","\\"2","\\\\",{"b 1":"x\\u0041 3.0"}],"1":10,"":""}';
    const expected = { a: ['2.10', '-0', '1e5', '1.5E-3', '0.0', null, true, '1.0', '"2', '\\', { 'b 1': 'xA 3.0' }], 1: '10', '': '' };
    assert.deepEqual(parse(text), expected);
    assert.deepEqual(parseByScan(text), expected);
    for (const bad of ['{', '"', '01', '1.', '{"a":-}', '[1 2]']) assert.throws(() => parseByScan(bad), SyntaxError, bad);
});
