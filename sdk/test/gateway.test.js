import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client } from '../src/index.js';
import { Gateway, breakable } from './gateway.js';

const DEADLINE_MS = 30_000;

/** Starts a client of `gateway` on market 1001. Returns it with its events and ways to wait for them. */
function follow(t, gateway, options = {}) {
    const host = breakable();
    const client = new Client({ url: gateway.url, token: () => gateway.token(), host, ...options });
    const events = [];
    let look = () => {};
    for (const type of ['change', 'state', 'stale', 'rejected', 'error']) {
        client.on(type, (event) => { events.push({ type, ...event }); look(); });
    }
    const until = (holds) => new Promise((resolve, reject) => {
        const deadline = setTimeout(() => reject(new Error(`not within ${DEADLINE_MS} ms: ${holds}\n${JSON.stringify(events.slice(-20))}`)), DEADLINE_MS);
        look = () => { if (holds()) { clearTimeout(deadline); look = () => {}; resolve(); } };
        look();
    });
    t.after(() => client.close());
    client.subscribe(1001);
    client.start();
    return { client, host, events, until, at: (seq, id = 1001) => until(() => client.market(id)?.seq === seq) };
}

async function started(t, settings) {
    const gateway = await Gateway.start(settings);
    t.after(() => gateway.end());
    return gateway;
}

const price = (n) => `{"moneyline":{"home":1.${n % 10}5,"away":2.10},"total":${n % 2 ? 'null' : '{"over":1.90}'}}`;
const changes = (events) => events.filter(({ type }) => type === 'change');

test('prices arrive with the digits that were published, and their age is known', async (t) => {
    const gateway = await started(t, { HEARTBEAT_INTERVAL: '200ms' });
    const { client, at, until } = follow(t, gateway);
    await at(0);
    assert.equal(client.market(1001).fresh, true);
    const { epoch } = await gateway.publish(1001, '{"moneyline":{"home":1.50,"away":2.10},"total":{"over":1.90}}');
    await at(1);
    assert.deepEqual(client.market(1001).lines, { moneyline: { home: '1.50', away: '2.10' }, total: { over: '1.90' } });
    await gateway.publish(1001, '{"total":null}');
    await at(2);
    assert.deepEqual(Object.keys(client.market(1001).lines), ['moneyline']);
    // The first update does not carry the epoch: the client asks for it.
    client.subscribe(1002);
    await at(0, 1002);
    assert.equal(client.market(1001).epoch, epoch);
    await gateway.publish(1002, price(1));
    await until(() => client.clock.offsetMs !== null || client.market(1002).seq === 1);
    assert.ok(client.market(1001).ageMs >= 0 && client.market(1001).ageMs < DEADLINE_MS);
});

test('no update is lost or repeated while connections break', async (t) => {
    const gateway = await started(t);
    const { client, host, events, at } = follow(t, gateway);
    await at(0);
    for (let n = 1; n <= 60; n += 1) {
        if (n % 6 === 0) host.cut();
        await gateway.publish(1001, price(n + 1));
        if (n % 4 === 0) await at(n);
    }
    await at(60);
    assert.deepEqual(changes(events).map(({ seq }) => seq), Array.from({ length: 61 }, (_, n) => n));
    assert.ok(changes(events).slice(1).every(({ cause }) => cause === 'update'));
    assert.equal(host.sockets.length, 11);
    assert.deepEqual([client.state, client.market(1001).fresh], ['open', true]);
    assert.deepEqual(events.filter(({ type }) => type === 'error'), []);
});

test('updates that the socket loses are fetched over HTTP', async (t) => {
    const gateway = await started(t, { READ_AUTH: 'token' });
    const { host, events, at } = follow(t, gateway, { readAuth: true });
    await at(0);
    host.lose = (text) => /"odds_update".*"seq":[23],/.test(text);
    for (let n = 1; n <= 5; n += 1) await gateway.publish(1001, price(n + 1));
    await at(5);
    assert.deepEqual(changes(events).map(({ seq }) => seq), [0, 1, 2, 3, 4, 5]);
    assert.equal(host.sockets.length, 1);
});

test('more missed updates than RESUME_MAX come as a snapshot', async (t) => {
    const gateway = await started(t, { RESUME_MAX: '3' });
    const { client, host, events, at } = follow(t, gateway);
    await gateway.publish(1001, price(2));
    await at(1);
    host.lose = () => true;
    for (let n = 2; n <= 9; n += 1) await gateway.publish(1001, price(n + 1));
    host.lose = () => false;
    host.cut();
    await at(9);
    assert.deepEqual([changes(events).at(-1).cause, changes(events).at(-1).reset], ['snapshot', true]);
    await gateway.publish(1001, price(11));
    await at(10);
    assert.equal(client.market(1001).fresh, true);
});

for (const signal of ['SIGKILL', 'SIGTERM']) {
    test(`a gateway that ends with ${signal} and restarts with an empty log resets the market`, async (t) => {
        const gateway = await started(t, { DRAIN_SECONDS: '1' });
        const { client, events, at, until } = follow(t, gateway);
        await at(0);
        for (let n = 1; n <= 3; n += 1) await gateway.publish(1001, price(n + 1));
        await at(3);
        await gateway.end(signal);
        await until(() => client.state === 'waiting');
        assert.equal(client.market(1001).fresh, false);
        const left = events.find(({ type, state }) => type === 'state' && state === 'waiting');
        assert.equal(left.code, signal === 'SIGTERM' ? 1012 : 1006);
        const again = await started(t, { LISTEN: gateway.address });
        gateway.address = again.address;
        await again.publish(1001, price(8));
        await until(() => client.market(1001).fresh);
        await again.publish(1001, price(9));
        await at(2);
        assert.ok(changes(events).some(({ reset }) => reset));
        assert.deepEqual(client.market(1001).lines.moneyline, { home: '1.95', away: '2.10' });
    });
}

test('a market outside the token\'s scope is rejected, and the others are delivered', async (t) => {
    const gateway = await started(t);
    const { client, events, at, until } = follow(t, gateway, { token: () => gateway.token({ scopeMarkets: [1001] }) });
    client.subscribe(1002);
    await at(0);
    await until(() => events.some(({ type }) => type === 'rejected'));
    const { marketId, code } = events.find(({ type }) => type === 'rejected');
    assert.deepEqual({ marketId, code }, { marketId: 1002, code: 'FORBIDDEN' });
});

test('a token is refreshed without a new connection', async (t) => {
    const gateway = await started(t);
    const ttls = [2, 600];
    const { client, host, at } = follow(t, gateway, { token: () => gateway.token({ ttlSeconds: ttls.shift() }) });
    await at(0);
    const refreshed = new Promise((resolve) => {
        host.lose = (text) => {
            if (/"type":"ack","ok":true/.test(text)) resolve();
            return false;
        };
    });
    await refreshed;
    await gateway.publish(1001, price(3));
    await at(1);
    assert.deepEqual([host.sockets.length, client.state, ttls], [1, 'open', []]);
});

test('a hidden client follows the market, whatever the gateway knows of paces', async (t) => {
    const gateway = await started(t);
    const { client, host, events, at } = follow(t, gateway);
    await at(0);
    host.app.hidden();
    for (let n = 1; n <= 5; n += 1) await gateway.publish(1001, price(n));
    await at(5);
    host.app.shown();
    await gateway.publish(1001, price(6));
    await at(6);
    assert.deepEqual([client.state, events.filter(({ type }) => type === 'error')], ['open', []]);
});

test('a client that unsubscribes or closes catches up when it comes back', async (t) => {
    const gateway = await started(t);
    const { client, at, until } = follow(t, gateway);
    await at(0);
    client.unsubscribe(1001);
    assert.equal(client.market(1001), undefined);
    await gateway.publish(1001, price(3));
    client.subscribe(1001);
    await at(1);
    client.close();
    await gateway.publish(1001, price(4));
    client.start();
    await at(2);
    await until(() => client.market(1001).fresh);
});
