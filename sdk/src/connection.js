// The connection to the gateway, as one state machine: when to connect, when to give a socket up, and how long to wait
// before the next attempt.
//
//   idle ──start──► connecting ──open──► open ──close──► waiting ──backoff──► connecting …
//                        ▲                                  │ hidden (hosts that pause): paused until shown
//                        └──────────── online, shown ───────┘ a close code of STOP: stopped until start
//
// Each attempt has a generation. Events of a socket of an earlier generation are ignored.

import { BACKOFF_MAX_MS, backoffMs, firstRetryMs } from './backoff.js';
import { TICK_MS } from './heartbeat.js';
import { refusal } from './token.js';

/** Close codes that end reconnecting: docs/protocol.md#close-codes. sdk/test/close-codes.test.js compares the two. */
const STOP = new Set([1002, 1003, 1007, 1009, 4403]);
/** The least wait before a reconnect, by close code. Holds when no `bye` said a longer one. */
const LEAST_WAIT_MS = { 1013: 1000, 4409: 1000, 4429: 5000 };
/** A connection that lasted this long resets the backoff. */
const STABLE_MS = 10_000;
const CONNECT_TIMEOUT_MS = 15_000;
/** How long the close may take to follow a `bye`. */
const BYE_TIMEOUT_MS = 5000;
const BYE_AFTER_MAX_MS = 600_000;
/** Below the server's default MESSAGE_BURST (20) and MESSAGE_RATE (5 per second). */
const BURST = 15;
const RATE = 4;

/** When `maySend` is false, another message may be sent after this. */
export const SEND_AGAIN_MS = 1000 / RATE;

export class Connection {
    #host; #time; #url; #tokenIn; #timers; #heartbeat; #token; #on;
    #state = 'idle';
    #generation = 0;
    #socket = null;
    #bye = null;
    #openedAt = 0;
    #failures = 0; // handshakes in a row that failed without a reason
    #attempts = 0; // since the last connection that lasted
    #notBefore = 0; // the end of the wait that the server asked for
    #isHidden = false;
    #isOffline = false;
    #unwatch = null;
    #permits = BURST; // messages that may be sent at once
    #permitsAt = 0;

    /**
     * `on` has the callbacks:
     * - `prepare()` returns a promise that each attempt waits for before it asks for a token.
     * - `opening()` and `opened()` are called before and after the state changes to open.
     * - `message(text)` receives each message of the current socket.
     * - `tick()` is called every few seconds while the connection is open.
     * - `dropped()` is called when the current socket is given up, whatever the reason.
     * - `hidden()` and `shown()` are called when the app goes to the background and when it is back.
     * - `state(event)` and `error(event)` receive the events of these types.
     */
    constructor({ host, time, url, tokenIn, timers, heartbeat, token, on }) {
        this.#host = host;
        this.#time = time;
        this.#url = url;
        this.#tokenIn = tokenIn;
        this.#timers = timers;
        this.#heartbeat = heartbeat;
        this.#token = token;
        this.#on = on;
    }

    get state() { return this.#state; }

    get generation() { return this.#generation; }

    start() {
        if (this.#state !== 'idle' && this.#state !== 'stopped' && this.#state !== 'closed') return;
        this.#attempts = 0;
        if (!this.#unwatch && this.#host.watch) {
            this.#isHidden = this.#isOffline = false; // changes that came after `close` were missed
            this.#on.shown();
            this.#unwatch = this.#host.watch({
                shown: () => this.#shown(),
                hidden: () => this.#hidden(),
                online: () => this.#online(),
                offline: () => this.#offline(),
            });
        }
        this.#connect();
    }

    close() {
        if (this.#unwatch) this.#unwatch();
        this.#unwatch = null;
        this.#drop();
        this.#become('closed');
    }

    async #connect() {
        const generation = this.#drop();
        if (this.#isPaused) return this.#become('paused');
        this.#become('connecting');
        try {
            await this.#on.prepare();
            const token = await this.#token.fresh();
            if (generation !== this.#generation) return;
            this.#open(generation, token);
        } catch (error) {
            if (generation !== this.#generation) return;
            this.#on.error({ kind: 'token', error });
            this.#wait({ code: 0, reason: 'TOKEN' });
        }
    }

    #open(generation, token) {
        const current = (run) => (...args) => { if (generation === this.#generation) run(...args); };
        const isInQuery = this.#tokenIn === 'query';
        const url = `${this.#url.replace(/^http/, 'ws')}/ws/odds${isInQuery ? `?token=${encodeURIComponent(token)}` : ''}`;
        const limit = () => this.#timers.set('connect', CONNECT_TIMEOUT_MS, (late) => {
            // After a freeze the response may be waiting already.
            if (late) limit(); else this.#giveUp('CONNECT_TIMEOUT');
        });
        limit();
        let socket = null;
        try {
            socket = this.#host.open(url, isInQuery ? [] : ['kmarket.v1', `token.${token}`], {
                open: current(() => this.#opened()),
                message: current((text) => this.#heard(text)),
                close: current((code, reason, status) => this.#closed(code, reason, { status })),
            });
        } catch (error) {
            this.#on.error({ kind: 'socket', error });
            if (generation === this.#generation) this.#giveUp('CANNOT_CONNECT');
            return;
        }
        // A host may report the failure before it returns the socket.
        if (generation === this.#generation) this.#socket = socket;
        else safely(() => socket.close(1000));
    }

    #opened() {
        if (this.#state !== 'connecting') return;
        this.#timers.cancel('connect');
        this.#openedAt = this.#permitsAt = this.#time.now();
        this.#permits = BURST;
        this.#failures = 0;
        this.#token.proven();
        this.#heartbeat.opened();
        this.#on.opening();
        this.#become('open');
        this.#on.opened();
        this.#heartbeat.ping();
        this.#tickSoon();
    }

    #heard(text) {
        // Some hosts deliver a message before they report that the socket is open.
        if (this.#state === 'connecting') this.#opened();
        this.#heartbeat.heard();
        this.#on.message(text);
    }

    /** Ends what is left of the last connection: its timers, its socket, its requests. Returns the new generation. */
    #drop() {
        this.#timers.cancelAll();
        const socket = this.#socket;
        this.#socket = null;
        this.#bye = null;
        this.#on.dropped();
        this.#generation += 1;
        if (socket) safely(() => socket.close(1000));
        return this.#generation;
    }

    /** Expects the close that follows a `bye`. What the bye says overrides the close code that arrives. */
    bye({ code, reason, reconnect, afterMs }) {
        this.#bye = { code: Number(code), reason, reconnect, afterMs: Math.min(Number(afterMs) || 0, BYE_AFTER_MAX_MS) };
        this.#timers.set('bye', BYE_TIMEOUT_MS, () => this.#giveUp('NO_CLOSE'));
    }

    /** Ends a connection by the client's own decision. */
    #giveUp(reason) { this.#closed(1006, reason, { isOwn: true }); }

    /** `status`: the HTTP status with which the handshake was refused, if the platform tells. */
    #closed(code, reason, { status = 0, isOwn = false } = {}) {
        const wasOpen = this.#state === 'open';
        const bye = this.#bye;
        if (bye) ({ code, reason } = bye);
        this.#drop();
        if (bye ? bye.reconnect === false : STOP.has(code)) {
            this.#become('stopped', { code, reason });
            return;
        }
        if (code === 4401 || status === 401) {
            this.#token.forget();
            this.#on.error(refusal(`${status || code} ${reason || ''}`));
        } else if (!wasOpen && !isOwn && !status && !this.#isOffline) {
            this.#suspectToken();
        }
        if (wasOpen && this.#time.now() - this.#openedAt >= STABLE_MS) this.#attempts = 0;
        const afterMs = Math.max((bye && bye.afterMs) || 0, LEAST_WAIT_MS[code] || 0);
        // A gateway that says when to come back spreads its clients itself.
        this.#wait({ code, reason, afterMs, isCut: wasOpen && !isOwn && !bye && !afterMs });
    }

    /** A browser does not say why a handshake failed: it may have been a 401. */
    async #suspectToken() {
        this.#failures += 1;
        const url = `${this.#url.replace(/^ws/, 'http')}/ws/odds`;
        const error = await this.#token.suspect(this.#failures, (token) => this.#host.check(url, token));
        if (error) this.#on.error(error);
    }

    /** Waits `afterMs` and a random time, then connects. `isCut`: the connection ended, and the client did not end it. */
    #wait({ code, reason, afterMs = 0, isCut = false }) {
        if (this.#isPaused) return this.#become('paused', { code, reason });
        const random = this.#host.random();
        const backoff = isCut && !this.#attempts ? firstRetryMs(random) : backoffMs(this.#attempts, random);
        this.#attempts += 1;
        const retryInMs = afterMs + (this.#isOffline ? BACKOFF_MAX_MS : backoff);
        this.#notBefore = this.#time.now() + afterMs;
        this.#become('waiting', { code, reason, retryInMs });
        this.#timers.set('retry', retryInMs, () => this.#connect());
    }

    /** Connects at once, or as soon as the server allows, because the app or the network has come back. */
    #hurry() {
        if (this.#state === 'open') this.#heartbeat.wake();
        if (this.#state !== 'waiting' && this.#state !== 'paused') return;
        this.#attempts = 0;
        const least = Math.max(0, Math.min(this.#notBefore - this.#time.now(), BACKOFF_MAX_MS));
        if (!least) { this.#connect(); return; }
        this.#become('waiting', { code: 0, reason: 'ASKED_TO_WAIT', retryInMs: least });
        this.#timers.set('retry', least, () => this.#connect());
    }

    get #isPaused() { return this.#isHidden && Boolean(this.#host.pausesInBackground); }

    #shown() { this.#isHidden = false; this.#on.shown(); this.#hurry(); }

    #hidden() { this.#isHidden = true; this.#on.hidden(); }

    #online() { this.#isOffline = false; this.#hurry(); }

    #offline() {
        this.#isOffline = true;
        if (this.#state === 'open') this.#heartbeat.doubt();
        if (this.#state === 'waiting') this.#timers.set('retry', BACKOFF_MAX_MS, () => this.#connect());
    }

    #tickSoon() {
        this.#timers.set('tick', TICK_MS, (late) => {
            if (!this.#heartbeat.tick(late)) return this.#giveUp('SILENT');
            this.#tickSoon();
            this.#on.tick();
        });
    }

    /** Whether the server's rate limit allows another message. Pings and pongs are sent even if it does not. */
    maySend() {
        const now = this.#time.now();
        this.#permits = Math.min(BURST, this.#permits + Math.max(0, now - this.#permitsAt) * RATE / 1000);
        this.#permitsAt = now;
        return this.#permits >= 1;
    }

    /** Makes `maySend` false for a moment, because the server refused a message that came too fast. */
    slowDown() { this.#permits = 0; }

    send(message) {
        if (this.#state !== 'open' || !this.#socket) return;
        this.#permits -= 1;
        try {
            this.#socket.send(JSON.stringify(message));
        } catch (error) {
            // Its close event follows, or the next probe finds the socket dead.
            this.#on.error({ kind: 'socket', error });
        }
    }

    #become(state, why = {}) {
        if (this.#state === state && state !== 'waiting') return;
        this.#state = state;
        this.#on.state({ state, ...why });
    }
}

function safely(run) {
    try { run(); } catch { /* the socket is gone already */ }
}
