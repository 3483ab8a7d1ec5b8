// The client of the gateway: keeps every wanted market's lines in step with its log, over whatever sockets the phone
// lets live. It does no I/O of its own: clock, chance, timers, sockets, HTTP and storage come in as `host` (see
// `web.js`, `wx.js` and `Host` in index.d.ts), which is also how the tests drive it.
//
//   idle ──start──► connecting ──open──► open ──close──► waiting ──backoff──► connecting …
//                        ▲                                  │ hidden (hosts that pause): paused until shown
//                        └──────────── online, shown ───────┘ a bug, or not allowed: stopped
//
// Every attempt has a generation. What a former socket, timer or request still has to say is ignored.

import { parse } from './json.js';

const STOP = new Set([1002, 1003, 1007, 1009, 4403]);
const LEAST_WAIT_MS = { 1013: 1000, 4409: 1000, 4429: 5000 };
const BACKOFF_MS = 500;
const BACKOFF_MAX_MS = 30_000;
/** A connection that lived this long was a good one: the next backoff starts anew. */
const STABLE_MS = 10_000;
const CONNECT_TIMEOUT_MS = 15_000;
const PROVIDER_TIMEOUT_MS = 15_000;
const HTTP_TIMEOUT_MS = 10_000;
const STORAGE_TIMEOUT_MS = 2000;
const BYE_TIMEOUT_MS = 5000;
const BYE_AFTER_MAX_MS = 600_000;
const TICK_MS = 5000;
/** A timer this late says that the app was frozen: nothing can be held against the server. */
const LATE_MS = 2000;
const PROBE_AFTER_MS = 25_000;
const PROBE_TICKS = 3;
const PING_EVERY_MS = 30_000;
const REFRESH_BEFORE_MS = 60_000;
const REFRESH_AGAIN_MS = 10_000;
const SAVE_AFTER_MS = 1000;
/** A market that nobody asks for is kept so long. */
const STORED_MS = 86_400_000;
/** Below the server's MESSAGE_BURST (20) and MESSAGE_RATE (5 a second). */
const BURST = 15;
const RATE = 4;
/** So many markets fit into MAX_MESSAGE_BYTES (16384) at any length of their numbers. */
const CHUNK = 200;
/** A gap above this costs more as updates than as a snapshot. */
const GAP_MAX = 200;
const GAP_TRIES = 3;
const CLOCK_SAMPLES = 8;

export class Client {
    #host; #url; #provider; #readAuth; #tokenIn; #storage; #storageKey; #pauses;
    #listeners = new Map();
    #state = 'idle';
    #markets = new Map(); // id → market, see #market
    #stored = {}; // id → what storage had
    #loaded = false;
    #generation = 0;
    #socket = null;
    #bye = null;
    #openedAt = 0;
    #attempts = 0;
    #notBefore = 0; // the server asked for that
    #hidden = false;
    #offline = false;
    #unwatch = null;
    #timers = {}; // name → cancel
    #token = null; // {token, expiresAt?, ttl?, at}
    #stale = null;
    // what is to be said, and what was said and not answered
    #subscribe = new Set();
    #unsubscribe = new Set();
    #requests = new Map();
    #nextId = 1;
    #budget = BURST;
    #budgetAt = 0;
    // signs of life, and the server's clock
    #lastSeen = 0;
    #lastPing = 0;
    #probing = 0;
    #offsets = [];
    #rtts = [];

    constructor({ url, token, host, storage = host.storage, storageKey = 'kmarket', readAuth = false, tokenIn }) {
        if (!/^(http|ws)s?:\/\//.test(url)) throw new TypeError('url: http(s):// or ws(s):// and a host');
        if (typeof token !== 'function') throw new TypeError('token: a function');
        this.#host = host;
        this.#url = url.replace(/\/+$/, '');
        this.#provider = token;
        this.#readAuth = readAuth;
        this.#tokenIn = tokenIn || host.tokenIn || 'query';
        this.#storage = storage;
        this.#storageKey = storageKey;
        this.#pauses = Boolean(host.pausesInBackground);
    }

    get state() { return this.#state; }

    /** `{reason, since}` while the gateway cannot vouch for its prices, else null. */
    get stale() { return this.#stale; }

    /** The server's clock minus ours, and the round trip, in ms; null as long as they are not known. */
    get clock() {
        const rttMs = this.#rtts.length ? Math.min(...this.#rtts) : null;
        // Every sample is late by the way from server to client: the largest is the least late.
        const offsetMs = this.#offsets.length ? Math.max(...this.#offsets) + (rttMs || 0) / 2 : null;
        return { offsetMs, rttMs };
    }

    /** Listens; the answer ends it. */
    on(type, listener) {
        if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
        this.#listeners.get(type).add(listener);
        return () => { this.#listeners.get(type).delete(listener); };
    }

    start() {
        if (this.#state !== 'idle' && this.#state !== 'stopped' && this.#state !== 'closed') return;
        this.#attempts = 0;
        if (!this.#unwatch && this.#host.watch) {
            this.#unwatch = this.#host.watch({
                shown: () => this.#shown(),
                hidden: () => this.#hide(),
                online: () => this.#online(),
                offline: () => this.#wentOffline(),
            });
        }
        this.#connect();
    }

    close() {
        if (this.#unwatch) this.#unwatch();
        this.#unwatch = null;
        this.#save();
        this.#drop(1000);
        this.#become('closed');
    }

    subscribe(ids) {
        for (const id of list(ids)) {
            if (this.#markets.has(id)) continue;
            const market = newMarket(id, this.#stored[id]);
            this.#markets.set(id, market);
            this.#unsubscribe.delete(id);
            this.#subscribe.add(id);
            if (market.seq !== null) this.#changed(market, { cause: 'stored', changed: Object.keys(market.lines) });
        }
        this.#flushSoon();
    }

    unsubscribe(ids) {
        for (const id of list(ids)) {
            const market = this.#markets.get(id);
            if (!market) continue;
            market.gap = null;
            this.#markets.delete(id);
            delete this.#stored[id];
            this.#subscribe.delete(id);
            this.#unsubscribe.add(id);
        }
        this.#saveSoon();
        this.#flushSoon();
    }

    /** What is known of a market that is subscribed and has come at least once, else undefined. */
    market(id) {
        const market = this.#markets.get(list([id])[0]);
        return market && market.seq !== null ? this.#view(market) : undefined;
    }

    // ---- the connection ----

    async #connect() {
        const generation = this.#drop(1000);
        if (this.#hidden && this.#pauses) return this.#become('paused');
        this.#become('connecting');
        try {
            if (!this.#loaded) await this.#load();
            const token = await this.#freshToken();
            if (generation !== this.#generation) return;
            this.#open(generation, token);
        } catch (error) {
            if (generation !== this.#generation) return;
            this.#emit('error', { kind: 'token', error });
            this.#wait({ code: 0, reason: 'TOKEN' });
        }
    }

    #open(generation, token) {
        const current = (run) => (...args) => { if (generation === this.#generation) run(...args); };
        const byQuery = this.#tokenIn === 'query';
        const url = `${this.#url.replace(/^http/, 'ws')}/ws/odds${byQuery ? `?token=${encodeURIComponent(token)}` : ''}`;
        const wait = () => this.#after('connect', CONNECT_TIMEOUT_MS, (late) => {
            // Frozen while connecting: the answer may be there already.
            if (late) wait(); else this.#closed(1006, 'CONNECT_TIMEOUT');
        });
        wait();
        let socket = null;
        try {
            socket = this.#host.open(url, byQuery ? [] : ['kmarket.v1', `token.${token}`], {
                open: current(() => this.#opened()),
                message: current((text) => this.#message(text)),
                close: current((code, reason) => this.#closed(code, reason)),
            });
        } catch (error) {
            this.#emit('error', { kind: 'socket', error });
            if (generation === this.#generation) this.#closed(1006, 'CANNOT_CONNECT');
            return;
        }
        // A host may tell of failure before it returns.
        if (generation === this.#generation) this.#socket = socket;
        else safely(() => socket.close(1000));
    }

    #opened() {
        if (this.#state !== 'connecting') return;
        this.#cancel('connect');
        this.#openedAt = this.#lastSeen = this.#budgetAt = this.#host.now();
        this.#budget = BURST;
        this.#probing = 0;
        this.#setStale(null); // while prices are stale, nobody new is let in
        this.#unsubscribe.clear();
        this.#subscribe = new Set(this.#markets.keys());
        this.#become('open');
        this.#scheduleRefresh();
        this.#flush();
        this.#ping();
        this.#tickSoon();
    }

    /** Ends what is left of the former connection; nothing of it is heard any more. */
    #drop(code) {
        for (const name of Object.keys(this.#timers)) if (name !== 'save') this.#cancel(name);
        const socket = this.#socket;
        this.#socket = null;
        this.#bye = null;
        this.#requests.clear();
        for (const market of this.#markets.values()) {
            market.request = market.gap = null;
            market.live = false;
        }
        this.#generation += 1;
        if (socket) safely(() => socket.close(code));
        return this.#generation;
    }

    #closed(code, reason) {
        const opened = this.#state === 'open';
        // What the server said before it closed counts more than what the network made of its close.
        const bye = this.#bye;
        const now = this.#host.now();
        if (bye) ({ code, reason } = bye);
        this.#drop(1000);
        if (bye ? bye.reconnect === false : STOP.has(code)) {
            this.#become('stopped', { code, reason });
            return;
        }
        // Outside a browser's sight a failed handshake may have been a 401.
        if (code === 4401 || (!opened && this.#token && now - this.#token.at > REFRESH_AGAIN_MS)) this.#token = null;
        if (opened && now - this.#openedAt >= STABLE_MS) this.#attempts = 0;
        this.#wait({ code, reason, afterMs: Math.max((bye && bye.afterMs) || 0, LEAST_WAIT_MS[code] || 0) });
    }

    #wait({ code, reason, afterMs = 0 }) {
        if (this.#hidden && this.#pauses) return this.#become('paused', { code, reason });
        const most = Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** this.#attempts++);
        const retryInMs = afterMs + (this.#offline ? BACKOFF_MAX_MS : this.#host.random() * most);
        this.#notBefore = this.#host.now() + afterMs;
        this.#become('waiting', { code, reason, retryInMs });
        this.#after('retry', retryInMs, () => this.#connect());
    }

    /** Something says that now is a good moment. What the server asked for is waited for all the same. */
    #hurry() {
        if (this.#state === 'open') this.#probe();
        if (this.#state !== 'waiting' && this.#state !== 'paused') return;
        this.#attempts = 0;
        const least = Math.max(0, Math.min(this.#notBefore - this.#host.now(), BACKOFF_MAX_MS));
        if (!least) { this.#connect(); return; }
        this.#become('waiting', { code: 0, reason: 'ASKED_TO_WAIT', retryInMs: least });
        this.#after('retry', least, () => this.#connect());
    }

    #shown() { this.#hidden = false; this.#hurry(); }

    #hide() { this.#hidden = true; this.#save(); }

    #online() { this.#offline = false; this.#hurry(); }

    #wentOffline() {
        this.#offline = true;
        if (this.#state === 'open') this.#probe();
        if (this.#state === 'waiting') this.#after('retry', BACKOFF_MAX_MS, () => this.#connect());
    }

    // ---- signs of life ----

    #tickSoon() {
        this.#after('tick', TICK_MS, (late) => {
            const now = this.#host.now();
            if (late) this.#probe();
            else if (this.#probing && ++this.#probing > PROBE_TICKS) return this.#closed(1006, 'SILENT');
            else if (!this.#probing && now - this.#lastSeen >= PROBE_AFTER_MS) this.#probe();
            else if (now - this.#lastPing >= PING_EVERY_MS) this.#ping();
            this.#tickSoon();
        });
    }

    /** Asks for a sign of life. Only timers that fire in time after this can find the socket dead. */
    #probe() {
        this.#probing = 1;
        this.#ping();
    }

    #ping() {
        this.#lastPing = this.#host.now();
        this.#send({ type: 'ping', ts: this.#lastPing });
    }

    // ---- the token ----

    async #freshToken() {
        const token = this.#token;
        if (token && this.#remaining(token) > 5000) return token.token;
        this.#token = null;
        const answer = await this.#timeout(PROVIDER_TIMEOUT_MS, () => this.#provider());
        const text = typeof answer === 'string' ? answer : answer && answer.token;
        if (typeof text !== 'string' || !text) throw new TypeError('the token provider gave no token');
        const claims = claimsOf(text);
        const expiresAt = answer.expiresAt || (claims.exp && claims.exp * 1000);
        this.#token = { token: text, expiresAt, ttl: (claims.exp - claims.iat) * 1000 || 0, at: this.#host.now() };
        return text;
    }

    /** ms that a token has left. A clock that would make nonsense of it is not believed. */
    #remaining({ expiresAt, ttl, at }) {
        if (!expiresAt) return Infinity;
        const now = this.#host.now();
        const left = expiresAt - now - (this.clock.offsetMs || 0);
        const known = this.clock.offsetMs !== null || !ttl;
        const leftAtFirst = left + (now - at);
        return known || (leftAtFirst > 0 && leftAtFirst <= ttl + 5000) ? left : ttl - (now - at);
    }

    #scheduleRefresh(least = 0) {
        if (!this.#token) return;
        const left = this.#remaining(this.#token);
        if (left === Infinity) return;
        const early = Math.min(REFRESH_BEFORE_MS, left / 5);
        this.#after('refresh', Math.min(Math.max(left - early, least, 0), 2 ** 31 - 1), () => this.#refresh());
    }

    async #refresh() {
        const generation = this.#generation;
        try {
            this.#token = null;
            const token = await this.#freshToken();
            if (generation === this.#generation) this.#request({ type: 'refresh', token }, 'refresh', []);
        } catch (error) {
            if (generation !== this.#generation) return;
            this.#emit('error', { kind: 'token', error });
            this.#after('refresh', REFRESH_AGAIN_MS, () => this.#refresh());
        }
    }

    // ---- what is said ----

    #flushSoon(ms = 0) {
        if (this.#state === 'open' && !this.#timers.flush) this.#after('flush', ms, () => this.#flush());
    }

    #flush() {
        this.#cancel('flush');
        if (this.#state !== 'open') return;
        const of = (keep) => [...this.#subscribe].filter((id) => keep(this.#markets.get(id)));
        const send = (ids, queue, kind, message) => {
            for (let at = 0; at < ids.length && this.#mayTalk(); at += CHUNK) {
                const some = ids.slice(at, at + CHUNK);
                some.forEach((id) => queue.delete(id));
                this.#request(message(some), kind, some);
            }
        };
        send([...this.#unsubscribe], this.#unsubscribe, 'unsubscribe', (ids) => ({ type: 'unsubscribe', markets: ids.map(String) }));
        send(of((m) => m.seq !== null && !m.live), this.#subscribe, 'resume', (ids) => ({
            type: 'resume',
            offsets: Object.fromEntries(ids.map((id) => {
                const { epoch, seq } = this.#markets.get(id);
                return [id, { epoch, seq }];
            })),
        }));
        send(of((m) => m.seq === null), this.#subscribe, 'subscribe', (ids) => ({ type: 'subscribe', markets: ids.map(String), snapshot: true }));
        // Live already: its first update has come, and an answer is the way to learn the epoch.
        send(of((m) => m.live), this.#subscribe, 'learn', (ids) => ({ type: 'subscribe', markets: ids.map(String) }));
        if (this.#subscribe.size || this.#unsubscribe.size) this.#flushSoon(1000 / RATE);
    }

    #request(message, kind, ids) {
        const id = this.#nextId++;
        this.#requests.set(id, { kind, ids });
        if (kind === 'subscribe' || kind === 'resume') {
            for (const market of ids) Object.assign(this.#markets.get(market), { request: id, gap: null });
        }
        this.#send({ ...message, id });
    }

    #mayTalk() {
        const now = this.#host.now();
        this.#budget = Math.min(BURST, this.#budget + Math.max(0, now - this.#budgetAt) * RATE / 1000);
        this.#budgetAt = now;
        return this.#budget >= 1;
    }

    #send(message) {
        if (this.#state !== 'open' || !this.#socket) return;
        this.#budget -= 1;
        try {
            this.#socket.send(JSON.stringify(message));
        } catch (error) {
            // Its close event comes, or the next probe finds out.
            this.#emit('error', { kind: 'socket', error });
        }
    }

    // ---- what is heard ----

    #message(text) {
        // Some hosts tell of a message before they tell that the socket is open.
        if (this.#state === 'connecting') this.#opened();
        this.#lastSeen = this.#host.now();
        this.#probing = 0;
        let message;
        try {
            message = parse(text);
        } catch (error) {
            this.#emit('error', { kind: 'message', error });
            return;
        }
        try {
            this.#hear(message);
            const market = this.#markets.get(Number(message.marketId));
            this.#compare(market && [market]);
        } catch (error) {
            this.#emit('error', { kind: 'message', error });
        }
    }

    #hear(message) {
        switch (message.type) {
            case 'ack': return this.#acked(message);
            case 'odds_update': return this.#updated(message);
            case 'snapshot': {
                const market = this.#markets.get(Number(message.marketId));
                // Before the answer to our request it belongs to a former subscription.
                if (market && market.live) this.#replace(market, message);
                return;
            }
            case 'ping': {
                this.#send({ type: 'pong' });
                const first = !this.#offsets.length;
                keep(this.#offsets, Number(message.ts) - this.#host.now());
                if (first && this.#timers.refresh) this.#scheduleRefresh();
                return;
            }
            case 'pong': // not one of a former ping, which may have waited while we were frozen
                if (Number(message.ts) === this.#lastPing) keep(this.#rtts, Math.max(0, this.#host.now() - this.#lastPing));
                return;
            case 'status': return this.#setStale(message.stale ? { reason: message.reason, since: Number(message.since) } : null);
            case 'error': return this.#refused(message);
            case 'bye': {
                const { code, reason, reconnect, afterMs } = message;
                this.#bye = { code: Number(code), reason, reconnect, afterMs: Math.min(Number(afterMs) || 0, BYE_AFTER_MAX_MS) };
                this.#after('bye', BYE_TIMEOUT_MS, () => this.#closed(1006, 'NO_CLOSE'));
            }
            // What else a later gateway may say is for later clients.
        }
    }

    #acked({ id, positions = {}, rejected = [] }) {
        const request = this.#requests.get(Number(id));
        if (!request) return;
        this.#requests.delete(Number(id));
        const { kind } = request;
        for (const { marketId, code } of rejected) {
            const market = this.#markets.get(Number(marketId));
            if (!market || (kind !== 'refresh' && market.request !== Number(id))) continue;
            market.live = false;
            market.request = market.gap = null;
            const news = market.rejected !== code;
            market.rejected = code;
            if (news) this.#emit('rejected', { marketId: market.id, code });
        }
        if (kind === 'refresh') {
            this.#scheduleRefresh(REFRESH_AGAIN_MS);
            this.#retry('FORBIDDEN', rejected);
        }
        if (kind === 'unsubscribe') this.#retry('LIMIT_EXCEEDED', []);
        for (const [key, { epoch, seq, recovered }] of Object.entries(positions)) {
            const market = this.#markets.get(Number(key));
            if (!market) continue;
            if (kind === 'learn') {
                if (!market.epoch && market.live) market.epoch = Number(epoch);
                continue;
            }
            if (market.request !== Number(id)) continue;
            market.request = null;
            market.live = true;
            market.rejected = null;
            // Until the snapshot that is announced has come, no update fits.
            market.awaits = kind === 'subscribe' || !recovered;
            if (!market.awaits) market.epoch = Number(epoch);
            else if (kind === 'subscribe' && !Number(seq) && market.seq === null) {
                this.#replace(market, { epoch, seq, ts: 0, payload: {} });
            }
        }
        this.#saveSoon();
    }

    /** Asks again for what was refused for a reason that may be gone. */
    #retry(code, except) {
        const not = new Set(except.map(({ marketId }) => Number(marketId)));
        for (const market of this.#markets.values()) {
            if (market.rejected === code && !market.live && !not.has(market.id)) this.#subscribe.add(market.id);
        }
        this.#flushSoon();
    }

    #refused({ id, code, message }) {
        const request = this.#requests.get(Number(id));
        this.#requests.delete(Number(id));
        this.#emit('error', { kind: 'refused', code, error: new Error(`${code}: ${message}`) });
        if (!request) return;
        if (request.kind === 'refresh') {
            if (code === 'UNAUTHORIZED') this.#token = null;
            this.#after('refresh', REFRESH_AGAIN_MS, () => this.#refresh());
        } else if (code === 'RATE_LIMITED') {
            this.#budget = 0;
            const wanted = request.kind !== 'unsubscribe';
            for (const market of request.ids) {
                if (wanted === this.#markets.has(market)) (wanted ? this.#subscribe : this.#unsubscribe).add(market);
            }
            this.#flushSoon(1000);
        }
    }

    #updated(update) {
        const market = this.#markets.get(Number(update.marketId));
        if (!market || !market.live || market.awaits) return;
        const seq = Number(update.seq);
        if (market.gap) {
            market.gap.later.push(update);
            // What falls out is a new gap, which is found when its turn comes.
            if (market.gap.later.length > 1000) market.gap.later.shift();
        } else if (seq === market.seq + 1) {
            this.#apply(market, update);
        } else if (seq > market.seq) {
            market.gap = { later: [update], tries: 0 };
            this.#fill(market, market.gap, seq - market.seq - 1);
        }
    }

    #apply(market, { seq, ts, payload }) {
        check(seq, payload);
        // Spread defines members, also one named __proto__; assignment would not.
        const lines = { ...market.lines, ...payload };
        for (const name of Object.keys(payload)) if (payload[name] === null) delete lines[name];
        Object.assign(market, { seq: Number(seq), ts: Number(ts), lines });
        if (!market.epoch) {
            this.#subscribe.add(market.id);
            this.#flushSoon();
        }
        this.#changed(market, { cause: 'update', changed: Object.keys(payload) });
    }

    #replace(market, { epoch, seq, ts, payload, reset, conflated }) {
        check(seq, payload);
        const to = { epoch: Number(epoch) || 0, seq: Number(seq) };
        const known = market.seq !== null;
        // Only a reset goes back.
        if (known && !reset && (to.epoch < market.epoch || (to.epoch === market.epoch && to.seq < market.seq))) return;
        const same = known && !reset && to.epoch === market.epoch && to.seq === market.seq;
        const before = market.lines;
        Object.assign(market, to, { ts: Number(ts), lines: { ...payload }, gap: null, awaits: false });
        for (const name of Object.keys(payload)) if (payload[name] === null) delete market.lines[name];
        if (same) return;
        const changed = [...new Set([...Object.keys(before), ...Object.keys(payload)])];
        this.#changed(market, { cause: 'snapshot', changed, reset: Boolean(reset), conflated: Boolean(conflated) });
    }

    #changed(market, how) {
        this.#saveSoon();
        this.#emit('change', { ...this.#view(market), reset: false, conflated: false, ...how });
    }

    #view(market) {
        const { id, epoch, seq, ts, lines, rejected } = market;
        const fresh = this.#isFresh(market);
        const ageMs = ts ? Math.max(0, this.#host.now() + (this.clock.offsetMs || 0) - ts) : null;
        return { marketId: id, epoch, seq, ts, lines, fresh, ageMs, rejected };
    }

    #isFresh(market) {
        return this.#state === 'open' && market.live && !market.awaits && !market.gap && !this.#stale;
    }

    /** Tells of each market that became fresh, or is no longer. */
    #compare(markets = [...this.#markets.values()]) {
        for (const market of markets) {
            const fresh = this.#isFresh(market);
            if (market.fresh === fresh) continue;
            market.fresh = fresh;
            this.#emit('fresh', { marketId: market.id, fresh });
        }
    }

    #setStale(stale) {
        if (!stale && !this.#stale) return;
        this.#stale = stale;
        this.#emit('stale', stale);
    }

    // ---- gaps ----

    /** Fetches what is missing between a market's seq and what has come: as updates, or as a snapshot if that is less. */
    async #fill(market, gap, missing) {
        const current = () => market.gap === gap;
        const { seq } = market;
        try {
            let snapshot = missing > GAP_MAX;
            if (!snapshot) {
                const page = await this.#get(`/api/markets/${market.id}/odds/updates?since_seq=${market.seq}&limit=${missing}`);
                if (!current()) return;
                if (page.stale) throw new Error('the answer may be old');
                snapshot = page.complete === false || (market.epoch && Number(page.epoch) !== market.epoch);
                if (!snapshot) {
                    for (const update of page.updates) {
                        if (Number(update.seq) === market.seq + 1) this.#apply(market, update);
                        if (!current()) return; // a listener unsubscribed
                    }
                }
            }
            if (snapshot) {
                const state = await this.#get(`/api/markets/${market.id}/odds/snapshot`);
                if (!current()) return;
                if (state.stale) throw new Error('the answer may be old');
                this.#replace(market, { ...state, reset: Number(state.epoch) !== market.epoch });
            }
            if (market.seq === seq) throw new Error('the answer has nothing new');
            market.gap = null;
            for (const update of gap.later) this.#updated(update);
            this.#compare([market]);
        } catch (error) {
            if (!current()) return;
            this.#emit('error', { kind: 'http', error });
            gap.tries += 1;
            if (gap.tries < GAP_TRIES) {
                const ms = this.#host.random() * BACKOFF_MS * 2 ** gap.tries;
                this.#after(`gap ${market.id}`, ms, () => { if (current()) this.#fill(market, gap, missing); });
                return;
            }
            // The socket can tell it as well.
            market.gap = null;
            market.live = false;
            this.#subscribe.add(market.id);
            this.#flushSoon();
        }
    }

    async #get(path) {
        let url = this.#url.replace(/^ws/, 'http') + path;
        if (this.#readAuth) url += `${path.includes('?') ? '&' : '?'}token=${encodeURIComponent(await this.#freshToken())}`;
        const { status, text } = await this.#timeout(HTTP_TIMEOUT_MS, () => this.#host.get(url));
        if (status !== 200) throw new Error(`${path}: ${status}`);
        return parse(text);
    }

    // ---- what is kept ----

    async #load() {
        this.#loaded = true;
        if (!this.#storage) return;
        try {
            const text = await this.#timeout(STORAGE_TIMEOUT_MS, () => this.#storage.get(this.#storageKey));
            const stored = text ? JSON.parse(text) : {};
            for (const [id, state] of Object.entries(stored)) {
                if (!state || !isCount(state.epoch) || !isCount(state.seq) || !isCount(state.ts)) continue;
                if (!state.lines || typeof state.lines !== 'object') continue;
                this.#stored[id] = state;
                const market = this.#markets.get(Number(id));
                if (market && market.seq === null) {
                    Object.assign(market, state);
                    this.#changed(market, { cause: 'stored', changed: Object.keys(state.lines) });
                }
            }
        } catch (error) {
            this.#emit('error', { kind: 'storage', error });
        }
    }

    #saveSoon() {
        if (this.#storage && !this.#timers.save) this.#after('save', SAVE_AFTER_MS, () => this.#save());
    }

    async #save() {
        this.#cancel('save');
        if (!this.#storage || !this.#loaded) return;
        for (const { id, epoch, seq, ts, lines, awaits } of this.#markets.values()) {
            if (seq !== null && !awaits) this.#stored[id] = { epoch, seq, ts, lines };
        }
        const old = this.#host.now() - STORED_MS;
        for (const [id, { ts }] of Object.entries(this.#stored)) {
            if (!this.#markets.has(Number(id)) && ts < old) delete this.#stored[id];
        }
        try {
            await this.#storage.set(this.#storageKey, JSON.stringify(this.#stored));
        } catch (error) {
            this.#emit('error', { kind: 'storage', error });
        }
    }

    // ---- tools ----

    #become(state, why = {}) {
        if (this.#state === state && state !== 'waiting') return;
        this.#state = state;
        this.#emit('state', { state, ...why });
        this.#compare();
    }

    #emit(type, event) {
        const failed = (error) => { if (type !== 'error') this.#emit('error', { kind: 'listener', error }); };
        for (const listener of [...(this.#listeners.get(type) || [])]) {
            try {
                const answer = listener(event);
                if (answer && typeof answer.then === 'function') answer.then(null, failed);
            } catch (error) {
                failed(error);
            }
        }
    }

    /** Runs `run` in `ms`, once, in place of what `name` stood for. Its argument: whether it is late. */
    #after(name, ms, run) {
        this.#cancel(name);
        const due = this.#host.now() + ms;
        const timer = this.#host.setTimeout(() => {
            delete this.#timers[name];
            run(this.#host.now() - due > LATE_MS);
        }, ms);
        this.#timers[name] = () => this.#host.clearTimeout(timer);
    }

    #cancel(name) {
        if (this.#timers[name]) this.#timers[name]();
        delete this.#timers[name];
    }

    /** What `run` answers, or a rejection after `ms`. What comes later is dropped, also if it is an error. */
    #timeout(ms, run) {
        return new Promise((resolve, reject) => {
            const timer = this.#host.setTimeout(() => reject(new Error(`no answer in ${ms} ms`)), ms);
            new Promise((answer) => { answer(run()); }).then(resolve, reject).then(() => this.#host.clearTimeout(timer));
        });
    }
}

function newMarket(id, stored) {
    return {
        id, epoch: 0, seq: null, ts: 0, lines: {}, ...stored,
        live: false, // the answer to its subscribe or resume has come on this connection
        awaits: false, // a snapshot is announced
        request: null, // the id of the request that is to make it live
        fresh: false, // as it was told
        gap: null, // {later, tries} while what is missing is fetched
        rejected: null,
    };
}

function list(ids) {
    return (Array.isArray(ids) ? ids : [ids]).map((id) => {
        const number = typeof id === 'string' && /^[1-9]\d*$/.test(id) ? Number(id) : id;
        if (!Number.isSafeInteger(number) || number < 1) throw new TypeError(`not a market id: ${id}`);
        return number;
    });
}

/** Before anything is touched. */
function check(seq, payload) {
    if (!isCount(Number(seq)) || !payload || typeof payload !== 'object') throw new TypeError('no seq or payload');
}

function isCount(value) {
    return Number.isSafeInteger(value) && value >= 0;
}

function keep(samples, sample) {
    samples.push(sample);
    if (samples.length > CLOCK_SAMPLES) samples.shift();
}

function safely(run) {
    try { run(); } catch { /* a socket that is gone already */ }
}

/** `exp` and `iat` of a JWT, if it is one. (Mini-programs have no `atob`.) */
function claimsOf(jwt) {
    const digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    let text = '', bits = 0, held = 0;
    for (const char of jwt.split('.')[1] || '') {
        bits = ((bits << 6) | digits.indexOf(char)) & 0xffff;
        held += 6;
        if (held >= 8) text += String.fromCharCode((bits >> (held -= 8)) & 0xff);
    }
    const claim = (name) => Number((new RegExp(`"${name}":(\\d+)`).exec(text) || [])[1]);
    return { exp: claim('exp'), iat: claim('iat') };
}
