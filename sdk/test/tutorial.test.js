// Runs the code of docs/tutorial.zh-CN.md as it is printed: server, app and page, with real sockets and a real gateway.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import * as sdk from '../src/index.js';
import { Gateway } from './gateway.js';
import { realWx } from './real_wx.js';

const tutorial = readFileSync(new URL('../../docs/tutorial.zh-CN.md', import.meta.url), 'utf8');

/** Returns the code block whose first line has the file's name. */
function file(name) {
    const found = [...tutorial.matchAll(/```(?:js|html|css)\n([^]*?)```/g)].map(([, text]) => text).find((text) => text.split('\n', 1)[0].includes(name));
    assert.ok(found, name);
    return found;
}

async function freePort() {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address();
    server.close();
    return port;
}

/** Runs the tutorial's app and page. Returns the objects that they pass to `App` and `Page`. */
function load({ wx, gateway, server }) {
    const made = {};
    const run = (text, names) => new Function(...Object.keys(names), text)(...Object.values(names));
    const app = file('app.js').replace(/^import .*;$/m, '').replaceAll('http://127.0.0.1:8080', gateway).replaceAll('http://127.0.0.1:8088', server);
    run(app, { App: (app) => { made.app = app; }, Client: sdk.Client, host: sdk.wx, wx });
    run(file('market.js'), { Page: (page) => { made.page = page; }, getApp: () => made.app });
    return made;
}

/** Opens the page. `until(is)` waits until `is(data)` is true. */
function open({ page }, id) {
    const watchers = new Set();
    const shown = {
        ...page,
        data: { ...page.data },
        setData(changes) { Object.assign(this.data, changes); watchers.forEach((watch) => watch()); },
        until: (is) => new Promise((resolve) => {
            const watch = () => { if (is(shown.data)) { watchers.delete(watch); resolve(shown.data); } };
            watchers.add(watch);
            watch();
        }),
    };
    shown.onLoad({ id });
    return shown;
}

const price = ({ lines }, line, selection) => lines.find(({ name }) => name === line)?.prices.find((p) => p.selection === selection);

test('the tutorial\'s server, app and page show prices, and catch up after a cut', { timeout: 60_000 }, async (t) => {
    const gateway = await Gateway.start({ TOKEN_API_KEY: 'only the server knows' });
    t.after(() => gateway.end());
    const port = await freePort();
    const server = spawn(process.execPath, ['--input-type=module', '-e', file('server.js')], {
        env: { ...process.env, GATEWAY_URL: gateway.url, TOKEN_API_KEY: 'only the server knows', PORT: port }, stdio: 'inherit',
    });
    t.after(() => server.kill());
    const tokens = `http://127.0.0.1:${port}/odds-token`;
    while (!(await fetch(tokens).catch(() => null))) await sleep(20);
    assert.equal((await fetch(tokens, { method: 'POST' })).status, 401);
    await gateway.publish(1001, '{"moneyline":{"home":1.85,"away":2.10},"status":{"state":"open"}}');

    const wx = realWx();
    const made = load({ wx, gateway: gateway.url, server: `http://127.0.0.1:${port}` });
    made.app.onLaunch();
    t.after(() => made.app.odds.close());
    const page = open(made, '1001');
    const first = await page.until(({ fresh, seq }) => fresh && seq === 1);
    assert.deepEqual(price(first, 'moneyline', 'away'), { selection: 'away', price: '2.10', move: '' });
    assert.deepEqual([first.state, first.message, first.lines.length], ['实时', '', 1]);

    await gateway.publish(1001, '{"moneyline":{"home":1.80,"away":2.20}}');
    await page.until((data) => price(data, 'moneyline', 'away').move === 'up');
    assert.equal(price(page.data, 'moneyline', 'home').move, 'down');

    const lost = new Promise((resolve) => { made.app.odds.on('state', ({ state }) => { if (state === 'waiting') resolve(); }); });
    wx.cut();
    await lost; // the page itself may reconnect before it is drawn again
    await gateway.publish(1001, '{"status":{"state":"suspended"}}');
    const back = await page.until(({ fresh, seq }) => fresh && seq === 3);
    assert.equal(back.message, '暂停投注');
    page.onUnload();
    assert.equal(made.app.odds.market(1001), undefined);
});

test('the page\'s template names only members of its data', () => {
    const data = ['state', 'seq', 'message', 'lines', 'fresh'];
    const items = ['name', 'prices', 'selection', 'price', 'move'];
    const names = [...file('market.wxml').matchAll(/\{\{(.*?)\}\}/g)].flatMap(([, text]) => text.replace(/'[^']*'/g, '').match(/[a-z]+(?:\.[a-z]+)?/g));
    for (const name of names) {
        const [, member] = name.split('.');
        assert.ok(member ? items.includes(member) : data.includes(name), name);
    }
});
