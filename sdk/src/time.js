// Time that passes evenly, whatever happens to the device's clock, and the server's clock in terms of it. No I/O.
//
// Where the host has a monotonic clock, the passing time is that clock's. Some of those clocks stand still while the device
// sleeps. So when the device's clock moved on by more, the difference counts as passed too. It may also be that somebody
// set the clock: then the estimate of the server's clock is wrong, and the next ping replaces it.

/** The clocks disagree if one moved this much further than the other. */
const DISAGREE_MS = 2000;
/** A running client reads its clock more often. Without a monotonic clock a longer time is as doubtful as a disagreement. */
const UNREAD_MS = 40_000;
/** An estimate of the server's clock loses this share of the time since, because clocks do not run equally fast. */
const DRIFT = 0.0002;
const ROUND_TRIPS = 8;

export class Time {
    #host;
    #wall; // the device's clock at the last reading
    #steady; // the monotonic clock at the last reading
    #passed = 0; // since the start, in ms
    #start;
    #offset = null; // the server's clock minus `now()` at its highest: each sample is too low by the time of its way
    #offsetAt = 0;
    #isTold = false; // by a ping
    #isDoubted = false; // the device's clock may have been set
    #mayReplace = true; // the next ping in time replaces the estimate
    #rtts = [];
    #leastRtt = Infinity;

    constructor(host) {
        this.#host = host;
        this.#wall = this.#start = host.now();
        this.#steady = this.#readSteady();
    }

    /** Returns the device's clock at the start plus the time that passed since, in whole ms. It never goes back. */
    now() {
        const wall = this.#host.now();
        const steady = this.#readSteady();
        const byWall = Math.max(0, wall - this.#wall);
        const bySteady = steady === null ? 0 : Math.max(0, steady - this.#steady);
        const isLeap = byWall > bySteady + (steady === null ? UNREAD_MS : DISAGREE_MS);
        if (isLeap) this.#isDoubted = true;
        const passed = isLeap || steady === null ? byWall : bySteady;
        this.#wall = wall;
        this.#steady = steady;
        this.#passed += passed;
        return Math.round(this.#start + this.#passed);
    }

    /** Returns the server's clock, as far as it is known. */
    serverNow() { return Math.round(this.now() + this.#serverOffset()); }

    /** Whether a ping has told the server's clock, and nothing has made that doubtful since. */
    get knowsServer() { return this.#isTold && !this.#isDoubted; }

    /** The server's clock minus the device's, and the round trip, in ms. Each is null until it is known. */
    get clock() {
        const rttMs = this.#rtts.length ? Math.min(...this.#rtts) : null;
        const offsetMs = this.#isTold ? Math.round(this.serverNow() - this.#host.now()) : null;
        return { offsetMs, rttMs };
    }

    /**
     * Notes the server's time in its ping. `isPrompt`: the connection is quick, so the ping is no older than that. Returns
     * true if the server's clock was not known before.
     */
    pinged(ts, isPrompt) {
        const isNews = !this.knowsServer;
        if (isPrompt && this.#mayReplace) {
            this.#offset = null;
            this.#isDoubted = this.#mayReplace = false;
        }
        this.#isTold = true;
        this.#sample(ts);
        return isNews && this.knowsServer;
    }

    /** Notes the time of a live update, which tells the server's clock until a ping in time does. */
    updated(ts) { if (this.#mayReplace) this.#sample(ts); }

    /** Notes a round trip in ms. */
    roundTrip(ms) {
        this.#rtts.push(ms);
        if (this.#rtts.length > ROUND_TRIPS) this.#rtts.shift();
        this.#leastRtt = Math.min(this.#leastRtt, ms);
    }

    /** Notes a freeze of the app. Without a monotonic clock it may be that somebody set the device's clock. */
    frozen() { if (this.#steady === null) this.#isDoubted = true; }

    /** Notes that nothing that comes from now on has waited in a buffer during a freeze. */
    caughtUp() { if (this.#isDoubted) this.#mayReplace = true; }

    /** Whether the device's clock may have been set since the server's was last told. */
    get isDoubted() { return this.#isDoubted; }

    #readSteady() { return this.#host.monotonic ? this.#host.monotonic() : null; }

    #serverOffset() {
        if (this.#offset === null) return 0;
        return this.#offset + (this.#leastRtt === Infinity ? 0 : this.#leastRtt / 2);
    }

    #sample(ts) {
        const now = this.now();
        const aged = this.#offset === null ? -Infinity : this.#offset - (now - this.#offsetAt) * DRIFT;
        this.#offset = Math.max(aged, Number(ts) - now);
        this.#offsetAt = now;
    }
}
