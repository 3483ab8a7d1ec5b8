// Pings and pongs: they show whether the socket is alive, how quick it is, and whether the app was frozen.

/** How often `tick` must be called. */
export const TICK_MS = 5000;
/**
 * A price that came this late is not fresh, and none is while a ping is unanswered for this long. Three seconds
 * are for the way to a slow device, two for clocks that differ.
 */
export const LATE_MS = 5000;
/** An app that did not run for this long, which is later than any tick, was frozen. */
const FROZEN_MS = TICK_MS + 2000;
const AGAIN_MS = 2000;
const PROBE_AFTER_MS = 25_000;
const PROBE_TICKS = 3;
const PING_EVERY_MS = 30_000;

export class Heartbeat {
    #time; #send; #doubted;
    #ranAt = 0;
    #heardAt = 0;
    #pingedAt = 0;
    #unanswered = []; // when the pings were sent that have no pong yet
    #promptAt = 0; // when the last ping was sent whose pong came in time
    #isPrompt = false; // whether the last pong came in time
    #doubtedAt = null;
    #probing = 0; // ticks since an unanswered probe, from 1; 0 without one

    /** `doubted()` is called when `isDoubtful` becomes true for a reason other than the passing time. */
    constructor({ time, send, doubted }) {
        this.#time = time;
        this.#send = send;
        this.#doubted = doubted;
    }

    /**
     * Whether prices may be old although the socket is open: from a freeze until the answer to the ping after it, and
     * while an answer takes too long.
     */
    get isDoubtful() {
        const [since = Infinity] = this.#unanswered;
        return this.#doubtedAt !== null || this.#wasFrozen || this.#time.now() - since > LATE_MS;
    }

    /** A moment at which the socket was quick: what the server sent before it has come since. */
    get promptAt() { return this.#promptAt; }

    get #wasFrozen() { return this.#time.now() - this.#ranAt > FROZEN_MS; }

    /** Starts over with a new connection. */
    opened() {
        this.#ranAt = this.#heardAt = this.#time.now();
        this.#promptAt = this.#probing = 0;
        this.#unanswered = [];
        this.#isPrompt = false;
        this.#doubtedAt = null;
        this.#time.caughtUp();
    }

    /** Notes a sign of life: any message. After a freeze it may have waited in a buffer. */
    heard() {
        if (this.#wasFrozen) this.doubt();
        this.#ranAt = this.#heardAt = this.#time.now();
        this.#probing = 0;
    }

    /** Sends a ping when one is due. Returns false if the socket is dead. `late`: the app was frozen until now. */
    tick(late) {
        const wasFrozen = this.#wasFrozen;
        const now = this.#ranAt = this.#time.now();
        if (late || wasFrozen) this.doubt();
        else if (this.#probing && ++this.#probing > PROBE_TICKS) return false;
        else if (!this.#probing && now - this.#heardAt >= PROBE_AFTER_MS) this.#probe();
        else if (now - this.#pingedAt >= PING_EVERY_MS) this.ping();
        return true;
    }

    /** Asks for a sign of life because the app or the network has come back. */
    wake() {
        if (this.#wasFrozen || this.#doubtedAt !== null) this.doubt();
        else this.#probe();
    }

    /** Asks for a sign of life. No market is fresh before it comes. */
    doubt() {
        const now = this.#ranAt = this.#time.now();
        if (this.#doubtedAt !== null && now - this.#doubtedAt < AGAIN_MS) return;
        this.#time.frozen();
        this.#probe();
        this.#doubtedAt = this.#pingedAt;
        this.#doubted();
    }

    /** Only ticks that come in time after this can declare the socket dead. */
    #probe() {
        this.#probing = 1;
        this.ping();
    }

    ping() {
        this.#pingedAt = this.#time.now();
        this.#unanswered.push(this.#pingedAt);
        this.#send({ type: 'ping', ts: this.#pingedAt });
    }

    /** Notes the server's time in its ping. Returns true if the server's clock was not known before. */
    pinged(ts) { return this.#time.pinged(Number(ts), this.#isPrompt && !this.isDoubtful); }

    /** Notes the round trip of a pong. A pong to a ping before a freeze has waited for its end. */
    ponged(ts) {
        const pingedAt = Number(ts);
        if (!this.#unanswered.includes(pingedAt)) return;
        this.#unanswered = this.#unanswered.filter((other) => other > pingedAt);
        if (this.#doubtedAt !== null && pingedAt < this.#doubtedAt) return;
        if (this.#doubtedAt !== null) this.#time.caughtUp();
        this.#doubtedAt = null;
        const rtt = this.#time.now() - pingedAt;
        this.#isPrompt = rtt <= LATE_MS;
        if (this.#isPrompt) this.#promptAt = pingedAt;
        this.#time.roundTrip(rtt);
    }
}
