// When the client asks its provider for a token, and when it says that a token is bad.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';
import { Client } from '../src/index.js';
import { statusIn } from '../src/clock.js';
import { web } from '../src/web.js';
import { WebSocket } from './gateway.js';
import { World, update, wait } from './world.js';

const TEN_MINUTES = 600_000;
const tokenErrors = (world) => world.of('error').filter(({ kind }) => kind === 'token').map(({ error }) => error.message);

/** Returns a JWT. `world`: whose server's clock it is made by. */
function jwt(world, n, ttl = TEN_MINUTES) {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const iat = Math.floor(world.time / 1000);
    return `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: '1', iat, exp: iat + ttl / 1000, jti: String(n) })}.x`;
}

/** Returns a world whose provider gives tokens valid for ten minutes. */
function withTokens(host = {}) {
    const world = new World({}, host);
    world.options.token = async () => ({ token: jwt(world, ++world.tokens), expiresAt: world.time + TEN_MINUTES });
    world.client = world.make();
    return world;
}

/** Refuses every handshake for `ms`. */
async function refuse(world, ms, ...how) {
    const end = world.time + ms;
    while (world.time < end) {
        if (world.client.state === 'connecting') world.socket.on.close(1006, '', ...how);
        await world.pass(wait(world));
    }
}

test('during two minutes of refusals without a reason the provider is asked once', async () => {
    for (const [old, more] of [[0, 0], [100_000, 0], [300_000, 1]]) {
        const world = await withTokens().live();
        await world.healthy(old);
        world.close(1006);
        await world.pass(wait(world));
        await refuse(world, 120_000);
        assert.equal(world.tokens, 1 + more, `a token of ${old} ms`);
    }
});

test('a refusal with a status that is not about the token costs no token', async () => {
    for (const status of [429, 503, 403]) {
        const world = await withTokens().live();
        await world.healthy(300_000);
        world.close(1006);
        await world.pass(wait(world));
        await refuse(world, 120_000, status);
        assert.deepEqual([world.tokens, tokenErrors(world)], [1, []]);
    }
});

test('a refusal that names the token drops it at once and is an error', async () => {
    const world = withTokens();
    world.client.start();
    await world.settle();
    world.socket.on.close(1006, '', 401);
    await world.pass(wait(world));
    assert.equal(world.tokens, 2);
    assert.match(tokenErrors(world)[0], /refused the token: 401/);
    world.socket.on.open();
    world.close(4401);
    assert.match(tokenErrors(world)[1], /refused the token: 4401/);
    await world.pass(wait(world));
    assert.equal(world.tokens, 3);
});

test('where the platform does not say why, the client asks over HTTP and hears of a bad token', async () => {
    const asked = [];
    let status = 401;
    const world = withTokens({ check: async (url, token) => { asked.push([url, token]); return status; } });
    world.client.start();
    await world.settle();
    world.close(1006);
    await world.settle();
    assert.deepEqual(asked.map(([url]) => url), ['https://gw.example/ws/odds']);
    assert.match(tokenErrors(world)[0], /refused the token/);
    await world.pass(wait(world));
    assert.equal(world.tokens, 2);
    // One check in three minutes, however many handshakes fail.
    await refuse(world, 170_000);
    assert.deepEqual([asked.length, world.tokens], [1, 2]);
    // The gateway is only full: the token stays.
    status = 503;
    await refuse(world, 40_000);
    assert.deepEqual([asked.length, world.tokens, tokenErrors(world).length], [2, 2, 1]);
});

test('an accepted token is suspected from the second failure on', async () => {
    let asked = 0;
    const world = await withTokens({ check: async () => { asked += 1; return 426; } }).live();
    world.close(1006);
    await world.pass(wait(world));
    world.close(1006);
    await world.settle();
    assert.equal(asked, 0);
    await world.pass(wait(world));
    world.close(1006);
    await world.settle();
    assert.deepEqual([asked, world.tokens], [1, 1]);
});

test('the answer to a check does not drop a later token', async () => {
    let answer;
    const world = withTokens({ check: () => new Promise((resolve) => { answer = resolve; }) });
    world.client.start();
    await world.settle();
    world.close(1006);
    await world.pass(wait(world));
    world.socket.on.close(1006, '', 401);
    await world.pass(wait(world));
    assert.equal(world.tokens, 2);
    answer(401);
    await world.settle();
    world.close(1006);
    await world.pass(wait(world));
    assert.equal(world.tokens, 2);
});

test('without a network no token is suspected', async () => {
    const world = withTokens({ check: () => assert.fail('offline') });
    await world.live();
    world.on.offline();
    world.close(1006);
    for (let n = 0; n < 5; n += 1) {
        await world.pass(30_000);
        if (world.client.state === 'connecting') world.close(1006);
    }
    assert.deepEqual([world.tokens, world.of('error')], [1, []]);
});

test('a read that is refused with 401 drops the token', async () => {
    const world = withTokens();
    world.options.readAuth = true;
    world.client = world.make();
    await world.live();
    world.receive(update(1001, 4));
    await world.settle();
    world.requests[0].respond({}, 401);
    await world.pass(2000);
    assert.deepEqual([world.requests.length, world.tokens], [2, 2]);
    assert.notEqual(world.requests[0].url.searchParams.get('token'), world.requests[1].url.searchParams.get('token'));
});

test('who needs a token while the provider is asked gets the same one', async () => {
    const given = [];
    const world = new World({ readAuth: true, token: () => new Promise((resolve) => { given.push(resolve); }) });
    world.client.subscribe(1001);
    world.client.start();
    await world.settle();
    given[0]({ token: 'first', expiresAt: world.time + 5500 });
    await world.settle();
    world.socket.on.open();
    world.ackSubscribe({ 1001: 1 });
    await world.pass(4400); // the refresh asks, and then a read does
    world.receive(update(1001, 4));
    await world.settle();
    assert.equal(given.length, 2);
    given[1]({ token: 'second', expiresAt: world.time + TEN_MINUTES });
    await world.settle();
    assert.equal(world.sent('refresh')[0].token, 'second');
    assert.equal(world.requests[0].url.searchParams.get('token'), 'second');
});

test('a refresh whose provider fails leaves the old token in use', async () => {
    let fails = false;
    const world = new World();
    world.options.token = async () => {
        if (fails) throw new Error('no');
        return { token: jwt(world, ++world.tokens), expiresAt: world.time + TEN_MINUTES };
    };
    world.client = world.make();
    await world.live();
    fails = true;
    await world.healthy(545_000);
    assert.ok(tokenErrors(world).length > 0);
    world.close(1006);
    await world.pass(wait(world));
    assert.deepEqual([world.tokens, world.client.state], [1, 'connecting']);
});

for (const by of [3_600_000, -3_600_000]) for (const isSteady of [false, true]) {
    test(`a jump of the device's clock by ${by / 3_600_000} h costs one token at most (${isSteady ? 'with' : 'without'} a monotonic clock)`, async () => {
        let world;
        world = withTokens(isSteady ? { monotonic: () => (world ? world.steady() : 0) } : {});
        await world.live();
        await world.healthy(60_000);
        world.shift = by;
        world.close(1006);
        await world.pass(wait(world));
        await refuse(world, 120_000, 503); // no ping comes that could tell the server's clock
        assert.ok(world.tokens <= 2, `${world.tokens} tokens`);
        if (isSteady && by < 0) assert.equal(world.tokens, 1);
        const before = world.tokens;
        if (world.client.state !== 'connecting') await world.pass(wait(world));
        world.socket.on.open();
        await world.healthy(500_000 - 180_000);
        assert.ok(world.tokens <= before + 1);
        assert.equal(world.client.state, 'open');
    });
}

test('a device whose clock is an hour off asks for one token in ten minutes', async () => {
    for (const shift of [3_600_000, -3_600_000]) {
        const world = withTokens();
        world.shift = shift;
        world.client = world.make();
        world.client.start();
        await world.settle();
        await refuse(world, 120_000, 503);
        assert.equal(world.tokens, 1);
    }
});

test('a platform\'s text about a failed handshake tells the status', () => {
    for (const [text, status] of [
        ['Unexpected server response: 401', 401],
        ['WebSocket connection to \'wss://gw/\' failed: Error during WebSocket handshake: Unexpected response code: 503', 503],
        ['Expected HTTP 101 response but was \'401 Unauthorized\'', 401],
        ['Received bad response code from server 401.', 401],
        ['connect ECONNREFUSED 127.0.0.1:443', undefined],
        ['There was a bad response from the server.', undefined],
        ['', undefined],
        [undefined, undefined],
    ]) assert.equal(statusIn(text), status, text);
});

test('over real sockets a bad token is an error, whether the platform tells the status or not', async (t) => {
    let good = '';
    const server = createServer((request, response) => {
        response.writeHead(request.headers.authorization === `Bearer ${good}` ? 426 : 401).end();
    }).listen(0, '127.0.0.1');
    server.on('upgrade', (request, socket) => socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'));
    await once(server, 'listening');
    t.after(() => { server.close(); server.closeAllConnections(); });
    const silent = (host) => ({ ...host, open: (url, protocols, on) => host.open(url, protocols, { ...on, close: (code, reason) => on.close(code, reason) }) });
    for (const adapt of [(host) => host, silent]) {
        const host = { ...adapt(web({ WebSocket })), random: () => 0 };
        const client = new Client({ url: `http://127.0.0.1:${server.address().port}`, token: () => 'bad', host });
        const heard = new Promise((resolve) => { client.on('error', (event) => { if (event.kind === 'token') resolve(event); }); });
        client.start();
        assert.match((await heard).error.message, /refused the token: 401/);
        client.close();
    }
    good = 'good';
    const { check } = web({ WebSocket });
    const statuses = ['good', 'bad'].map((token) => check(`http://127.0.0.1:${server.address().port}/ws/odds`, token));
    assert.deepEqual(await Promise.all(statuses), [426, 401]);
});
