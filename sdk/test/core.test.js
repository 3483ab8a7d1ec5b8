import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World, snapshot, update, wait } from './world.js';

const live = (positions, epoch) => new World().live(positions, epoch);

test('an update replaces whole lines, and null removes one', async () => {
    const world = await live();
    world.hear(update(1001, 2, { total: { over: 1 }, win: { no: '3.00' } }));
    assert.deepEqual(world.client.market(1001).lines, { total: { over: '1' }, win: { no: '3.00' } });
    world.hear(update(1001, 3, { win: null }));
    assert.deepEqual(world.client.market(1001).lines, { total: { over: '1' } });
    assert.deepEqual(world.of('change').at(-1).changed, ['win']);
});

test('a price keeps its digits', async () => {
    const world = await live();
    world.hear('{"type":"odds_update","marketId":1001,"seq":2,"ts":5,"payload":{"win":{"yes":2.10,"note":"a \\" 1.0","on":true,"limit":-1.50e3}}}');
    assert.deepEqual(world.client.market(1001).lines.win, { yes: '2.10', note: 'a " 1.0', on: true, limit: '-1.50e3' });
});

test('a line may have any name', async () => {
    const world = await live();
    world.hear('{"type":"odds_update","marketId":1001,"seq":2,"ts":5,"payload":{"__proto__":{"yes":2.10}}}');
    assert.deepEqual(Object.keys(world.client.market(1001).lines), ['win', '__proto__']);
    assert.equal({}.yes, undefined);
});

test('duplicates are ignored', async () => {
    const world = await live({ 1001: 5 });
    const changes = world.of('change').length;
    world.hear(update(1001, 5));
    world.hear(update(1001, 4));
    world.hear(snapshot(1001, 4, {}));
    assert.equal(world.of('change').length, changes);
    assert.deepEqual([world.seq(), world.requests.length], [5, 0]);
});

test('a market that nobody has published begins at 0, and its epoch is learnt with the first update', async () => {
    const world = new World();
    world.client.subscribe(1001);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    world.hear({ type: 'ack', ok: true, id: world.said('subscribe')[0].id, positions: { 1001: { epoch: 0, seq: 0 } } });
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [0, true]);
    world.hear(update(1001, 1));
    await world.pass(0);
    const asked = world.said('subscribe')[1];
    assert.equal(asked.snapshot, undefined);
    world.hear({ type: 'ack', ok: true, id: asked.id, positions: { 1001: { epoch: 9, seq: 1 } } });
    assert.deepEqual([world.seq(), world.client.market(1001).epoch], [1, 9]);
});

test('a gap is fetched as updates, and nothing is applied out of order', async () => {
    const world = await live();
    world.hear(update(1001, 4));
    world.hear(update(1001, 5));
    assert.equal(world.seq(), 1);
    assert.equal(world.client.market(1001).fresh, false);
    const [request] = world.requests;
    assert.equal(request.url.pathname + request.url.search, '/api/markets/1001/odds/updates?since_seq=1&limit=2');
    request.answer({ epoch: 7, complete: true, updates: [update(1001, 2), update(1001, 3)] });
    await world.settle();
    assert.deepEqual(world.of('change').map(({ seq }) => seq), [1, 2, 3, 4, 5]);
    assert.equal(world.client.market(1001).fresh, true);
});

test('a wide gap, one that is no longer kept, and one in another epoch are fetched as a snapshot', async () => {
    for (const [seq, answer] of [[900, null], [4, { epoch: 7, complete: false, updates: [] }], [4, { epoch: 8, complete: true, updates: [update(1001, 2)] }]]) {
        const world = await live();
        world.hear(update(1001, seq));
        if (answer) {
            world.requests[0].answer(answer);
            await world.settle();
        }
        assert.equal(world.requests.at(-1).url.pathname, '/api/markets/1001/odds/snapshot');
        world.requests.at(-1).answer({ epoch: answer ? answer.epoch : 7, seq: seq + 1, ts: 1, payload: { win: { yes: '9' } } });
        await world.settle();
        assert.equal(world.seq(), seq + 1);
    }
});

test('a gap that HTTP cannot fill is resumed over the socket', async () => {
    const nothing = { epoch: 7, complete: true, updates: [] };
    for (const answer of [[{}, 503], [nothing], [{ ...nothing, updates: [update(1001, 2)], stale: true }]]) {
        const world = await live();
        world.hear(update(1001, 4));
        for (const tries of [1, 2, 3]) {
            assert.equal(world.requests.length, tries);
            world.requests.at(-1).answer(...answer);
            await world.pass(5000);
        }
        assert.equal(world.requests.length, 3);
        assert.deepEqual(world.said('resume')[0].offsets, { 1001: { epoch: 7, seq: 1 } });
    }
});

test('a gap is left when its connection, its market or its reason is gone', async () => {
    for (const end of [
        (world) => world.close(1006),
        (world) => world.client.unsubscribe(1001),
        (world) => world.hear(snapshot(1001, 9, {})),
    ]) {
        const world = await live();
        world.hear(update(1001, 4));
        end(world);
        const changes = world.of('change').length;
        world.requests[0].answer({ epoch: 7, complete: true, updates: [update(1001, 2)] });
        await world.settle();
        assert.equal(world.of('change').length, changes);
    }
});

test('after every unexplained close all markets are resumed by one message', async () => {
    for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4401, 4408, 4409, 4429, 4999]) {
        const world = await live({ 1001: 5, 1002: 8 });
        world.close(code);
        assert.equal(world.client.state, 'waiting', code);
        assert.equal(world.client.market(1001).fresh, false);
        await world.resumed();
        assert.deepEqual(world.said('resume').map(({ offsets }) => offsets), [{ 1001: { epoch: 7, seq: 5 }, 1002: { epoch: 7, seq: 8 } }]);
        assert.equal(world.said('subscribe').length, 0);
        world.hear(update(1001, 6));
        assert.equal(world.seq(), 6);
    }
});

test('a bug or a ban stops the client, and start goes on', async () => {
    for (const code of [1002, 1003, 1007, 1009, 4403]) {
        const world = await live();
        world.close(code);
        await world.pass(600_000);
        assert.deepEqual(world.of('state').at(-1), { state: 'stopped', code, reason: '' });
        assert.equal(world.sockets.length, 1);
        world.client.start();
        await world.settle();
        assert.equal(world.sockets.length, 2);
    }
});

test('bye counts more than the close code', async () => {
    const stopped = await live();
    stopped.hear({ type: 'bye', code: 4403, reason: 'NOT_ALLOWED', reconnect: false, afterMs: 0 });
    stopped.close(1006);
    assert.equal(stopped.client.state, 'stopped');
    const again = await live();
    again.hear({ type: 'bye', code: 1012, reason: 'DRAINING', reconnect: true, afterMs: 1840 });
    again.close(1002);
    assert.equal(wait(again), 1840 + 250);
    assert.deepEqual([again.of('state').at(-1).code, again.of('state').at(-1).reason], [1012, 'DRAINING']);
    for (const [code, reconnect, state] of [[1012, false, 'stopped'], [4403, true, 'waiting']]) {
        const world = await live();
        world.hear({ type: 'bye', code, reason: '', reconnect, afterMs: 0 });
        world.close(1006);
        assert.equal(world.client.state, state);
    }
});

test('a bye that no close follows is a close', async () => {
    const world = await live();
    world.hear({ type: 'bye', code: 1012, reason: 'DRAINING', reconnect: true, afterMs: 0 });
    await world.pass(5000);
    assert.equal(world.client.state, 'waiting');
    assert.equal(world.sockets[0].closed, 1000);
});

test('4429 waits 5 s or more, 1013 one second', async () => {
    for (const [code, least] of [[4429, 5000], [1013, 1000], [1006, 0]]) {
        const world = await live();
        world.close(code);
        assert.equal(wait(world), least + 250);
    }
});

test('the backoff doubles with full jitter to 30 s, and starts anew after a connection that lasted', async () => {
    const world = await live();
    const waits = [];
    world.close(1006);
    for (let n = 0; n < 8; n += 1) {
        waits.push(wait(world));
        await world.pass(waits[n]);
        world.close(1006);
    }
    assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
    await world.resumed();
    world.close(1006);
    assert.equal(wait(world), 15_000);
    await world.resumed();
    await world.pass(10_000);
    world.close(1006);
    assert.equal(wait(world), 250);
});

test('4401 brings a new token; another close uses the old one', async () => {
    const world = await live();
    world.close(1006);
    await world.resumed();
    assert.equal(world.tokens, 1);
    world.close(4401);
    await world.pass(1000);
    assert.equal(world.tokens, 2);
    assert.match(world.socket.url, /token=token-2$/);
});

test('a handshake that fails may have been a 401: a token that is not quite new is replaced', async () => {
    const world = new World();
    world.client.start();
    await world.settle();
    world.close(1006);
    await world.pass(1000);
    assert.deepEqual([world.sockets.length, world.tokens], [2, 1]);
    await world.pass(10_000);
    world.close(1006);
    await world.pass(1000);
    assert.deepEqual([world.sockets.length, world.tokens], [3, 2]);
});

test('a token provider that fails, or never answers, is asked again', async () => {
    for (const fail of [() => { throw new Error('no'); }, async () => { throw new Error('no'); }, () => new Promise(() => {}), () => undefined]) {
        let calls = 0;
        const world = new World({ token: () => (++calls === 1 ? fail() : 'good') });
        world.client.start();
        await world.pass(20_000);
        assert.equal(world.of('error')[0].kind, 'token');
        assert.match(world.socket.url, /token=good$/);
    }
});

test('the token is refreshed before it expires', async () => {
    const world = new World();
    world.options.token = async () => ({ token: `t${++world.tokens}`, expiresAt: world.time + 600_000 });
    world.client = world.make();
    await world.live();
    const healthy = async (ms) => {
        for (let past = 0; past < ms; past += 15_000) {
            world.hear({ type: 'ping', ts: world.time });
            await world.pass(15_000);
        }
    };
    await healthy(525_000);
    assert.equal(world.said('refresh').length, 0);
    await healthy(20_000);
    const [refresh] = world.said('refresh');
    assert.equal(refresh.token, 't2');
    world.hear({ type: 'ack', ok: false, id: refresh.id, rejected: [{ code: 'FORBIDDEN', marketId: 1001 }] });
    assert.deepEqual(world.of('rejected'), [{ marketId: 1001, code: 'FORBIDDEN' }]);
    await healthy(550_000);
    assert.equal(world.said('refresh').length, 2);
});

test('rejected markets are told once, and the others go on', async () => {
    const world = new World();
    world.client.subscribe([1001, 1002, 1003]);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    const rejected = [{ code: 'FORBIDDEN', marketId: 1002 }, { code: 'LIMIT_EXCEEDED', marketId: 1003 }];
    world.hear({ type: 'ack', ok: false, id: world.said('subscribe')[0].id, rejected, positions: { 1001: { epoch: 7, seq: 1 } } });
    world.hear(snapshot(1001, 1, {}));
    world.hear(update(1001, 2));
    assert.equal(world.seq(), 2);
    assert.deepEqual(world.of('rejected'), rejected);
    // A place that becomes free is asked for.
    world.client.unsubscribe(1001);
    await world.pass(0);
    world.hear({ type: 'ack', ok: true, id: world.said('unsubscribe')[0].id, unsubscribed: [1001] });
    await world.pass(0);
    const again = world.said('subscribe')[1];
    assert.deepEqual(again.markets, ['1003']);
    world.hear({ type: 'ack', ok: false, id: again.id, rejected: [rejected[1]] });
    assert.deepEqual(world.of('rejected'), rejected);
});

test('a reset snapshot may go back and to another epoch, any other may not', async () => {
    const world = await live({ 1001: 5 });
    world.hear(snapshot(1001, 9, {}, { epoch: 6 }));
    assert.equal(world.seq(), 5);
    world.hear(snapshot(1001, 2, { total: { over: '1.90' } }, { epoch: 8, reset: true }));
    const { epoch, seq, lines } = world.client.market(1001);
    assert.deepEqual({ epoch, seq, lines }, { epoch: 8, seq: 2, lines: { total: { over: '1.90' } } });
    assert.equal(world.of('change').at(-1).reset, true);
    world.hear(update(1001, 3));
    assert.equal(world.seq(), 3);
    world.hear(snapshot(1001, 1, {}, { epoch: 8, reset: true }));
    assert.equal(world.seq(), 1);
});

test('the answer to a former request says nothing about the one that followed', async () => {
    const world = await live();
    for (const step of ['subscribe', 'unsubscribe', 'subscribe']) {
        world.client[step](1002);
        await world.pass(0);
    }
    const [, former] = world.said('subscribe');
    world.hear({ type: 'ack', ok: true, id: former.id, positions: { 1002: { epoch: 0, seq: 0 } } });
    assert.equal(world.client.market(1002), undefined);
    world.ackSubscribe({ 1002: 3 });
    assert.equal(world.seq(1002), 3);
});

test('a resume that does not recover waits for its snapshot', async () => {
    const world = await live({ 1001: 5 });
    world.close(1006);
    await world.resumed(false, 8);
    world.hear(update(1001, 6));
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [5, false]);
    world.hear(snapshot(1001, 3, {}, { epoch: 8, reset: true }));
    world.hear(update(1001, 4));
    assert.deepEqual([world.seq(), world.client.market(1001).epoch], [4, 8]);
});

test('a conflated snapshot replaces, and what follows goes on from it', async () => {
    const world = await live();
    world.hear(snapshot(1001, 400, { total: { over: '1.90' } }, { conflated: true }));
    world.hear(update(1001, 401));
    assert.equal(world.seq(), 401);
    assert.equal(world.of('change').at(-2).conflated, true);
    assert.equal(world.requests.length, 0);
});

test('stale prices are not fresh until the gateway says so, or another connection is open', async () => {
    const world = await live();
    world.hear({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    assert.deepEqual([world.client.stale, world.client.market(1001).fresh], [{ reason: 'BACKBONE_UNREACHABLE', since: 5 }, false]);
    world.hear({ type: 'status', stale: false });
    assert.deepEqual([world.client.stale, world.client.market(1001).fresh], [null, true]);
    world.hear({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    world.close(1006);
    await world.resumed();
    assert.equal(world.client.stale, null);
});

test('it is told when a market becomes fresh, and when it no longer is', async () => {
    const world = await live();
    const told = () => world.of('fresh').map(({ marketId, fresh }) => [marketId, fresh]);
    assert.deepEqual(told(), [[1001, true]]);
    world.hear(update(1001, 3));
    world.requests[0].answer({ epoch: 7, complete: true, updates: [update(1001, 2)] });
    await world.settle();
    world.hear({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    world.hear({ type: 'status', stale: false });
    world.close(1006);
    await world.resumed();
    assert.deepEqual(told().slice(1).map(([, fresh]) => fresh), [false, true, false, true, false, true]);
});

test('the heartbeat is answered', async () => {
    const world = await live();
    world.hear({ type: 'ping', ts: 5 });
    assert.deepEqual(world.said('pong'), [{ type: 'pong' }]);
});

test('a silent socket is probed, then given up', async () => {
    const world = await live();
    await world.pass(30_000);
    assert.equal(world.said('ping').length, 2);
    assert.equal(world.client.state, 'open');
    await world.pass(15_000);
    assert.equal(world.sockets[0].closed, 1000);
    assert.ok(world.sockets.length > 1 || world.client.state === 'waiting');
});

test('an app that was frozen and thawed asks its socket before it doubts it', async () => {
    const world = await live();
    for (let n = 0; n < 5; n += 1) {
        world.freeze(600_000);
        const pings = world.said('ping').length;
        await world.pass(9000);
        assert.equal(world.said('ping').length, pings + 1);
        world.hear({ type: 'pong', ts: world.said('ping').at(-1).ts });
    }
    for (let n = 0; n < 5; n += 1) { // never time for an answer
        world.freeze(600_000);
        await world.pass(5000);
    }
    world.hear({ type: 'pong', ts: 0 });
    await world.pass(10_000);
    assert.equal(world.sockets.length, 1);
    assert.equal(world.client.state, 'open');
});

test('what a former socket says is ignored', async () => {
    const world = await live();
    const [former] = world.sockets;
    world.close(1006);
    await world.resumed();
    world.hear(update(1001, 2), former);
    world.close(4403, former);
    former.on.open();
    assert.deepEqual([world.seq(), world.client.state], [1, 'open']);
});

test('a handshake that hangs is given up, but not by a timer that was frozen', async () => {
    const world = new World();
    world.client.start();
    await world.settle();
    world.freeze(100_000);
    await world.pass(0);
    assert.equal(world.client.state, 'connecting');
    await world.pass(15_000);
    assert.equal(world.sockets[0].closed, 1000);
});

test('shown and online connect at once, yet not before the server allows', async () => {
    for (const event of ['shown', 'online']) {
        const world = await live();
        world.close(4429);
        world.on[event]();
        await world.pass(4999);
        assert.equal(world.sockets.length, 1);
        await world.pass(1);
        assert.equal(world.sockets.length, 2);
        world.close(1006);
        world.on[event]();
        await world.settle();
        assert.equal(world.sockets.length, 3);
    }
});

test('an open socket is probed when the app is shown', async () => {
    const world = await live();
    world.on.hidden();
    world.on.shown();
    assert.equal(world.said('ping').length, 2);
    await world.pass(20_000);
    assert.equal(world.sockets[0].closed, 1000);
});

test('a host that pauses opens nothing in the background', async () => {
    const world = await new World({}, { pausesInBackground: true }).live();
    world.on.hidden();
    world.close(1000);
    assert.equal(world.client.state, 'paused');
    await world.pass(600_000);
    assert.deepEqual([world.client.state, world.sockets.length], ['paused', 1]);
    world.on.shown();
    await world.settle();
    assert.equal(world.sockets.length, 2);
    world.close(1006);
    world.on.hidden();
    await world.pass(600_000);
    assert.deepEqual([world.client.state, world.sockets.length], ['paused', 2]);
});

test('states outlive the app, and are resumed', async () => {
    const world = await live({ 1001: 5 });
    world.hear(update(1001, 6));
    world.client.close();
    assert.equal(world.sockets[0].closed, 1000);
    world.client = world.make();
    world.client.subscribe([1001, 1002]);
    world.client.start();
    await world.settle();
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [6, false]);
    assert.equal(world.of('change').at(-1).cause, 'stored');
    world.socket.on.open();
    assert.deepEqual(world.said('resume')[0].offsets, { 1001: { epoch: 7, seq: 6 } });
    assert.deepEqual(world.said('subscribe')[0].markets, ['1002']);
});

test('a stored market may be asked for later, and is forgotten after a day', async () => {
    const world = new World();
    const state = { epoch: 7, seq: 6, lines: { win: { yes: '2.10' } } };
    world.kept.set('kmarket', JSON.stringify({ 1001: { ...state, ts: world.time }, 1002: { ...state, ts: world.time - 86_400_001 } }));
    world.client.start();
    await world.settle();
    world.socket.on.open();
    world.client.subscribe(1001);
    assert.deepEqual([world.of('change')[0].cause, world.seq()], ['stored', 6]);
    await world.pass(0);
    assert.deepEqual(world.said('resume')[0].offsets, { 1001: { epoch: 7, seq: 6 } });
    world.client.close();
    assert.deepEqual(Object.keys(JSON.parse(world.kept.get('kmarket'))), ['1001']);
});

test('a storage that fails, hangs or holds nonsense costs nothing but the past', async () => {
    const bad = [
        { get() { throw new Error('no'); }, set() { throw new Error('no'); } },
        { get: async () => { throw new Error('no'); }, set: async () => { throw new Error('no'); } },
        { get: () => new Promise(() => {}), set: () => new Promise(() => {}) },
        { get: () => '{"1001":{"epoch":"x","seq":-1,"lines":5},"1002":null', set() {} },
        { get: () => '{"1001":{"epoch":"x","seq":-1,"lines":5},"1002":null}', set() {} },
        { get: () => '{"1001":{"epoch":7,"seq":-1,"ts":1,"lines":{}}}', set() {} },
    ];
    for (const storage of bad) {
        const world = new World({ storage });
        world.client.subscribe(1001);
        world.client.start();
        await world.pass(3000);
        world.socket.on.open();
        assert.equal(world.said('subscribe').length, 1);
        world.client.close();
        await world.settle();
    }
});

test('age is measured by the server\'s clock', async () => {
    const world = await live();
    world.time += 100;
    world.hear({ type: 'pong', ts: world.said('ping')[0].ts });
    world.hear({ type: 'ping', ts: world.time + 60_000 - 50 });
    assert.deepEqual(world.client.clock, { offsetMs: 60_000, rttMs: 100 });
    assert.equal(world.client.market(1001).ageMs, 60_099);
});

test('many requests keep the server\'s rate', async () => {
    const world = await live();
    for (let n = 0; n < 100; n += 1) {
        world.client.subscribe(2000 + n);
        await world.pass(20);
    }
    await world.pass(3000);
    assert.ok(world.socket.sent.length <= 15 + 5 * 4 + 2, String(world.socket.sent.length));
    assert.equal(world.said('subscribe').flatMap(({ markets }) => markets).length, 101);
});

test('a request that came too fast is sent again', async () => {
    const world = await live();
    world.client.subscribe(1002);
    await world.pass(0);
    world.hear({ type: 'error', code: 'RATE_LIMITED', message: 'slow down', id: world.said('subscribe')[1].id });
    await world.pass(2000);
    assert.deepEqual(world.said('subscribe')[2].markets, ['1002']);
});

test('every message fits the server\'s limit', async () => {
    const world = new World();
    const ids = Array.from({ length: 450 }, (_, n) => Number.MAX_SAFE_INTEGER - n);
    world.kept.set('kmarket', JSON.stringify(Object.fromEntries(ids.map((id) => [id, { epoch: 4102444800, seq: Number.MAX_SAFE_INTEGER - 1, ts: 1, lines: {} }]))));
    world.client.subscribe(ids);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    assert.equal(world.said('resume').length, 3);
    for (const message of world.socket.sent) assert.ok(JSON.stringify(message).length <= 16_384);
});

test('a listener that throws or rejects breaks nothing', async () => {
    const world = new World();
    world.client.on('change', () => { throw new Error('mine'); });
    world.client.on('change', async () => { throw new Error('mine'); });
    world.client.on('error', async () => { throw new Error('mine'); });
    await world.live();
    world.hear(update(1001, 2));
    await world.settle();
    assert.equal(world.seq(), 2);
    assert.ok(world.of('error').every(({ kind }) => kind === 'listener'));
});

test('what is no message, or not known, is passed over', async () => {
    const world = await live();
    for (const text of ['', '{', 'null', '5', '[]', '{"type":"news"}', '{"type":"odds_update"}', '{"type":"snapshot","marketId":1001,"seq":9,"reset":true}', '{"type":"ack"}', '{"type":"constructor"}']) world.hear(text);
    world.hear(update(1001, 2));
    assert.deepEqual([world.seq(), world.client.state], [2, 'open']);
});

test('what is no market id is refused at once', () => {
    const world = new World();
    for (const id of [0, -1, 1.5, '01', '1e3', '', null, 2 ** 53]) assert.throws(() => world.client.subscribe(id), TypeError);
});

test('leaving and coming back in one breath gives the market anew', async () => {
    const world = await live();
    world.client.unsubscribe(1001);
    world.client.subscribe(1001);
    await world.pass(0);
    assert.equal(world.said('unsubscribe').length, 0);
    world.hear(update(1001, 2)); // of the former subscription
    assert.equal(world.client.market(1001), undefined);
    assert.equal(world.requests.length, 0);
    world.ackSubscribe({ 1001: 2 });
    world.hear(update(1001, 3));
    assert.equal(world.seq(), 3);
});
