// A client over a host that the test controls: it moves the clock and plays the gateway. Randomness is always 1/2.

import assert from 'node:assert/strict';
import { Client } from '../src/client.js';

export class World {
    time = 1_000_000_000_000; // the true time, and the server's
    shift = 0; // the device's clock minus the true time
    slept = 0; // how long `monotonic` stood still, for hosts that have it
    timers = [];
    sockets = [];
    requests = [];
    events = [];
    tokens = 0;
    kept = new Map();
    on = null;

    constructor(options = {}, host = {}) {
        this.options = options;
        this.host = {
            now: () => this.time + this.shift,
            random: () => 0.5,
            setTimeout: (run, ms) => {
                const timer = { due: this.time + ms, run };
                this.timers.push(timer);
                return timer;
            },
            clearTimeout: (timer) => { this.timers = this.timers.filter((other) => other !== timer); },
            open: (url, protocols, on) => {
                const socket = { url, protocols, on, sent: [], closed: null, send: (text) => socket.sent.push(JSON.parse(text)), close: (code) => { socket.closed = code; } };
                this.sockets.push(socket);
                return socket;
            },
            get: (url) => new Promise((resolve, reject) => {
                this.requests.push({ url: new URL(url), respond: (body, status = 200) => resolve({ status, text: JSON.stringify(body) }), fail: reject });
            }),
            watch: (on) => { this.on = on; return () => { this.on = null; }; },
            storage: { get: (key) => this.kept.get(key), set: (key, text) => { this.kept.set(key, text); } },
            ...host,
        };
        this.client = this.make();
    }

    make() {
        const { Client: Class = Client, ...options } = this.options;
        const client = new Class({ url: 'https://gw.example', token: async () => `token-${++this.tokens}`, host: this.host, ...options });
        for (const type of ['change', 'state', 'stale', 'fresh', 'rejected', 'error']) client.on(type, (event) => this.events.push({ type, event }));
        return client;
    }

    /** The events of a type, in order. */
    of(type) { return this.events.filter((event) => event.type === type).map(({ event }) => event); }

    get socket() { return this.sockets.at(-1); }

    /** Runs every promise callback that is due. */
    async settle() { await new Promise((resolve) => { setImmediate(resolve); }); }

    /** Moves the clock by `ms` and fires every timer when it is due. */
    async pass(ms) {
        const end = this.time + ms;
        for (;;) {
            await this.settle();
            const next = this.timers.filter(({ due }) => due <= end).sort((a, b) => a.due - b.due)[0];
            if (!next) break;
            this.time = Math.max(this.time, next.due);
            this.timers = this.timers.filter((other) => other !== next);
            next.run();
        }
        this.time = Math.max(this.time, end);
        await this.settle();
    }

    /** Moves the clock without firing timers, as when the app is frozen. */
    freeze(ms) { this.time += ms; }

    /** The same, and the monotonic clock stands still: the device sleeps. */
    sleep(ms) { this.time += ms; this.slept += ms; }

    /** A monotonic clock for the host, as `performance.now` of some platforms. */
    steady() { return this.time - this.slept - 1_000_000_000_000; }

    /** The server's heartbeat. `lateMs`: how long it was on its way. */
    ping(lateMs = 0) { this.receive({ type: 'ping', ts: this.time - lateMs }); }

    /** Answers the client's last ping. */
    pong() { this.receive({ type: 'pong', ts: this.sent('ping').at(-1).ts }); }

    /** Lets `ms` pass with a server that sends heartbeats and answers pings. */
    async healthy(ms) {
        for (let past = 0; past < ms; past += 5000) {
            if (past % 15_000 === 0) this.ping();
            await this.pass(5000);
            this.pong();
        }
    }

    receive(message, socket = this.socket) { socket.on.message(typeof message === 'string' ? message : JSON.stringify(message)); }

    close(code, socket = this.socket) { socket.on.close(code, ''); }

    /** The client's messages of a type, in order. */
    sent(type, socket = this.socket) { return socket.sent.filter((message) => message.type === type); }

    /** Starts the client and delivers a snapshot of each market: `{id: seq}`. */
    async live(positions = { 1001: 1 }, epoch = 7) {
        const ids = Object.keys(positions);
        this.client.subscribe(ids);
        this.client.start();
        await this.settle();
        this.socket.on.open();
        this.ackSubscribe(positions, epoch);
        return this;
    }

    ackSubscribe(positions, epoch = 7) {
        const { id } = this.sent('subscribe').at(-1);
        const at = Object.fromEntries(Object.entries(positions).map(([market, seq]) => [market, { epoch, seq }]));
        this.receive({ type: 'ack', ok: true, id, positions: at });
        for (const [market, seq] of Object.entries(positions)) this.receive(snapshot(market, seq, { win: { yes: '1.50' } }, { epoch }));
    }

    /** Waits for the next attempt, opens its socket and acknowledges its resume. */
    async resumed(recovered = true, epoch = 7) {
        await this.pass(wait(this));
        this.socket.on.open();
        const { id, offsets } = this.sent('resume')[0];
        const positions = Object.fromEntries(Object.entries(offsets).map(([market, { seq }]) => [market, { epoch, seq, recovered }]));
        this.receive({ type: 'ack', ok: true, id, positions });
    }

    seq(market = 1001) { return this.client.market(market).seq; }
}

export const update = (marketId, seq, payload = { win: { yes: `1.${50 + seq}` } }) => ({ type: 'odds_update', marketId: Number(marketId), seq, ts: 1_000_000_000_000 + seq, payload });

export const snapshot = (marketId, seq, payload, more = {}) => ({ type: 'snapshot', marketId: Number(marketId), seq, ts: 1_000_000_000_000 + seq, payload, epoch: 7, ...more });

/** Returns how many ms the client waits before it connects again. */
export const wait = (world) => {
    const { state, retryInMs } = world.of('state').at(-1);
    assert.equal(state, 'waiting');
    return retryInMs;
};
