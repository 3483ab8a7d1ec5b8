// Tests the adapter for mini-programs with a fake `wx` that has the documented limits: at most 5 sockets; JavaScript
// freezes 5 s after the app is hidden; sockets of a hidden app are interrupted with 1000; events are asynchronous.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { wx } from '../src/wx.js';
import { World, snapshot, update } from './world.js';

class FakeWx {
    tasks = [];
    listeners = {};
    kept = new Map();
    requests = [];
    hidden = false;

    constructor({ promise = false } = {}) { this.promise = promise; }

    get open() { return this.tasks.filter((task) => !task.over); }

    connectSocket({ url, success, fail }) {
        if (this.hidden || this.open.length >= 5) {
            queueMicrotask(() => fail({ errMsg: this.hidden ? 'connectSocket:fail interrupted' : 'connectSocket:fail exceed max task count' }));
            return this.promise ? Promise.reject({ errMsg: 'connectSocket:fail' }) : undefined;
        }
        const task = { url, sent: [], over: false, on: {} };
        for (const name of ['Open', 'Message', 'Error', 'Close']) task[`on${name}`] = (run) => { task.on[name] = run; };
        task.send = ({ data, fail: failed }) => { if (task.over) failed({ errMsg: 'send:fail' }); else task.sent.push(JSON.parse(data)); };
        task.close = ({ code }) => this.end(task, code);
        this.tasks.push(task);
        queueMicrotask(success);
        return this.promise ? Promise.resolve(task) : task;
    }

    end(task, code, reason = '') {
        if (task.over) return;
        task.over = true;
        queueMicrotask(() => task.on.Close && task.on.Close({ code, reason }));
    }

    request({ url, dataType, success }) { this.requests.push({ url, dataType, success }); }

    getStorageSync(key) { return this.kept.get(key) || ''; }

    setStorage({ key, data, success }) { this.kept.set(key, data); success(); }

    tell(name, event) { this.listeners[name].forEach((run) => run(event)); }

    hide() { this.tell('AppHide'); this.hidden = true; this.open.forEach((task) => this.end(task, 1000, 'interrupted')); }

    show() { this.hidden = false; this.tell('AppShow'); }
}
for (const name of ['AppShow', 'AppHide', 'NetworkStatusChange']) {
    FakeWx.prototype[`on${name}`] = function on(run) { (this.listeners[name] ||= []).push(run); };
    FakeWx.prototype[`off${name}`] = function off(run) { this.listeners[name] = this.listeners[name].filter((other) => other !== run); };
}

/** Returns a world with the sockets of a fake `wx` and a clock of its own. */
function over(api) {
    const world = new World();
    const { now, random, setTimeout, clearTimeout } = world.host;
    world.host = { ...wx(api), now, monotonic: undefined, random, setTimeout, clearTimeout };
    world.client = world.make();
    return world;
}

/** Returns such a world in which market 1001 is live. */
async function live(options) {
    const api = new FakeWx(options);
    const world = over(api);
    world.client.subscribe(1001);
    world.client.start();
    await world.settle();
    open(api);
    const task = api.tasks.at(-1);
    const receive = (message) => task.on.Message({ data: JSON.stringify(message) });
    receive({ type: 'ack', ok: true, id: task.sent.find(({ type }) => type === 'subscribe').id, positions: { 1001: { epoch: 7, seq: 1 } } });
    receive(snapshot(1001, 1, { win: { yes: '1.5' } }));
    return { api, world, task, receive };
}

function open(api) {
    api.tasks.at(-1).on.Open({});
}

for (const promise of [false, true]) {
    test(`connectSocket may return a ${promise ? 'Promise' : 'SocketTask'}`, async () => {
        const { world, receive, task } = await live({ promise });
        receive(update(1001, 2));
        assert.equal(world.seq(), 2);
        assert.match(task.url, /^wss:\/\/gw\.example\/ws\/odds\?token=token-1$/);
    });

    test(`a hidden app's interrupted socket is resumed when the app is shown (${promise ? 'Promise' : 'SocketTask'})`, async () => {
        const { api, world } = await live({ promise });
        api.hide();
        await world.pass(5000); // then JavaScript freezes
        assert.equal(world.client.state, 'paused');
        assert.ok(api.kept.get('kmarket').includes('"seq":1'));
        world.freeze(3_600_000);
        api.show();
        await world.settle();
        open(api);
        assert.deepEqual(api.tasks.at(-1).sent[0].offsets, { 1001: { epoch: 7, seq: 1, ts: 1_000_000_000_001 } });
        assert.equal(api.open.length, 1);
    });

    test(`the client never holds more than one socket (${promise ? 'Promise' : 'SocketTask'})`, async () => {
        const { api, world } = await live({ promise });
        for (let n = 0; n < 20; n += 1) {
            api.end(api.tasks.at(-1), 1006);
            await world.pass(60_000); // handshakes hang, time out and are repeated
            assert.ok(api.open.length <= 1);
        }
        assert.ok(api.tasks.length > 20);
    });
}

test('a hidden mini-program asks for a slower pace before it freezes, and for all updates when it is shown', async () => {
    const { api, task } = await live();
    const paces = () => task.sent.filter(({ type }) => type === 'pace').map(({ conflateMs }) => conflateMs);
    api.tell('AppHide');
    assert.deepEqual(paces(), [1000]);
    api.tell('AppShow');
    assert.deepEqual(paces(), [1000, 0]);
});

test('a socket that survived the background is kept', async () => {
    const { api, world, task } = await live();
    api.tell('AppHide');
    world.freeze(50_000);
    api.tell('AppShow');
    await world.pass(3000);
    task.on.Message({ data: '{"type":"pong","ts":1}' });
    await world.pass(12_000);
    assert.deepEqual([api.tasks.length, world.client.state], [1, 'open']);
});

test('a refused sixth socket is tried again', async () => {
    const api = new FakeWx();
    const others = Array.from({ length: 5 }, () => api.connectSocket({ success() {}, fail() {} }));
    const world = over(api);
    world.client.start();
    await world.settle();
    assert.equal(world.client.state, 'waiting');
    others[0].close({ code: 1000 });
    await world.pass(60_000);
    assert.ok(api.tasks.length > 5);
});

test('a SocketTask that arrives although connecting failed is closed', async () => {
    const api = new FakeWx();
    const world = over(api);
    const { connectSocket } = api;
    api.connectSocket = (options) => {
        queueMicrotask(() => options.fail({ errMsg: 'connectSocket:fail' }));
        return connectSocket.call(api, options);
    };
    world.client.start();
    await world.settle();
    assert.deepEqual([world.client.state, api.open.length], ['waiting', 0]);
});

test('an error without a close event counts as a close', async () => {
    const { api, world, task } = await live();
    task.on.Error({ errMsg: 'reset' });
    assert.equal(world.client.state, 'waiting');
    await world.settle();
    assert.equal(api.open.length, 0);
});

test('a socket whose Promise resolves after close is closed', async () => {
    const api = new FakeWx({ promise: true });
    const host = wx(api);
    const socket = host.open('wss://gw.example', [], { open: assert.fail, message: assert.fail, close: assert.fail });
    socket.close(1000);
    await new Promise((resolve) => { setImmediate(resolve); });
    assert.equal(api.open.length, 0);
});

test('wx does not parse HTTP responses', async () => {
    const api = new FakeWx();
    const response = wx(api).get('https://gw.example/x');
    assert.equal(api.requests[0].dataType, 'text');
    api.requests[0].success({ statusCode: 200, data: '{"a":2.10}' });
    assert.deepEqual(await response, { status: 200, text: '{"a":2.10}' });
});

test('the client reconnects at once when the network is back, and close removes every listener', async () => {
    const { api, world } = await live();
    api.tell('NetworkStatusChange', { isConnected: false });
    api.end(api.tasks[0], 1006);
    await world.settle();
    api.tell('NetworkStatusChange', { isConnected: true });
    await world.settle();
    assert.equal(api.tasks.length, 2);
    world.client.close();
    assert.ok(Object.values(api.listeners).every((listeners) => listeners.length === 0));
});
