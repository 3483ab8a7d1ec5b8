// Pings and pongs: they show whether the socket is alive, how long a round trip takes and how far the clocks differ.

const PROBE_AFTER_MS = 25_000;
const PROBE_TICKS = 3;
const PING_EVERY_MS = 30_000;
const CLOCK_SAMPLES = 8;

export class Heartbeat {
    #now; #send;
    #heardAt = 0;
    #pingedAt = 0;
    #probing = 0; // ticks since an unanswered probe, from 1; 0 without one
    #offsets = [];
    #rtts = [];

    constructor({ now, send }) {
        this.#now = now;
        this.#send = send;
    }

    /** The server's clock minus the host's, and the round trip, in ms. Each is null until it is known. */
    get clock() {
        const rttMs = this.#rtts.length ? Math.min(...this.#rtts) : null;
        // Each sample is too low by the time from server to client, so the highest sample is the best.
        const offsetMs = this.#offsets.length ? Math.max(...this.#offsets) + (rttMs || 0) / 2 : null;
        return { offsetMs, rttMs };
    }

    /** Notes a sign of life: any message, or a new connection. */
    heard() {
        this.#heardAt = this.#now();
        this.#probing = 0;
    }

    /** Sends a ping when one is due. Returns false if the socket is dead. `late`: the app was frozen until now. */
    tick(late) {
        const now = this.#now();
        if (late) this.probe();
        else if (this.#probing && ++this.#probing > PROBE_TICKS) return false;
        else if (!this.#probing && now - this.#heardAt >= PROBE_AFTER_MS) this.probe();
        else if (now - this.#pingedAt >= PING_EVERY_MS) this.ping();
        return true;
    }

    /** Asks for a sign of life. Only ticks that come in time after this can declare the socket dead. */
    probe() {
        this.#probing = 1;
        this.ping();
    }

    ping() {
        this.#pingedAt = this.#now();
        this.#send({ type: 'ping', ts: this.#pingedAt });
    }

    /** Notes the server's time in its ping. */
    pinged(ts) { keep(this.#offsets, Number(ts) - this.#now()); }

    /** Notes the round trip of a pong. Ignores a pong to an earlier ping: it may have waited while the app was frozen. */
    ponged(ts) {
        if (Number(ts) === this.#pingedAt) keep(this.#rtts, Math.max(0, this.#now() - this.#pingedAt));
    }
}

function keep(samples, sample) {
    samples.push(sample);
    if (samples.length > CLOCK_SAMPLES) samples.shift();
}
