// The subscribed markets, and how acks, snapshots and updates change them. No I/O.

import { LATE_MS } from './heartbeat.js';
import { checkLines, merged, without } from './lines.js';

/** Updates held per market while a gap before them is fetched. Beyond it the oldest is dropped, and fetched as a gap later. */
const MAX_LATER = 1000;

export class Markets {
    #markets = new Map(); // id → market, see newMarket
    #stale = null;
    #time; #heartbeat; #isOpen; #on;

    /**
     * `isOpen()` says whether the connection is open. `on` has the callbacks:
     * - `event(type, event)` receives the events for the app.
     * - `ask(id)` is called when a market must be subscribed or resumed again.
     * - `gap(market, missing)` is called when `missing` updates after the market's `seq` did not come; `Infinity`: when
     *   only a snapshot helps.
     * - `changed()` is called when there is something to save.
     */
    constructor({ time, heartbeat, isOpen, on }) {
        this.#time = time;
        this.#heartbeat = heartbeat;
        this.#isOpen = isOpen;
        this.#on = on;
    }

    get(id) { return this.#markets.get(id); }

    all() { return this.#markets.values(); }

    ids() { return this.#markets.keys(); }

    add(id, options) { this.#markets.set(id, newMarket(id, options)); }

    delete(id) {
        this.#markets.get(id).gap = null;
        this.#markets.delete(id);
    }

    /** Takes a stored state, unless the market is not subscribed or has a state already. */
    restore(id, { epoch, seq, ts, lines }) {
        const market = this.#markets.get(id);
        if (!market || market.seq !== null) return;
        Object.assign(market, { epoch, seq, ts, lines });
        this.#changed(market, { cause: 'stored', changed: Object.keys(lines) });
    }

    /** Returns what an app sees of a market: `Market` in index.d.ts. */
    view(market) {
        const { id, epoch, seq, ts, lines, rejected, conflateMs } = market;
        const ageMs = ts ? Math.max(0, this.#time.serverNow() - ts) : null;
        return { marketId: id, epoch, seq, ts, lines, fresh: this.#isFresh(market), ageMs, rejected, conflateMs };
    }

    // ---- the connection ----

    /** Forgets requests and gaps: the connection is gone, so no market is live. */
    disconnected() {
        for (const market of this.all()) {
            market.request = market.gap = market.askedMs = market.lateAt = null;
            market.live = false;
            market.conflateMs = market.pacedMs = 0;
        }
    }

    /** Notes that a subscribe or resume is sent. Only the ack of this request makes the markets live. */
    requested(ids, request) {
        for (const id of ids) Object.assign(this.#markets.get(id), { request, gap: null });
    }

    /** Applies the ack of the request `id`, which `Requests.take` returned. */
    acked(id, { kind, ids, conflateMs: askedMs }, { positions = {}, rejected = [], conflateMs }) {
        if (kind === 'pace') {
            const keptMs = Number(conflateMs === undefined ? askedMs : conflateMs);
            for (const market of ids) this.#paced(this.#markets.get(market), keptMs);
        }
        for (const { marketId, code } of rejected) this.#rejected(id, kind, Number(marketId), code);
        // A new token may allow a market that was refused, and an unsubscribe makes room for one.
        if (kind === 'refresh') this.#askAgain('FORBIDDEN', rejected);
        if (kind === 'unsubscribe') this.#askAgain('LIMIT_EXCEEDED', []);
        for (const [key, { epoch, seq, ts, recovered }] of Object.entries(positions)) {
            const market = this.#markets.get(Number(key));
            if (!market) continue;
            if (ts && !market.ts && Number(seq) === market.seq) market.ts = Number(ts);
            if (kind === 'learn') {
                if (!market.epoch && market.live) market.epoch = Number(epoch);
                continue;
            }
            if (market.request !== id) continue;
            market.request = null;
            market.live = true;
            // A gateway that knows no pace says none.
            this.#paced(market, Number(conflateMs) || 0);
            market.rejected = null;
            market.liveFrom = Number(seq) || 0;
            market.lateAt = market.seq < market.liveFrom ? this.#lateAt(market, market) : null;
            market.awaits = kind === 'subscribe' || !recovered;
            if (!market.awaits) market.epoch = Number(epoch);
            else if (kind === 'subscribe' && !Number(seq) && market.seq === null) {
                this.replace(market, { epoch, seq, ts: 0, payload: {} });
            }
        }
        this.#on.changed();
    }

    /** Notes the pace that the gateway keeps. The next update may still have waited for the pace before. */
    #paced(market, conflateMs) {
        if (!market) return;
        market.pacedMs = market.conflateMs;
        market.conflateMs = conflateMs;
    }

    #rejected(request, kind, id, code) {
        const market = this.#markets.get(id);
        if (!market || (kind !== 'refresh' && market.request !== request)) return;
        market.live = false;
        market.request = market.gap = market.askedMs = null;
        const isNew = market.rejected !== code;
        market.rejected = code;
        if (isNew) this.#on.event('rejected', { marketId: id, code });
    }

    /** Asks again for the markets refused with `code`, except those refused just now. */
    #askAgain(code, rejected) {
        const justNow = new Set(rejected.map(({ marketId }) => Number(marketId)));
        for (const market of this.all()) {
            if (market.rejected === code && !market.live && !justNow.has(market.id)) this.#on.ask(market.id);
        }
    }

    // ---- updates and snapshots ----

    /** Applies an update that came over the socket. `from` makes it a fold: it has all changes of the seqs after `from`. */
    updated(update) {
        const market = this.#markets.get(Number(update.marketId));
        if (!market || !market.live || market.awaits) return;
        const seq = Number(update.seq);
        const from = update.from === undefined ? seq - 1 : Number(update.from);
        if (!(from < seq)) throw new TypeError('from is not below seq');
        if (market.gap) {
            market.gap.later.push(update);
            if (market.gap.later.length > MAX_LATER) market.gap.later.shift();
        } else if (seq <= market.seq) {
            // It is known already.
        } else if (from > market.seq) {
            this.#gap(market, [update], from - market.seq);
        } else {
            market.lateAt = this.#lateAt(market, update);
            const isDone = this.apply(market, update, update.from === undefined ? null : this.#whyFold(market, from));
            if (!isDone) this.#gap(market, [], Infinity);
        }
    }

    #gap(market, later, missing) {
        market.gap = { later, tries: 0 };
        this.#on.gap(market, missing);
    }

    /** Only the folds of a resume begin before the position in its ack. */
    #whyFold({ liveFrom, conflateMs, pacedMs }, from) {
        if (from < liveFrom) return 'resumed';
        return conflateMs || pacedMs ? 'paced' : 'slow';
    }

    /** Applies a snapshot that came over the socket. Before the ack it belongs to an earlier subscription. */
    snapshot(message) {
        const market = this.#markets.get(Number(message.marketId));
        if (market && market.live) this.replace(market, message, message.conflated ? this.#lateAt(market, message) : null);
    }

    /**
     * Applies an update that continues from the market's seq, or a fold that includes it. Returns false, and changes
     * nothing, if the update patches a line that the market does not have.
     */
    apply(market, { seq, ts, payload, patch }, fold = null) {
        checkSeq(seq);
        checkLines({ payload, patch });
        const lines = merged(market.lines, payload, patch);
        if (!lines) return false;
        Object.assign(market, { seq: Number(seq), ts: Number(ts), lines, pacedMs: 0 });
        // The ack of another subscribe is the way to learn the epoch of a market's first update.
        if (!market.epoch) this.#on.ask(market.id);
        this.#changed(market, { cause: 'update', changed: Object.keys({ ...payload, ...patch }), fold });
        return true;
    }

    /** Replaces the market's state. Only a reset may go back to an earlier position. */
    replace(market, { epoch, seq, ts, payload, reset, conflated }, lateAt = null) {
        checkSeq(seq);
        checkLines({ payload });
        const to = { epoch: Number(epoch) || 0, seq: Number(seq) };
        const isKnown = market.seq !== null;
        const isEarlier = to.epoch < market.epoch || (to.epoch === market.epoch && to.seq < market.seq);
        if (isKnown && !reset && isEarlier) return;
        const isSame = isKnown && !reset && to.epoch === market.epoch && to.seq === market.seq;
        const before = market.lines;
        Object.assign(market, to, { ts: Number(ts), lines: without(payload, { ...payload }), gap: null, awaits: false, lateAt });
        if (reset) market.liveFrom = to.seq;
        if (isSame) return;
        const changed = [...new Set([...Object.keys(before), ...Object.keys(payload)])];
        this.#changed(market, { cause: 'snapshot', changed, reset: Boolean(reset), conflated: Boolean(conflated) });
    }

    #changed(market, how) {
        this.#on.changed();
        this.#on.event('change', { ...this.view(market), reset: false, conflated: false, fold: null, ...how });
    }

    // ---- freshness ----

    get stale() { return this.#stale; }

    setStale(stale) {
        if (!stale && !this.#stale) return;
        this.#stale = stale;
        this.#on.event('stale', stale);
    }

    /** Emits `fresh` for each of these markets that became fresh, or no longer is. */
    reportFresh(markets = [...this.all()]) {
        for (const market of markets) {
            const fresh = this.#isFresh(market);
            if (market.fresh === fresh) continue;
            market.fresh = fresh;
            this.#on.event('fresh', { marketId: market.id, fresh });
        }
    }

    #isFresh(market) {
        return this.#isOpen() && market.live && !market.awaits && !market.gap && market.lateAt === null
            && !this.#stale && !this.#heartbeat.isDoubtful;
    }

    /**
     * Returns now if an update is older than the gateway promises, else null. The last one that a resume replays, like the
     * state of a quiet market, is never late.
     */
    #lateAt(market, { seq, ts }) {
        const isLive = Number(seq) > market.liveFrom;
        if (Number(seq) === market.liveFrom || !(Number(ts) > 0)) return null;
        if (isLive) this.#time.updated(Number(ts));
        if (this.#time.isDoubted || this.#heartbeat.isDoubtful) return market.lateAt;
        const mostMs = LATE_MS + Math.max(market.conflateMs, market.pacedMs);
        return this.#time.serverNow() - Number(ts) > mostMs ? this.#time.now() : null;
    }

    /**
     * Trusts a market again whose last update came too late, once the socket was quick since, and long enough for a newer
     * update to come. Returns true if markets are left.
     */
    trustAgain() {
        const now = this.#time.now();
        let isLeft = false;
        for (const market of this.all()) {
            if (market.lateAt === null) continue;
            const isReplayed = market.seq >= market.liveFrom;
            if (isReplayed && this.#heartbeat.promptAt > market.lateAt && now - market.lateAt >= LATE_MS) market.lateAt = null;
            else isLeft = true;
        }
        return isLeft;
    }
}

function newMarket(id, options) {
    return {
        id,
        options, // {fold, patch, conflateMs, hiddenConflateMs}
        askedMs: null, // the pace asked for on this connection, null before
        conflateMs: 0, // the pace that the gateway keeps
        pacedMs: 0, // the pace before the last change, until the next update
        lateAt: null, // when its last update came too late, else null
        epoch: 0, // 0 until it is known
        seq: null, // null until a state is known
        ts: 0,
        lines: {},
        live: false, // its subscribe or resume was acknowledged on this connection
        awaits: false, // a snapshot was announced: no update fits before it has come
        liveFrom: 0, // the seq at which live delivery started: updates up to it were missed
        request: null, // the id of the request whose ack makes it live
        fresh: false, // as the last `fresh` event said
        gap: null, // {later, tries} while missing updates are fetched
        rejected: null,
    };
}

function checkSeq(seq) {
    if (!Number.isSafeInteger(Number(seq)) || Number(seq) < 0) throw new TypeError('no seq');
}
