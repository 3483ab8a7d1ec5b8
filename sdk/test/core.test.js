import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World, snapshot, update, wait } from './world.js';

/** Returns a random number generator (mulberry32) that gives the same numbers for the same seed. */
function seeded(seed) {
    let state = seed;
    return () => {
        state = (state + 0x6d2b79f5) | 0;
        let mixed = Math.imul(state ^ (state >>> 15), state | 1);
        mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
        return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
}

const live = (positions, epoch) => new World().live(positions, epoch);

test('an update replaces whole lines, and null removes one', async () => {
    const world = await live();
    world.receive(update(1001, 2, { total: { over: 1 }, win: { no: '3.00' } }));
    assert.deepEqual(world.client.market(1001).lines, { total: { over: '1' }, win: { no: '3.00' } });
    world.receive(update(1001, 3, { win: null }));
    assert.deepEqual(world.client.market(1001).lines, { total: { over: '1' } });
    assert.deepEqual(world.of('change').at(-1).changed, ['win']);
});

test('a price keeps its digits', async () => {
    const world = await live();
    world.receive('{"type":"odds_update","marketId":1001,"seq":2,"ts":5,"payload":{"win":{"yes":2.10,"note":"a \\" 1.0","on":true,"limit":-1.50e3}}}');
    assert.deepEqual(world.client.market(1001).lines.win, { yes: '2.10', note: 'a " 1.0', on: true, limit: '-1.50e3' });
});

test('a line may be named like a member of every object', async () => {
    const world = await live();
    world.receive('{"type":"odds_update","marketId":1001,"seq":2,"ts":5,"payload":{"__proto__":{"yes":2.10}}}');
    assert.deepEqual(Object.keys(world.client.market(1001).lines), ['win', '__proto__']);
    assert.equal({}.yes, undefined);
});

test('a subscribe and a resume ask for folds and patches', async () => {
    const world = await live();
    assert.deepEqual(world.sent('subscribe').map(({ id, ...message }) => message), [{ type: 'subscribe', markets: ['1001'], snapshot: true, fold: true, patch: true }]);
    world.close(1006);
    await world.resumed();
    const [{ fold, patch }] = world.sent('resume');
    assert.deepEqual({ fold, patch }, { fold: true, patch: true });
});

test('a change says why its update is a fold', async () => {
    const world = await live({ 1001: 5 });
    world.receive({ ...update(1001, 9), from: 5 });
    world.receive(update(1001, 10));
    world.close(1006);
    await world.pass(wait(world));
    world.socket.on.open();
    world.receive({ type: 'ack', ok: true, id: world.sent('resume')[0].id, positions: { 1001: { epoch: 7, seq: 500, recovered: true } } });
    world.receive({ ...update(1001, 501), from: 10 });
    world.receive({ ...update(1001, 504), from: 501 });
    assert.deepEqual(world.of('change').map(({ seq, cause, fold }) => [seq, cause, fold]), [
        [5, 'snapshot', null], [9, 'update', 'slow'], [10, 'update', null], [501, 'update', 'resumed'], [504, 'update', 'slow'],
    ]);
});

/** The members of a message beyond its type and id. */
const plain = (messages) => messages.map(({ type, id, ...members }) => members);
const ackPace = (world, more = {}) => world.receive({ type: 'ack', ok: true, id: world.sent('pace').at(-1).id, ...more });

test('a hidden app asks for a message per second, a shown one for all updates, and the ack says what holds', async () => {
    const world = await live({ 1001: 1, 1002: 1 });
    world.on.hidden();
    assert.deepEqual(plain(world.sent('pace')), [{ conflateMs: 1000 }]);
    assert.equal(world.client.market(1001).conflateMs, 0);
    ackPace(world, { conflateMs: 2000 });
    assert.deepEqual([1001, 1002].map((id) => world.client.market(id).conflateMs), [2000, 2000]);
    world.receive({ ...update(1001, 9), from: 1 });
    world.on.shown();
    assert.deepEqual(plain(world.sent('pace')).at(-1), { conflateMs: 0 });
    ackPace(world);
    assert.equal(world.client.market(1001).conflateMs, 0);
    world.receive({ ...update(1001, 12), from: 9 }); // what the slower pace held back
    world.receive({ ...update(1001, 14), from: 12 });
    assert.deepEqual(world.of('change').map(({ fold }) => fold), [null, null, 'paced', 'paced', 'slow']);
    world.on.shown();
    assert.equal(world.sent('pace').length, 2);
});

test('a market may have a pace of its own, shown and hidden', async () => {
    const world = new World();
    world.client.subscribe(1001);
    world.client.subscribe([1002, 1003], { conflateMs: 500, hiddenConflateMs: 3000 });
    world.client.subscribe(1004, { conflateMs: 2000, hiddenConflateMs: 0 });
    world.client.subscribe(1005, { conflateMs: 2000, fold: false, patch: false });
    world.client.start();
    await world.settle();
    world.socket.on.open();
    const both = { snapshot: true, fold: true, patch: true };
    assert.deepEqual(plain(world.sent('subscribe')), [
        { markets: ['1001'], ...both },
        { markets: ['1002', '1003'], ...both, conflateMs: 500 },
        { markets: ['1004'], ...both, conflateMs: 2000 },
        { markets: ['1005'], snapshot: true },
    ]);
    world.on.hidden();
    assert.deepEqual(plain(world.sent('pace')), [{ conflateMs: 1000, markets: ['1001'] }, { conflateMs: 3000, markets: ['1002', '1003'] }]);
    world.client.subscribe(1001, { conflateMs: 4000 });
    await world.pass(0);
    assert.deepEqual(plain(world.sent('pace')).at(-1), { conflateMs: 4000, markets: ['1001'] });
    assert.equal(world.sent('subscribe').length, 4);
});

test('a client that connects while hidden asks for the slower pace at once', async () => {
    const world = await live();
    world.on.hidden();
    world.close(1006);
    await world.pass(wait(world));
    world.socket.on.open();
    assert.equal(world.sent('resume')[0].conflateMs, 1000);
    const [{ id }] = world.sent('resume');
    world.receive({ type: 'ack', ok: true, id, positions: { 1001: { epoch: 7, seq: 1, recovered: true } }, conflateMs: 1000 });
    assert.deepEqual([world.client.market(1001).conflateMs, world.sent('pace').length], [1000, 0]);
    world.on.shown();
    assert.deepEqual(plain(world.sent('pace')), [{ conflateMs: 0 }]);
});

test('a gateway that does not know pace is not asked again on its connection', async () => {
    const world = await live();
    world.on.hidden();
    world.receive({ type: 'error', code: 'BAD_MESSAGE', message: 'type: unknown', id: world.sent('pace')[0].id });
    world.on.shown();
    world.on.hidden();
    await world.pass(1000);
    assert.deepEqual([world.sent('pace').length, world.of('error').length, world.client.market(1001).conflateMs], [1, 0, 0]);
});

test('a pace that the server refused because it came too fast is asked for again', async () => {
    const world = await live();
    world.on.hidden();
    world.receive({ type: 'error', code: 'RATE_LIMITED', message: 'slow down', id: world.sent('pace')[0].id });
    await world.pass(2000);
    assert.deepEqual(plain(world.sent('pace')), [{ conflateMs: 1000 }, { conflateMs: 1000 }]);
});

test('subscribe throws for a pace that no gateway accepts', () => {
    const world = new World();
    for (const ms of [-1, 60_001, 1.5, '5', NaN]) assert.throws(() => world.client.subscribe(1001, { conflateMs: ms }), TypeError);
    assert.equal(world.client.market(1001), undefined);
});

test('a patch leaves the other selections, and the lines that were shown before, as they were', async () => {
    const world = await live();
    const before = world.client.market(1001).lines;
    world.receive('{"type":"odds_update","marketId":1001,"seq":2,"ts":5,"patch":{"win":{"no":2.10}},"payload":{"total":{"over":1.90}}}');
    assert.deepEqual(world.client.market(1001).lines, { win: { yes: '1.50', no: '2.10' }, total: { over: '1.90' } });
    assert.deepEqual(before, { win: { yes: '1.50' } });
    assert.deepEqual(world.of('change').at(-1).changed.sort(), ['total', 'win']);
});

test('a malformed fold or patch changes nothing and is reported', async () => {
    const world = await live({ 1001: 5 });
    for (const bad of [{ from: 6 }, { from: 'x' }, { from: null, payload: 5 }, { payload: undefined, patch: 5 }, { payload: undefined, patch: { win: null } }, { payload: [] }]) {
        world.receive({ ...update(1001, 6), ...bad });
    }
    assert.deepEqual([world.seq(), world.of('error').length, world.requests.length], [5, 6, 0]);
});

test('updates and snapshots that are known already are ignored', async () => {
    const world = await live({ 1001: 5 });
    const changes = world.of('change').length;
    world.receive(update(1001, 5));
    world.receive(update(1001, 4));
    world.receive(snapshot(1001, 4, {}));
    assert.equal(world.of('change').length, changes);
    assert.deepEqual([world.seq(), world.requests.length], [5, 0]);
});

test('a market without updates begins at seq 0, and the first update makes the client ask for its epoch', async () => {
    const world = new World();
    world.client.subscribe(1001);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    world.receive({ type: 'ack', ok: true, id: world.sent('subscribe')[0].id, positions: { 1001: { epoch: 0, seq: 0 } } });
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [0, true]);
    world.receive(update(1001, 1));
    await world.pass(0);
    const asked = world.sent('subscribe')[1];
    assert.equal(asked.snapshot, undefined);
    world.receive({ type: 'ack', ok: true, id: asked.id, positions: { 1001: { epoch: 9, seq: 1 } } });
    assert.deepEqual([world.seq(), world.client.market(1001).epoch], [1, 9]);
});

test('a gap is filled with updates over HTTP, and every update is applied in order', async () => {
    const world = await live();
    world.receive(update(1001, 4));
    world.receive(update(1001, 5));
    assert.equal(world.seq(), 1);
    assert.equal(world.client.market(1001).fresh, false);
    const [request] = world.requests;
    assert.equal(request.url.pathname + request.url.search, '/api/markets/1001/odds/updates?since_seq=1&limit=2');
    request.respond({ epoch: 7, complete: true, updates: [update(1001, 2), update(1001, 3)] });
    await world.settle();
    assert.deepEqual(world.of('change').map(({ seq }) => seq), [1, 2, 3, 4, 5]);
    assert.equal(world.client.market(1001).fresh, true);
});

test('a gap that is wide, no longer kept or of another epoch is filled with a snapshot', async () => {
    for (const [seq, page] of [[900, null], [4, { epoch: 7, complete: false, updates: [] }], [4, { epoch: 8, complete: true, updates: [update(1001, 2)] }]]) {
        const world = await live();
        world.receive(update(1001, seq));
        if (page) {
            world.requests[0].respond(page);
            await world.settle();
        }
        assert.equal(world.requests.at(-1).url.pathname, '/api/markets/1001/odds/snapshot');
        world.requests.at(-1).respond({ epoch: page ? page.epoch : 7, seq: seq + 1, ts: 1, payload: { win: { yes: '9' } } });
        await world.settle();
        assert.equal(world.seq(), seq + 1);
    }
});

test('a gap that HTTP cannot fill is resumed over the socket', async () => {
    const nothing = { epoch: 7, complete: true, updates: [] };
    for (const response of [[{}, 503], [nothing], [{ ...nothing, updates: [update(1001, 2)], stale: true }]]) {
        const world = await live();
        world.receive(update(1001, 4));
        for (const tries of [1, 2, 3]) {
            assert.equal(world.requests.length, tries);
            world.requests.at(-1).respond(...response);
            await world.pass(5000);
        }
        assert.equal(world.requests.length, 3);
        assert.deepEqual(world.sent('resume')[0].offsets, { 1001: { epoch: 7, seq: 1, ts: 1_000_000_000_001 } });
    }
});

test('a gap is abandoned after a close, an unsubscribe or a snapshot', async () => {
    for (const end of [
        (world) => world.close(1006),
        (world) => world.client.unsubscribe(1001),
        (world) => world.receive(snapshot(1001, 9, {})),
    ]) {
        const world = await live();
        world.receive(update(1001, 4));
        end(world);
        const changes = world.of('change').length;
        world.requests[0].respond({ epoch: 7, complete: true, updates: [update(1001, 2)] });
        await world.settle();
        assert.equal(world.of('change').length, changes);
    }
});

test('after a close without bye one message resumes all markets', async () => {
    for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4401, 4408, 4409, 4429, 4999]) {
        const world = await live({ 1001: 5, 1002: 8 });
        world.close(code);
        assert.equal(world.client.state, 'waiting', code);
        assert.equal(world.client.market(1001).fresh, false);
        await world.resumed();
        assert.deepEqual(world.sent('resume').map(({ offsets }) => offsets), [{ 1001: { epoch: 7, seq: 5, ts: 1_000_000_000_005 }, 1002: { epoch: 7, seq: 8, ts: 1_000_000_000_008 } }]);
        assert.equal(world.sent('subscribe').length, 0);
        world.receive(update(1001, 6));
        assert.equal(world.seq(), 6);
    }
});

test('an offset has the ts of its update, unless the ts is unknown', async () => {
    const world = await live({ 1001: 5, 1002: 0 });
    const offsets = async () => {
        world.close(1006);
        await world.pass(wait(world));
        world.socket.on.open();
        return world.sent('resume')[0].offsets;
    };
    world.receive(update(1001, 6));
    assert.deepEqual(await offsets(), { 1001: { epoch: 7, seq: 6, ts: 1_000_000_000_006 }, 1002: { epoch: 7, seq: 0 } });
    const { id } = world.sent('resume')[0];
    world.receive({ type: 'ack', ok: true, id, positions: { 1001: { epoch: 7, seq: 9, ts: 1_000_000_000_009, recovered: true } } });
    assert.equal((await offsets())[1001].ts, 1_000_000_000_006);
});

test('a close code for a bug or a ban stops the client until start is called', async () => {
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

test('a bye overrides the close code', async () => {
    const stopped = await live();
    stopped.receive({ type: 'bye', code: 4403, reason: 'NOT_ALLOWED', reconnect: false, afterMs: 0 });
    stopped.close(1006);
    assert.equal(stopped.client.state, 'stopped');
    const again = await live();
    again.receive({ type: 'bye', code: 1012, reason: 'DRAINING', reconnect: true, afterMs: 1840 });
    again.close(1002);
    assert.equal(wait(again), 1840 + 250);
    assert.deepEqual([again.of('state').at(-1).code, again.of('state').at(-1).reason], [1012, 'DRAINING']);
    for (const [code, reconnect, state] of [[1012, false, 'stopped'], [4403, true, 'waiting']]) {
        const world = await live();
        world.receive({ type: 'bye', code, reason: '', reconnect, afterMs: 0 });
        world.close(1006);
        assert.equal(world.client.state, state);
    }
});

test('the client closes the socket if no close follows a bye', async () => {
    const world = await live();
    world.receive({ type: 'bye', code: 1012, reason: 'DRAINING', reconnect: true, afterMs: 0 });
    await world.pass(5000);
    assert.equal(world.client.state, 'waiting');
    assert.equal(world.sockets[0].closed, 1000);
});

test('after 4429 the client waits at least 5 s, after 1013 at least 1 s', async () => {
    for (const [code, least] of [[4429, 5000], [1013, 1000]]) {
        const world = await live();
        world.close(code);
        assert.equal(wait(world), least + 250);
    }
});

test('the backoff doubles with full jitter up to 30 s, and a connection of 10 s resets it', async () => {
    const world = await live();
    const waits = [];
    world.close(1006);
    for (let n = 0; n < 8; n += 1) {
        waits.push(wait(world));
        await world.pass(waits[n]);
        world.close(1006);
    }
    assert.deepEqual(waits.map(Math.round), [667, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
    await world.resumed();
    world.close(1006);
    assert.equal(wait(world), 15_000);
    await world.resumed();
    await world.pass(10_000);
    world.close(1006);
    assert.equal(Math.round(wait(world)), 667);
});

test('the first retries after a cut spread over 3 s, and half of them come within a second', async () => {
    const random = seeded(15);
    const waits = [];
    for (let n = 0; n < 500; n += 1) {
        const world = await new World({}, { random }).live();
        world.close(1006);
        waits.push(wait(world));
    }
    waits.sort((a, b) => a - b);
    assert.ok(waits[250] < 900, `median ${waits[250]}`);
    assert.ok(waits[499] > 2900 && waits[499] <= 3000, `last ${waits[499]}`);
    const perTenth = Array.from({ length: 30 }, (_, n) => waits.filter((ms) => Math.floor(ms / 100) === n).length);
    assert.ok(Math.max(...perTenth) <= 60, `in 100 ms: ${perTenth}`);
});

test('a retry after the client\'s own decision, or after a bye, is not spread', async () => {
    const bye = await live();
    bye.receive({ type: 'bye', code: 1012, reason: 'DRAINING', reconnect: true, afterMs: 0 });
    bye.close(1012);
    assert.equal(wait(bye), 250);
    const silent = await live();
    await silent.pass(45_000);
    assert.equal(silent.of('state').find(({ reason }) => reason === 'SILENT').retryInMs, 250);
    const unreachable = new World();
    unreachable.client.start();
    await unreachable.settle();
    unreachable.close(1006);
    assert.equal(wait(unreachable), 250);
});

test('after 4401 the client asks for a new token, after another close it uses the old one', async () => {
    const world = await live();
    world.close(1006);
    await world.resumed();
    assert.equal(world.tokens, 1);
    world.close(4401);
    await world.pass(1000);
    assert.equal(world.tokens, 2);
    assert.match(world.socket.url, /token=token-2$/);
});

test('a token provider that fails, hangs or returns no token is asked again', async () => {
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
            world.receive({ type: 'ping', ts: world.time });
            await world.pass(15_000);
        }
    };
    await healthy(525_000);
    assert.equal(world.sent('refresh').length, 0);
    await healthy(20_000);
    const [refresh] = world.sent('refresh');
    assert.equal(refresh.token, 't2');
    world.receive({ type: 'ack', ok: false, id: refresh.id, rejected: [{ code: 'FORBIDDEN', marketId: 1001 }] });
    assert.deepEqual(world.of('rejected'), [{ marketId: 1001, code: 'FORBIDDEN' }]);
    await healthy(550_000);
    assert.equal(world.sent('refresh').length, 2);
});

test('a rejection is reported once, and the other markets are delivered', async () => {
    const world = new World();
    world.client.subscribe([1001, 1002, 1003]);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    const rejected = [{ code: 'FORBIDDEN', marketId: 1002 }, { code: 'LIMIT_EXCEEDED', marketId: 1003 }];
    world.receive({ type: 'ack', ok: false, id: world.sent('subscribe')[0].id, rejected, positions: { 1001: { epoch: 7, seq: 1 } } });
    world.receive(snapshot(1001, 1, {}));
    world.receive(update(1001, 2));
    assert.equal(world.seq(), 2);
    assert.deepEqual(world.of('rejected'), rejected);
    // An unsubscribe makes room, so the market beyond the limit is asked for again.
    world.client.unsubscribe(1001);
    await world.pass(0);
    world.receive({ type: 'ack', ok: true, id: world.sent('unsubscribe')[0].id, unsubscribed: [1001] });
    await world.pass(0);
    const again = world.sent('subscribe')[1];
    assert.deepEqual(again.markets, ['1003']);
    world.receive({ type: 'ack', ok: false, id: again.id, rejected: [rejected[1]] });
    assert.deepEqual(world.of('rejected'), rejected);
});

test('only a reset snapshot may go back to an earlier seq or epoch', async () => {
    const world = await live({ 1001: 5 });
    world.receive(snapshot(1001, 9, {}, { epoch: 6 }));
    assert.equal(world.seq(), 5);
    world.receive(snapshot(1001, 2, { total: { over: '1.90' } }, { epoch: 8, reset: true }));
    const { epoch, seq, lines } = world.client.market(1001);
    assert.deepEqual({ epoch, seq, lines }, { epoch: 8, seq: 2, lines: { total: { over: '1.90' } } });
    assert.equal(world.of('change').at(-1).reset, true);
    world.receive(update(1001, 3));
    assert.equal(world.seq(), 3);
    world.receive(snapshot(1001, 1, {}, { epoch: 8, reset: true }));
    assert.equal(world.seq(), 1);
});

test('the ack of an earlier request does not count for a later one', async () => {
    const world = await live();
    for (const step of ['subscribe', 'unsubscribe', 'subscribe']) {
        world.client[step](1002);
        await world.pass(0);
    }
    const [, earlier] = world.sent('subscribe');
    world.receive({ type: 'ack', ok: true, id: earlier.id, positions: { 1002: { epoch: 0, seq: 0 } } });
    assert.equal(world.client.market(1002), undefined);
    world.ackSubscribe({ 1002: 3 });
    assert.equal(world.seq(1002), 3);
});

test('after a resume that did not recover, no update is applied before the snapshot', async () => {
    const world = await live({ 1001: 5 });
    world.close(1006);
    await world.resumed(false, 8);
    world.receive(update(1001, 6));
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [5, false]);
    world.receive(snapshot(1001, 3, {}, { epoch: 8, reset: true }));
    world.receive(update(1001, 4));
    assert.deepEqual([world.seq(), world.client.market(1001).epoch], [4, 8]);
});

test('a conflated snapshot replaces the state, and the next update continues from it', async () => {
    const world = await live();
    world.receive(snapshot(1001, 400, { total: { over: '1.90' } }, { conflated: true }));
    world.receive(update(1001, 401));
    assert.equal(world.seq(), 401);
    assert.equal(world.of('change').at(-2).conflated, true);
    assert.equal(world.requests.length, 0);
});

test('stale prices become fresh when the gateway says so or another connection opens', async () => {
    const world = await live();
    world.receive({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    assert.deepEqual([world.client.stale, world.client.market(1001).fresh], [{ reason: 'BACKBONE_UNREACHABLE', since: 5 }, false]);
    world.receive({ type: 'status', stale: false });
    assert.deepEqual([world.client.stale, world.client.market(1001).fresh], [null, true]);
    world.receive({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    world.close(1006);
    await world.resumed();
    assert.equal(world.client.stale, null);
});

test('a fresh event reports when a market becomes fresh and when it no longer is', async () => {
    const world = await live();
    const reported = () => world.of('fresh').map(({ marketId, fresh }) => [marketId, fresh]);
    assert.deepEqual(reported(), [[1001, true]]);
    world.receive(update(1001, 3));
    world.requests[0].respond({ epoch: 7, complete: true, updates: [update(1001, 2)] });
    await world.settle();
    world.receive({ type: 'status', stale: true, reason: 'BACKBONE_UNREACHABLE', since: 5 });
    world.receive({ type: 'status', stale: false });
    world.close(1006);
    await world.resumed();
    assert.deepEqual(reported().slice(1).map(([, fresh]) => fresh), [false, true, false, true, false, true]);
});

test('a ping is answered with a pong', async () => {
    const world = await live();
    world.receive({ type: 'ping', ts: 5 });
    assert.deepEqual(world.sent('pong'), [{ type: 'pong' }]);
});

test('a silent socket is probed, then closed', async () => {
    const world = await live();
    await world.pass(30_000);
    assert.equal(world.sent('ping').length, 2);
    assert.equal(world.client.state, 'open');
    await world.pass(15_000);
    assert.equal(world.sockets[0].closed, 1000);
    assert.ok(world.sockets.length > 1 || world.client.state === 'waiting');
});

test('after a freeze the socket is probed before it is given up', async () => {
    const world = await live();
    for (let n = 0; n < 5; n += 1) {
        world.freeze(600_000);
        const pings = world.sent('ping').length;
        await world.pass(9000);
        assert.equal(world.sent('ping').length, pings + 1);
        world.receive({ type: 'pong', ts: world.sent('ping').at(-1).ts });
    }
    for (let n = 0; n < 5; n += 1) { // no time for a pong
        world.freeze(600_000);
        await world.pass(5000);
    }
    world.receive({ type: 'pong', ts: 0 });
    await world.pass(10_000);
    assert.equal(world.sockets.length, 1);
    assert.equal(world.client.state, 'open');
});

test('events of an earlier socket are ignored', async () => {
    const world = await live();
    const [earlier] = world.sockets;
    world.close(1006);
    await world.resumed();
    world.receive(update(1001, 2), earlier);
    world.close(4403, earlier);
    earlier.on.open();
    assert.deepEqual([world.seq(), world.client.state], [1, 'open']);
});

test('a handshake that hangs is given up, unless the app was frozen meanwhile', async () => {
    const world = new World();
    world.client.start();
    await world.settle();
    world.freeze(100_000);
    await world.pass(0);
    assert.equal(world.client.state, 'connecting');
    await world.pass(15_000);
    assert.equal(world.sockets[0].closed, 1000);
});

test('shown and online connect at once, but not before the server allows it', async () => {
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
    assert.equal(world.sent('ping').length, 2);
    await world.pass(20_000);
    assert.equal(world.sockets[0].closed, 1000);
});

test('a host that pauses in the background opens no socket there', async () => {
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

test('states are stored, and the next run of the app resumes them', async () => {
    const world = await live({ 1001: 5 });
    world.receive(update(1001, 6));
    world.client.close();
    assert.equal(world.sockets[0].closed, 1000);
    world.client = world.make();
    world.client.subscribe([1001, 1002]);
    world.client.start();
    await world.settle();
    assert.deepEqual([world.seq(), world.client.market(1001).fresh], [6, false]);
    assert.equal(world.of('change').at(-1).cause, 'stored');
    world.socket.on.open();
    assert.deepEqual(world.sent('resume')[0].offsets, { 1001: { epoch: 7, seq: 6, ts: 1_000_000_000_006 } });
    assert.deepEqual(world.sent('subscribe')[0].markets, ['1002']);
});

test('a stored market is restored when it is subscribed, and forgotten after a day', async () => {
    const world = new World();
    const state = { epoch: 7, seq: 6, lines: { win: { yes: '2.10' } } };
    world.kept.set('kmarket', JSON.stringify({ 1001: { ...state, ts: world.time }, 1002: { ...state, ts: world.time - 86_400_001 } }));
    world.client.start();
    await world.settle();
    world.socket.on.open();
    world.client.subscribe(1001);
    assert.deepEqual([world.of('change')[0].cause, world.seq()], ['stored', 6]);
    await world.pass(0);
    assert.deepEqual(world.sent('resume')[0].offsets, { 1001: { epoch: 7, seq: 6, ts: world.time } });
    world.client.close();
    assert.deepEqual(Object.keys(JSON.parse(world.kept.get('kmarket'))), ['1001']);
});

test('a storage that fails, hangs or returns nonsense only costs the stored states', async () => {
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
        assert.equal(world.sent('subscribe').length, 1);
        world.client.close();
        await world.settle();
    }
});

test('the age of an update is measured by the server\'s clock', async () => {
    const world = await live();
    world.time += 100;
    world.receive({ type: 'pong', ts: world.sent('ping')[0].ts });
    world.receive({ type: 'ping', ts: world.time + 60_000 - 50 });
    assert.deepEqual(world.client.clock, { offsetMs: 60_000, rttMs: 100 });
    assert.equal(world.client.market(1001).ageMs, 60_099);
});

test('many requests stay below the server\'s rate limit', async () => {
    const world = await live();
    for (let n = 0; n < 100; n += 1) {
        world.client.subscribe(2000 + n);
        await world.pass(20);
    }
    await world.pass(3000);
    assert.ok(world.socket.sent.length <= 15 + 5 * 4 + 2, String(world.socket.sent.length));
    assert.equal(world.sent('subscribe').flatMap(({ markets }) => markets).length, 101);
});

test('a request refused with RATE_LIMITED is sent again', async () => {
    const world = await live();
    world.client.subscribe(1002);
    await world.pass(0);
    world.receive({ type: 'error', code: 'RATE_LIMITED', message: 'slow down', id: world.sent('subscribe')[1].id });
    await world.pass(2000);
    assert.deepEqual(world.sent('subscribe')[2].markets, ['1002']);
});

test('every message fits into MAX_MESSAGE_BYTES', async () => {
    const world = new World();
    const ids = Array.from({ length: 450 }, (_, n) => Number.MAX_SAFE_INTEGER - n);
    world.kept.set('kmarket', JSON.stringify(Object.fromEntries(ids.map((id) => [id, { epoch: 4102444800, seq: Number.MAX_SAFE_INTEGER - 1, ts: 1_730_908_800_000, lines: {} }]))));
    world.client.subscribe(ids);
    world.client.start();
    await world.settle();
    world.socket.on.open();
    assert.equal(world.sent('resume').length, 3);
    for (const message of world.socket.sent) assert.ok(JSON.stringify(message).length <= 16_384);
});

test('a listener that throws or rejects breaks nothing', async () => {
    const world = new World();
    world.client.on('change', () => { throw new Error('mine'); });
    world.client.on('change', async () => { throw new Error('mine'); });
    world.client.on('error', async () => { throw new Error('mine'); });
    await world.live();
    world.receive(update(1001, 2));
    await world.settle();
    assert.equal(world.seq(), 2);
    assert.ok(world.of('error').every(({ kind }) => kind === 'listener'));
});

test('malformed and unknown messages are ignored', async () => {
    const world = await live();
    for (const text of ['', '{', 'null', '5', '[]', '{"type":"news"}', '{"type":"odds_update"}', '{"type":"snapshot","marketId":1001,"seq":9,"reset":true}', '{"type":"ack"}', '{"type":"constructor"}']) world.receive(text);
    world.receive(update(1001, 2));
    assert.deepEqual([world.seq(), world.client.state], [2, 'open']);
});

test('subscribe throws for anything that is not a market id', () => {
    const world = new World();
    for (const id of [0, -1, 1.5, '01', '1e3', '', null, 2 ** 53]) assert.throws(() => world.client.subscribe(id), TypeError);
});

test('after an unsubscribe and a subscribe in a row the market starts from a snapshot', async () => {
    const world = await live();
    world.client.unsubscribe(1001);
    world.client.subscribe(1001);
    await world.pass(0);
    assert.equal(world.sent('unsubscribe').length, 0);
    world.receive(update(1001, 2)); // of the earlier subscription
    assert.equal(world.client.market(1001), undefined);
    assert.equal(world.requests.length, 0);
    world.ackSubscribe({ 1001: 2 });
    world.receive(update(1001, 3));
    assert.equal(world.seq(), 3);
});
