import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { Gateway } from './gateway.js';

const home = new URL('..', import.meta.url);
const example = (name) => /```js\n([^]*?)```/.exec(readFileSync(new URL(name, home), 'utf8'))[1];
const code = (text) => text.replace(/^ *\/\/.*\n/gm, '');

test('both READMEs have the same example, of about 20 lines', () => {
    assert.equal(code(example('README.md')), code(example('README.zh-CN.md')));
    assert.ok(example('README.md').trim().split('\n').length <= 22);
});

/** The hosts of the README's table that run on Node: code to put before the example, and how to adapt the example. */
const HOSTS = {
    'in Node': ['import { WebSocket } from "./test/gateway.js";\nglobalThis.WebSocket ??= WebSocket;', (text) => text],
    'in a mini-program': [
        'import { realWx } from "./test/real_wx.js";\nconst wx = realWx();',
        (text) => text.replace('{ Client, web }', '{ Client, wx as host }').replace('host: web()', 'host: host(wx)'),
    ],
};

for (const [where, [before, adapt]] of Object.entries(HOSTS)) test(`the README's example shows prices ${where}`, async (t) => {
    const gateway = await Gateway.start();
    t.after(() => gateway.end());
    await gateway.publish(1001, '{"moneyline":{"home":1.85,"away":2.10}}');
    const text = `${before}\n${adapt(example('README.md'))}`.replaceAll('127.0.0.1:8080', gateway.address);
    const program = spawn(process.execPath, ['--input-type=module', '-e', text], { cwd: home, stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => program.kill());
    const lines = [];
    for await (const line of createInterface({ input: program.stdout })) {
        lines.push(line);
        if (line.startsWith('1001 1 ')) break;
    }
    assert.deepEqual(lines.slice(0, 2), ['connecting', 'open']);
    assert.match(lines.at(-1), /^1001 1 moneyline \{ home: '1.85', away: '2.10' \} \d+ ms$/);
});
