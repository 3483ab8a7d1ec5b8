// Subscribe, resume and unsubscribe: collects what the app asks for, sends it within the server's rate limit, and
// remembers each request until its ack or error.

import { SEND_AGAIN_MS } from './connection.js';

/** Markets per message. With numbers of any length the message fits into the server's MAX_MESSAGE_BYTES (16384). */
const CHUNK = 150;
const TOO_FAST_MS = 1000;

export class Requests {
    #connection; #timers; #markets;
    #subscribe = new Set();
    #unsubscribe = new Set();
    #sent = new Map(); // id → {kind, ids}
    #nextId = 1;

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
    }

    /** Forgets the requests that were sent: the connection is gone, so no ack will come. */
    forgetSent() { this.#sent.clear(); }

    /** Returns `{kind, ids}` of the request that an ack or error names, and forgets it. */
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
            if (isWanted === Boolean(this.#markets.get(id))) (isWanted ? this.#subscribe : this.#unsubscribe).add(id);
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
        this.#sendChunks('unsubscribe', [...this.#unsubscribe], (ids) => ({ type: 'unsubscribe', markets: ids.map(String) }));
        this.#sendChunks('resume', wanted((market) => market.seq !== null && !market.live), (ids) => ({
            type: 'resume',
            offsets: Object.fromEntries(ids.map((id) => [id, offsetOf(this.#markets.get(id))])),
            fold: true,
            patch: true,
        }));
        this.#sendChunks('subscribe', wanted((market) => market.seq === null), (ids) => ({
            type: 'subscribe', markets: ids.map(String), snapshot: true, fold: true, patch: true,
        }));
        // These markets are live already. The ack brings their epoch. Without a snapshot there is no `patch`.
        this.#sendChunks('learn', wanted((market) => market.live), (ids) => ({ type: 'subscribe', markets: ids.map(String), fold: true }));
        if (this.#subscribe.size || this.#unsubscribe.size) this.flushSoon(SEND_AGAIN_MS);
    }

    #sendChunks(kind, ids, message) {
        const waiting = kind === 'unsubscribe' ? this.#unsubscribe : this.#subscribe;
        for (let at = 0; at < ids.length && this.#connection.maySend(); at += CHUNK) {
            const chunk = ids.slice(at, at + CHUNK);
            chunk.forEach((id) => waiting.delete(id));
            this.send(kind, chunk, message(chunk));
        }
    }

    /** Sends a message with a new id. `kind`: `subscribe`, `resume`, `unsubscribe`, `learn` (an epoch) or `refresh`. */
    send(kind, ids, message) {
        const id = this.#nextId++;
        this.#sent.set(id, { kind, ids });
        if (kind === 'subscribe' || kind === 'resume') this.#markets.requested(ids, id);
        this.#connection.send({ ...message, id });
    }
}

/** Returns a market's position as a resume has it. `ts` tells histories apart that have the same epoch. */
function offsetOf({ epoch, seq, ts }) {
    return seq && ts ? { epoch, seq, ts } : { epoch, seq };
}
