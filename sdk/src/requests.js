// Subscribe, resume, unsubscribe and pace: collects what the app asks for, sends it within the server's rate limit, and
// remembers each request until its ack or error.

import { SEND_AGAIN_MS } from './connection.js';

/** Markets per message. With numbers of any length the message fits into the server's MAX_MESSAGE_BYTES (16384). */
const CHUNK = 150;
const TOO_FAST_MS = 1000;

export class Requests {
    #connection; #timers; #markets;
    #subscribe = new Set();
    #unsubscribe = new Set();
    #sent = new Map(); // id → {kind, ids, conflateMs}
    #nextId = 1;
    #knowsPace = true; // false: this gateway refused a pace message
    /** Whether the app is in the background, where a slower pace is enough. */
    isHidden = false;

    constructor({ connection, timers, markets }) {
        this.#connection = connection;
        this.#timers = timers;
        this.#markets = markets;
    }

    subscribe(id) {
        this.#unsubscribe.delete(id);
        this.#subscribe.add(id);
    }

    unsubscribe(id) {
        this.#subscribe.delete(id);
        this.#unsubscribe.add(id);
    }

    /** Starts over on a new connection: every market must be subscribed or resumed, and none unsubscribed. */
    restart() {
        this.#unsubscribe.clear();
        this.#subscribe = new Set(this.#markets.ids());
        this.#knowsPace = true;
    }

    /** Sends no more pace messages on this connection: its gateway does not know them. */
    giveUpPace() { this.#knowsPace = false; }

    /** Forgets the requests that were sent: the connection is gone, so no ack will come. */
    forgetSent() { this.#sent.clear(); }

    /** Returns `{kind, ids, conflateMs}` of the request that an ack or error names, and forgets it. */
    take(id) {
        const request = this.#sent.get(id);
        this.#sent.delete(id);
        return request;
    }

    /** Repeats a request that the server refused because it came too fast. */
    repeat({ kind, ids }) {
        this.#connection.slowDown();
        const isWanted = kind !== 'unsubscribe';
        for (const id of ids) {
            const market = this.#markets.get(id);
            if (isWanted !== Boolean(market)) continue;
            if (kind === 'pace') market.askedMs = -1;
            else (isWanted ? this.#subscribe : this.#unsubscribe).add(id);
        }
        this.flushSoon(TOO_FAST_MS);
    }

    /** Sends in `ms`, so that several calls in a row share one message. */
    flushSoon(ms = 0) {
        if (this.#connection.state === 'open' && !this.#timers.has('flush')) this.#timers.set('flush', ms, () => this.flush());
    }

    flush() {
        this.#timers.cancel('flush');
        if (this.#connection.state !== 'open') return;
        const wanted = (is) => [...this.#subscribe].filter((id) => is(this.#markets.get(id)));
        const texts = (ids) => ids.map(String);
        this.#sendChunks('unsubscribe', [...this.#unsubscribe], (ids) => ({ type: 'unsubscribe', markets: texts(ids) }));
        this.#sendGroups('resume', wanted((market) => market.seq !== null && !market.live), (ids, options) => ({
            type: 'resume',
            offsets: Object.fromEntries(ids.map((id) => [id, offsetOf(this.#markets.get(id))])),
            ...options,
        }));
        this.#sendGroups('subscribe', wanted((market) => market.seq === null), (ids, options) => ({
            type: 'subscribe', markets: texts(ids), snapshot: true, ...options,
        }));
        // These markets are live already. The ack brings their epoch. Without a snapshot there is no `patch`.
        this.#sendGroups('learn', wanted((market) => market.live), (ids, { patch, ...options }) => ({
            type: 'subscribe', markets: texts(ids), ...options,
        }));
        const isPaceLeft = this.#sendPaces();
        if (this.#subscribe.size || this.#unsubscribe.size || isPaceLeft) this.flushSoon(SEND_AGAIN_MS);
    }

    /** Asks for another pace of each market whose wanted pace has changed. Returns true if some are left for later. */
    #sendPaces() {
        if (!this.#knowsPace) return false;
        const asked = [...this.#markets.all()].filter(({ askedMs }) => askedMs !== null);
        const isChanged = (market) => market.askedMs !== this.#wantedMs(market);
        const changed = asked.filter(isChanged);
        const isOfAll = new Set(asked.map((market) => this.#wantedMs(market))).size === 1;
        const ids = (changed.length && isOfAll ? asked : changed).map(({ id }) => id);
        for (const [conflateMs, group] of this.#grouped(ids, (market) => this.#wantedMs(market))) {
            const message = (markets) => ({ type: 'pace', conflateMs, ...(!isOfAll && { markets: markets.map(String) }) });
            this.#sendChunks('pace', group, message, conflateMs, isOfAll ? group.length : CHUNK);
        }
        return asked.some(isChanged);
    }

    /** The wanted pace in ms between two messages of the market. Only folds can be paced. */
    #wantedMs({ options: { fold, conflateMs, hiddenConflateMs } }) {
        return fold ? Math.max(conflateMs, this.isHidden ? hiddenConflateMs : 0) : 0;
    }

    /** Sends one kind of request, with one message for all markets that have the same options. */
    #sendGroups(kind, ids, message) {
        const optionsOf = (market) => {
            const { fold, patch } = market.options;
            const conflateMs = this.#wantedMs(market);
            return JSON.stringify({ ...(fold && { fold }), ...(patch && { patch }), ...(conflateMs && { conflateMs }) });
        };
        for (const [text, group] of this.#grouped(ids, optionsOf)) {
            const options = JSON.parse(text);
            // An ack of `learn` changes no pace.
            const askedMs = kind === 'learn' ? undefined : options.conflateMs || 0;
            this.#sendChunks(kind, group, (chunk) => message(chunk, options), askedMs);
        }
    }

    #grouped(ids, keyOf) {
        const groups = new Map();
        for (const id of ids) {
            const key = keyOf(this.#markets.get(id));
            if (!groups.has(key)) groups.set(key, []);
            groups.get(key).push(id);
        }
        return groups;
    }

    #sendChunks(kind, ids, message, conflateMs, size = CHUNK) {
        const waiting = kind === 'unsubscribe' ? this.#unsubscribe : this.#subscribe;
        for (let at = 0; at < ids.length && this.#connection.maySend(); at += size) {
            const chunk = ids.slice(at, at + size);
            if (kind !== 'pace') chunk.forEach((id) => waiting.delete(id));
            this.send(kind, chunk, message(chunk), conflateMs);
        }
    }

    /**
     * Sends a message with a new id. `kind`: `subscribe`, `resume`, `unsubscribe`, `learn` (an epoch), `pace` or
     * `refresh`. `conflateMs` is the pace that the message asks for.
     */
    send(kind, ids, message, conflateMs) {
        const id = this.#nextId++;
        this.#sent.set(id, { kind, ids, conflateMs });
        if (kind === 'subscribe' || kind === 'resume') this.#markets.requested(ids, id);
        if (conflateMs !== undefined) for (const market of ids) this.#markets.get(market).askedMs = conflateMs;
        this.#connection.send({ ...message, id });
    }
}

/** Returns a market's position as a resume has it. `ts` tells histories apart that have the same epoch. */
function offsetOf({ epoch, seq, ts }) {
    return seq && ts ? { epoch, seq, ts } : { epoch, seq };
}
