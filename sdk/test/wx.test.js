// The adapter for mini-programs, over a wx that has the limits its documentation tells of: at most 5 sockets; JavaScript
// stands still 5 s after the app is hidden; sockets of a hidden app are interrupted with 1000; events come later.

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

/** A world whose sockets are a fake wx's and whose clock is its own. */
function over(api) {
    const world = new World();
    const { now, random, setTimeout, clearTimeout } = world.host;
    world.host = { ...wx(api), now, random, setTimeout, clearTimeout };
    world.client = world.make();
    return world;
}

/** One with a live market. */
async function live(options) {
    const api = new FakeWx(options);
    const world = over(api);
    world.client.subscribe(1001);
    world.client.start();
    await world.settle();
    open(api);
    const task = api.tasks.at(-1);
    const hear = (message) => task.on.Message({ data: JSON.stringify(message) });
    hear({ type: 'ack', ok: true, id: task.sent.find(({ type }) => type === 'subscribe').id, positions: { 1001: { epoch: 7, seq: 1 } } });
    hear(snapshot(1001, 1, { win: { yes: '1.5' } }));
    return { api, world, task, hear };
}

function open(api) {
    api.tasks.at(-1).on.Open({});
}

for (const promise of [false, true]) {
    test(`connectSocket may answer with a ${promise ? 'Promise' : 'SocketTask'}`, async () => {
        const { world, hear, task } = await live({ promise });
        hear(update(1001, 2));
        assert.equal(world.seq(), 2);
        assert.match(task.url, /^wss:\/\/gw\.example\/ws\/odds\?token=token-1$/);
    });

    test(`a hidden app's interrupted socket is resumed when the app is shown (${promise ? 'Promise' : 'SocketTask'})`, async () => {
        const { api, world } = await live({ promise });
        api.hide();
        await world.pass(5000); // then JavaScript stands still
        assert.equal(world.client.state, 'paused');
        assert.ok(api.kept.get('kmarket').includes('"seq":1'));
        world.freeze(3_600_000);
        api.show();
        await world.settle();
        open(api);
        assert.deepEqual(api.tasks.at(-1).sent[0].offsets, { 1001: { epoch: 7, seq: 1 } });
        assert.equal(api.open.length, 1);
    });

    test(`never more than one socket is held (${promise ? 'Promise' : 'SocketTask'})`, async () => {
        const { api, world } = await live({ promise });
        for (let n = 0; n < 20; n += 1) {
            api.end(api.tasks.at(-1), 1006);
            await world.pass(60_000); // handshakes hang, time out and are tried again
            assert.ok(api.open.length <= 1);
        }
        assert.ok(api.tasks.length > 20);
    });
}

test('a socket that lived through the background is kept', async () => {
    const { api, world, task } = await live();
    api.tell('AppHide');
    world.freeze(50_000);
    api.tell('AppShow');
    await world.pass(3000);
    task.on.Message({ data: '{"type":"pong","ts":1}' });
    await world.pass(12_000);
    assert.deepEqual([api.tasks.length, world.client.state], [1, 'open']);
});

test('a sixth socket is refused, and tried again', async () => {
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

test('a SocketTask may come all the same when connecting fails', async () => {
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

test('an error without a close is a close', async () => {
    const { api, world, task } = await live();
    task.on.Error({ errMsg: 'reset' });
    assert.equal(world.client.state, 'waiting');
    await world.settle();
    assert.equal(api.open.length, 0);
});

test('a Promise that is resolved when nobody wants its socket any more gives it back', async () => {
    const api = new FakeWx({ promise: true });
    const host = wx(api);
    const socket = host.open('wss://gw.example', [], { open: assert.fail, message: assert.fail, close: assert.fail });
    socket.close(1000);
    await new Promise((resolve) => { setImmediate(resolve); });
    assert.equal(api.open.length, 0);
});

test('answers over HTTP are not parsed by wx', async () => {
    const api = new FakeWx();
    const answer = wx(api).get('https://gw.example/x');
    assert.equal(api.requests[0].dataType, 'text');
    api.requests[0].success({ statusCode: 200, data: '{"a":2.10}' });
    assert.deepEqual(await answer, { status: 200, text: '{"a":2.10}' });
});

test('the network\'s coming back hurries, and close listens no more', async () => {
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
