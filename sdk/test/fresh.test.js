// Whether `fresh` and `ageMs` tell the truth: after a freeze, on a slow connection, and when the device's clock is set.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World, snapshot, update, wait } from './world.js';

const HOUR = 3_600_000;
const fresh = (world, id = 1001) => world.client.market(id).fresh;
const age = (world) => world.client.market(1001).ageMs;
const late = (world, seq, ms, more = {}) => world.receive({ ...update(1001, seq), ts: world.time - ms, ...more });

/** Returns a world whose market 1001 is live and whose server's clock is known. */
async function live(host) {
    const world = await new World({}, host).live();
    world.pong();
    world.ping();
    return world;
}

/** Kinds of hosts. `World.sleep` stops the monotonic clock, `World.freeze` does not: platforms differ. */
const HOSTS = ['no monotonic clock', 'a monotonic clock'];
async function liveOn(name) {
    let world;
    world = await live(name === HOSTS[1] ? { monotonic: () => (world ? world.steady() : 0) } : {});
    return world;
}

for (const name of HOSTS) test(`after a freeze nothing is fresh until the probe is answered (${name})`, async () => {
    for (const stop of ['freeze', 'sleep']) {
        const world = await liveOn(name);
        const [first] = world.sent('ping');
        world[stop](660_000);
        assert.equal(fresh(world), false, 'before any timer or message');
        world.receive(update(1001, 2)); // it waited in a buffer
        assert.deepEqual([world.seq(), world.of('change').at(-1).fresh], [2, false]);
        assert.deepEqual(world.of('fresh').at(-1), { marketId: 1001, fresh: false });
        world.receive({ type: 'pong', ts: first.ts }); // so did this
        await world.pass(1000);
        assert.equal(fresh(world), false);
        assert.equal(world.sent('ping').length, 2);
        world.pong();
        assert.deepEqual([fresh(world), world.of('fresh').at(-1).fresh], [true, true]);
        assert.equal(world.sockets.length, 1);
    }
});

test('a short look elsewhere costs no freshness, a lost network does until the probe is answered', async () => {
    const world = await live();
    world.on.hidden();
    world.on.shown();
    assert.equal(fresh(world), true);
    world.on.offline();
    assert.equal(fresh(world), false);
    await world.pass(3000);
    world.on.online();
    assert.equal(fresh(world), false);
    world.pong();
    assert.equal(fresh(world), true);
});

test('a price that came too late is not fresh, the next one in time is', async () => {
    const world = await live();
    late(world, 2, 4900);
    assert.equal(fresh(world), true);
    late(world, 3, 5100);
    assert.deepEqual([fresh(world), age(world)], [false, 5100]);
    assert.equal(world.of('fresh').at(-1).fresh, false);
    late(world, 4, 100);
    assert.deepEqual([fresh(world), world.of('fresh').at(-1).fresh], [true, true]);
    late(world, 9, 60_000, { from: 4 });
    assert.equal(fresh(world), false);
    world.receive({ ...snapshot(1001, 12, {}, { conflated: true }), ts: world.time });
    assert.equal(fresh(world), true);
    world.receive({ ...snapshot(1001, 13, {}, { conflated: true }), ts: world.time - 6000 });
    assert.equal(fresh(world), false);
});

test('on a connection that falls behind, prices are not fresh as long as they come late', async () => {
    const world = await live();
    // The queue grows by a quarter of the time, and pongs wait in it as well.
    for (let past = 0, seq = 2; past < 240_000; past += 1000, seq += 1) {
        await world.pass(1000);
        const behind = past / 4;
        if (past % 15_000 === 0) world.ping(behind);
        const pings = world.sent('ping').filter(({ ts }) => ts <= world.time - behind);
        world.receive({ type: 'pong', ts: pings.at(-1).ts });
        late(world, seq, behind);
        if (behind > 6000) assert.equal(fresh(world), false, `${behind} ms behind`);
        if (behind < 4000) assert.equal(fresh(world), true, `${behind} ms behind`);
        assert.ok(Math.abs(age(world) - behind) < 1000, `${age(world)} for ${behind}`);
    }
    assert.equal(world.sockets.length, 1);
});

test('nothing is fresh while a ping is unanswered for more than 5 s', async () => {
    const world = await live();
    await world.healthy(25_000);
    await world.pass(5000); // the client asks
    const ping = world.sent('ping').at(-1);
    await world.pass(4000);
    assert.equal(fresh(world), true);
    await world.pass(2000);
    late(world, 2, 0);
    assert.equal(fresh(world), false);
    assert.equal(world.of('change').at(-1).fresh, false);
    world.receive({ type: 'pong', ts: ping.ts });
    assert.equal(fresh(world), true);
});

test('a first ping that comes late does not make late prices look young', async () => {
    const world = await new World().live();
    world.pong();
    late(world, 2, 100);
    await world.pass(10_000);
    late(world, 3, 7000);
    assert.equal(fresh(world), false);
    await world.pass(15_000); // pings have no answer
    world.ping(20_000);
    late(world, 4, 20_000);
    assert.equal(fresh(world), false);
    assert.ok(age(world) >= 19_800, String(age(world)));
});

test('a late price without a newer one is fresh again when the connection is quick', async () => {
    const world = await live();
    late(world, 2, 30_000);
    for (let past = 0; past < 15_000 && !fresh(world); past += 1000) {
        await world.pass(1000);
        world.pong();
        if (past < 4000) assert.equal(fresh(world), false);
    }
    assert.equal(fresh(world), true);
    // Pongs that take too long prove nothing.
    late(world, 3, 30_000);
    for (let past = 0; past < 60_000; past += 15_000) {
        await world.pass(15_000);
        world.receive({ type: 'pong', ts: world.sent('ping').at(-3).ts });
        assert.equal(fresh(world), false);
    }
});

test('the price of a quiet market stays fresh, however old', async () => {
    const world = await live();
    await world.healthy(600_000);
    assert.equal(fresh(world), true);
    assert.ok(Math.abs(age(world) - 600_000) < 10, String(age(world)));
});

test('a pace allows for as much more age', async () => {
    const world = await live();
    world.client.subscribe(1001, { conflateMs: 10_000 });
    await world.pass(0);
    world.receive({ type: 'ack', ok: true, id: world.sent('pace')[0].id, conflateMs: 10_000 });
    late(world, 9, 14_000, { from: 1 });
    assert.equal(fresh(world), true);
    late(world, 19, 16_000, { from: 9 });
    assert.equal(fresh(world), false);
});

test('while a resume replays old prices they are not fresh, and the last one is', async () => {
    const world = await live();
    world.close(1006);
    await world.pass(60_000);
    world.socket.on.open();
    world.receive({ type: 'ack', ok: true, id: world.sent('resume')[0].id, positions: { 1001: { epoch: 7, seq: 3, recovered: true } } });
    assert.equal(fresh(world), false);
    late(world, 2, 50_000);
    assert.equal(fresh(world), false);
    late(world, 3, 40_000);
    assert.equal(fresh(world), true);
});

test('until the first ping, updates tell the server\'s clock', async () => {
    const world = new World();
    world.shift = HOUR; // the device is ahead
    world.client = world.make();
    await world.live();
    late(world, 2, 50);
    assert.deepEqual([fresh(world), age(world)], [true, 0]);
    await world.pass(3000);
    late(world, 3, 8000);
    assert.deepEqual([fresh(world), age(world)], [false, 7949]);
    assert.equal(world.client.clock.offsetMs, null);
    world.ping();
    assert.equal(world.client.clock.offsetMs, -HOUR);
});

for (const name of HOSTS) for (const by of [HOUR, -HOUR]) test(`a jump of the device's clock by ${by / HOUR} h is over with the next ping (${name})`, async () => {
    const world = await liveOn(name);
    late(world, 2, 100);
    await world.healthy(20_000);
    world.shift = by;
    await world.pass(5000); // a tick
    world.pong();
    await world.pass(1000);
    late(world, 3, 100);
    assert.equal(fresh(world), true, 'no price is called old because of a doubtful clock');
    world.ping();
    assert.equal(age(world), 100);
    assert.deepEqual([world.client.clock.offsetMs, fresh(world)], [-by, true]);
    late(world, 4, 6000);
    assert.deepEqual([fresh(world), age(world)], [false, 6000]);
    await world.healthy(60_000);
    assert.deepEqual([world.sockets.length, world.client.state], [1, 'open']);
});

test('with a monotonic clock a jump back changes nothing', async () => {
    const world = await liveOn(HOSTS[1]);
    late(world, 2, 100);
    world.shift = -HOUR;
    assert.deepEqual([age(world), fresh(world), world.client.clock.offsetMs], [100, true, HOUR]);
    await world.pass(5000);
    assert.deepEqual([age(world), world.sent('ping').length], [5100, 1]);
});

for (const by of [HOUR, -HOUR]) test(`a jump by ${by / HOUR} h during the wait for a retry does not prolong it`, async () => {
    const world = await live();
    world.close(4429);
    const ms = wait(world);
    world.shift = by;
    await world.pass(ms);
    assert.equal(world.sockets.length, 2);
});
