// Fetches over HTTP what the socket did not deliver: missing updates, or a snapshot if that is less.

import { parse } from './json.js';

const HTTP_TIMEOUT_MS = 10_000;
/** A wider gap costs more as updates than as a snapshot. */
const GAP_MAX = 200;
const TRIES = 3;
const BACKOFF_MS = 500;

export class Gaps {
    #host; #url; #timers; #token; #markets; #emit; #resume;

    /** `token` is null unless the gateway has READ_AUTH=token. `resume(id)` asks over the socket when HTTP has failed. */
    constructor({ host, url, timers, token, markets, emit, resume }) {
        this.#host = host;
        this.#url = url;
        this.#timers = timers;
        this.#token = token;
        this.#markets = markets;
        this.#emit = emit;
        this.#resume = resume;
    }

    /**
     * Fills the market's gap of `missing` updates. Stops when the gap is void: a snapshot came, the market was
     * unsubscribed, or the connection was lost.
     */
    async fill(market, missing) {
        const { gap, seq } = market;
        const isCurrent = () => market.gap === gap;
        try {
            const updates = missing > GAP_MAX ? null : await this.#getUpdates(market, missing);
            if (!isCurrent()) return;
            if (updates) {
                for (const update of updates) {
                    if (Number(update.seq) === market.seq + 1) this.#markets.apply(market, update);
                    if (!isCurrent()) return; // a listener unsubscribed
                }
            } else {
                const state = await this.#get(`/api/markets/${market.id}/odds/snapshot`);
                if (!isCurrent()) return;
                this.#markets.replace(market, { ...state, reset: Number(state.epoch) !== market.epoch });
            }
            if (market.seq === seq) throw new Error('the response has nothing new');
            market.gap = null;
            for (const update of gap.later) this.#markets.updated(update);
            this.#markets.reportFresh([market]);
        } catch (error) {
            if (!isCurrent()) return;
            this.#emit('error', { kind: 'http', error });
            gap.tries += 1;
            if (gap.tries < TRIES) {
                const ms = this.#host.random() * BACKOFF_MS * 2 ** gap.tries;
                this.#timers.set(`gap ${market.id}`, ms, () => { if (isCurrent()) this.fill(market, missing); });
                return;
            }
            market.gap = null;
            market.live = false;
            this.#resume(market.id);
        }
    }

    /** Returns the updates after the market's seq, or null if they are no longer kept or belong to another epoch. */
    async #getUpdates({ id, epoch, seq }, limit) {
        const page = await this.#get(`/api/markets/${id}/odds/updates?since_seq=${seq}&limit=${limit}`);
        const isAnotherEpoch = epoch && Number(page.epoch) !== epoch;
        return page.complete === false || isAnotherEpoch ? null : page.updates;
    }

    async #get(path) {
        let url = this.#url.replace(/^ws/, 'http') + path;
        const token = this.#token && await this.#token.fresh();
        if (token) url += `${path.includes('?') ? '&' : '?'}token=${encodeURIComponent(token)}`;
        const { status, text } = await this.#timers.timeout(HTTP_TIMEOUT_MS, () => this.#host.get(url));
        if (status === 401 && token) this.#token.forget(token);
        if (status !== 200) throw new Error(`${path}: ${status}`);
        const body = parse(text);
        if (body.stale) throw new Error('the response may be stale');
        return body;
    }
}
