// The client of the gateway: keeps the lines of every subscribed market in step with its log, across reconnects. An app
// uses the class `Client` only, which connects the other modules:
//
//        calls                                          messages
//   app ───────► client.js ───► requests.js ───► connection.js ◄───► host.open
//    ▲               ▲                                │
//    │ events        └── acks, snapshots, updates ────┘
//    │               │
//    └───────────────┴────────► markets.js ────► gaps.js ──────────► host.get
//
// The client does no I/O of its own. Clock, randomness, timers, sockets, HTTP and storage come from `host`: see `web.js`,
// `wx.js` and `Host` in index.d.ts. The tests pass a host that they control.

import { Connection } from './connection.js';
import { Gaps } from './gaps.js';
import { Heartbeat } from './heartbeat.js';
import { parse } from './json.js';
import { Markets } from './markets.js';
import { Requests } from './requests.js';
import { Store } from './store.js';
import { Time } from './time.js';
import { Timers } from './timers.js';
import { RETRY_TOKEN_MS, TokenHolder } from './token.js';

export class Client {
    #time; #timers; #heartbeat; #token; #markets; #store; #connection; #requests;
    #listeners = new Map(); // type → listeners

    constructor({ url, token, host, storage = host.storage, storageKey = 'kmarket', readAuth = false, tokenIn }) {
        if (!/^(http|ws)s?:\/\//.test(url)) throw new TypeError('url: http(s):// or ws(s):// and a host');
        if (typeof token !== 'function') throw new TypeError('token: a function');
        const base = url.replace(/\/+$/, '');
        const emit = (type, event) => this.#emit(type, event);
        const time = this.#time = new Time(host);
        const timers = this.#timers = new Timers({ host, time });
        this.#heartbeat = new Heartbeat({
            time,
            send: (message) => this.#connection.send(message),
            doubted: () => this.#markets.reportFresh(),
        });
        this.#token = new TokenHolder({ time, timers, provider: token });
        this.#markets = new Markets({
            time,
            heartbeat: this.#heartbeat,
            isOpen: () => this.state === 'open',
            on: {
                event: emit,
                ask: (id) => this.#ask(id),
                gap: (market, missing) => gaps.fill(market, missing),
                changed: () => this.#store.saveSoon(),
            },
        });
        const markets = this.#markets;
        // Timers of its own, because a lost connection cancels all the others.
        this.#store = new Store({ time, timers: new Timers({ host, time }), storage, key: storageKey, markets, emit });
        this.#connection = new Connection({
            host, time, url: base, tokenIn: tokenIn || host.tokenIn || 'query', timers, heartbeat: this.#heartbeat, token: this.#token,
            on: {
                prepare: () => this.#store.load(),
                opening: () => this.#opening(),
                opened: () => this.#opened(),
                message: (text) => this.#message(text),
                tick: () => this.#tick(),
                dropped: () => this.#dropped(),
                hidden: () => { this.#hidden(true); this.#store.save(); },
                shown: () => this.#hidden(false),
                state: (event) => { emit('state', event); markets.reportFresh(); },
                error: (event) => emit('error', event),
            },
        });
        this.#requests = new Requests({ connection: this.#connection, timers, markets });
        const gaps = new Gaps({
            host, url: base, timers, token: readAuth ? this.#token : null, markets, emit, resume: (id) => this.#ask(id),
        });
    }

    get state() { return this.#connection.state; }

    get stale() { return this.#markets.stale; }

    get clock() { return this.#time.clock; }

    /** Adds a listener. Returns a function that removes it. */
    on(type, listener) {
        if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
        this.#listeners.get(type).add(listener);
        return () => { this.#listeners.get(type).delete(listener); };
    }

    start() { this.#connection.start(); }

    close() {
        this.#store.save();
        this.#connection.close();
    }

    subscribe(ids, options) {
        const all = optionsOf(options);
        for (const id of listOf(ids)) {
            const known = this.#markets.get(id);
            if (known) {
                const { conflateMs, hiddenConflateMs } = all;
                if (options) known.options = { ...known.options, conflateMs, hiddenConflateMs };
                continue;
            }
            this.#markets.add(id, all);
            this.#requests.subscribe(id);
            const state = this.#store.stateOf(id);
            if (state) this.#markets.restore(id, state);
        }
        this.#requests.flushSoon();
    }

    unsubscribe(ids) {
        for (const id of listOf(ids)) {
            if (!this.#markets.get(id)) continue;
            this.#markets.delete(id);
            this.#store.forget(id);
            this.#requests.unsubscribe(id);
        }
        this.#store.saveSoon();
        this.#requests.flushSoon();
    }

    /** Returns a subscribed market, or undefined as long as no state of it is known. */
    market(id) {
        const market = this.#markets.get(listOf([id])[0]);
        return market && market.seq !== null ? this.#markets.view(market) : undefined;
    }

    // ---- the connection ----

    #opening() {
        this.#markets.setStale(null); // a gateway with stale prices refuses new connections
        this.#requests.restart();
    }

    #opened() {
        this.#scheduleRefresh();
        this.#requests.flush();
    }

    #tick() {
        if (this.#markets.trustAgain()) this.#heartbeat.ping();
        this.#markets.reportFresh();
    }

    #dropped() {
        this.#requests.forgetSent();
        this.#markets.disconnected();
    }

    #hidden(isHidden) {
        this.#requests.isHidden = isHidden;
        // At once: a hidden app may freeze before a timer fires.
        this.#requests.flush();
    }

    #ask(id) {
        this.#requests.subscribe(id);
        this.#requests.flushSoon();
    }

    // ---- messages ----

    #message(text) {
        try {
            const message = parse(text);
            this.#handle(message);
            const market = this.#markets.get(Number(message.marketId));
            this.#markets.reportFresh(market && [market]);
        } catch (error) {
            this.#emit('error', { kind: 'message', error });
        }
    }

    /** Ignores types that it does not know: a later gateway may send more. */
    #handle(message) {
        switch (message.type) {
            case 'ack': return this.#acked(message);
            case 'odds_update': return this.#markets.updated(message);
            case 'snapshot': return this.#markets.snapshot(message);
            case 'ping': return this.#pinged(message);
            case 'pong': return this.#heartbeat.ponged(message.ts);
            case 'status': return this.#markets.setStale(message.stale ? { reason: message.reason, since: Number(message.since) } : null);
            case 'error': return this.#refused(message);
            case 'bye': return this.#connection.bye(message);
        }
    }

    #pinged({ ts }) {
        this.#connection.send({ type: 'pong' });
        // The server's clock may be known only now, and with it when the token expires.
        if (this.#heartbeat.pinged(ts) && this.#timers.has('refresh')) this.#scheduleRefresh();
    }

    #acked(message) {
        const id = Number(message.id);
        const request = this.#requests.take(id);
        if (!request) return;
        if (request.kind === 'refresh') this.#scheduleRefresh(RETRY_TOKEN_MS);
        this.#markets.acked(id, request, message);
    }

    #refused({ id, code, message }) {
        const request = this.#requests.take(Number(id));
        if (request && request.kind === 'pace' && code === 'BAD_MESSAGE') return this.#requests.giveUpPace();
        this.#emit('error', { kind: 'refused', code, error: new Error(`${code}: ${message}`) });
        if (!request) return;
        if (request.kind === 'refresh') {
            if (code === 'UNAUTHORIZED') this.#token.forget();
            this.#timers.set('refresh', RETRY_TOKEN_MS, () => this.#refresh());
        } else if (code === 'RATE_LIMITED') {
            this.#requests.repeat(request);
        }
    }

    // ---- the token ----

    #scheduleRefresh(leastMs = 0) {
        const ms = this.#token.refreshInMs(leastMs);
        if (ms !== null) this.#timers.set('refresh', ms, () => this.#refresh());
    }

    async #refresh() {
        const { generation } = this.#connection;
        try {
            const token = await this.#token.renew();
            if (generation === this.#connection.generation) this.#requests.send('refresh', [], { type: 'refresh', token });
        } catch (error) {
            if (generation !== this.#connection.generation) return;
            this.#emit('error', { kind: 'token', error });
            this.#timers.set('refresh', RETRY_TOKEN_MS, () => this.#refresh());
        }
    }

    // ---- events ----

    /** Calls every listener. What a listener throws or rejects with becomes an `error` event. */
    #emit(type, event) {
        const failed = (error) => { if (type !== 'error') this.#emit('error', { kind: 'listener', error }); };
        for (const listener of [...(this.#listeners.get(type) || [])]) {
            try {
                const result = listener(event);
                if (result && typeof result.then === 'function') result.then(null, failed);
            } catch (error) {
                failed(error);
            }
        }
    }
}

const CONFLATE_MAX_MS = 60_000;

function optionsOf({ fold = true, patch = true, conflateMs = 0, hiddenConflateMs = 1000 } = {}) {
    for (const ms of [conflateMs, hiddenConflateMs]) {
        if (!Number.isInteger(ms) || ms < 0 || ms > CONFLATE_MAX_MS) throw new TypeError(`not 0 to ${CONFLATE_MAX_MS} ms: ${ms}`);
    }
    return { fold: Boolean(fold), patch: Boolean(patch), conflateMs, hiddenConflateMs };
}

function listOf(ids) {
    return (Array.isArray(ids) ? ids : [ids]).map((id) => {
        const number = typeof id === 'string' && /^[1-9]\d*$/.test(id) ? Number(id) : id;
        if (!Number.isSafeInteger(number) || number < 1) throw new TypeError(`not a market id: ${id}`);
        return number;
    });
}
