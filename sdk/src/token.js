// The client's token: asks the app's provider for it, and knows how long it lasts.

/** A failed refresh is retried after this. */
export const RETRY_TOKEN_MS = 10_000;
const REFRESH_BEFORE_MS = 60_000;
const LEAST_LEFT_MS = 5000;
/** A token is suspected at most this often. A younger one is never dropped without a refusal. */
const SUSPECT_EVERY_MS = 180_000;
const PROVIDER_TIMEOUT_MS = 15_000;
/** How long a token is used that says only when it expires, and by the device's clock has expired already. */
const LEAST_TTL_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

export class TokenHolder {
    #time; #timers; #provider;
    #token = null; // {text, expiresAt?, ttl?, receivedAt, isProven}
    #asked = null; // the provider's promise
    #suspectedAt = -Infinity;

    constructor({ time, timers, provider }) {
        this.#time = time;
        this.#timers = timers;
        this.#provider = provider;
    }

    /** Returns the token, or a new one from the provider if it expires within `LEAST_LEFT_MS`. */
    async fresh() {
        const token = this.#token;
        return token && this.#leftMs(token) > LEAST_LEFT_MS ? token.text : this.renew();
    }

    /** Returns a new token. Who calls while the provider is asked gets the same one. */
    renew() {
        if (!this.#asked) {
            const done = () => { this.#asked = null; };
            this.#asked = this.#ask();
            this.#asked.then(done, done);
        }
        return this.#asked;
    }

    async #ask() {
        const given = await this.#timers.timeout(PROVIDER_TIMEOUT_MS, () => this.#provider());
        const text = typeof given === 'string' ? given : given && given.token;
        if (typeof text !== 'string' || !text) throw new TypeError('the token provider returned no token');
        const claims = claimsOf(text);
        const expiresAt = given.expiresAt || (claims.exp && claims.exp * 1000);
        this.#token = { text, expiresAt, ttl: (claims.exp - claims.iat) * 1000 || 0, receivedAt: this.#time.now(), isProven: false };
        return text;
    }

    /** Drops the token, unless another one has replaced `text`. */
    forget(text = this.#token && this.#token.text) {
        if (this.#token && this.#token.text === text) this.#token = null;
    }

    /** Notes that the gateway accepted the token. */
    proven() { if (this.#token) this.#token.isProven = true; }

    /**
     * Finds out whether the token is why `failures` handshakes in a row failed, if the platform did not say. `check(text)`
     * resolves with the HTTP status of a request with this token, or rejects. Does so at once for a token that was never
     * accepted, else from the second failure on, and at most every `SUSPECT_EVERY_MS`. Drops a token that is refused,
     * and, if there is no telling, an old one. Returns the error to report, or null.
     */
    async suspect(failures, check) {
        const token = this.#token;
        const now = this.#time.now();
        if (!token || (token.isProven && failures < 2) || now - this.#suspectedAt < SUSPECT_EVERY_MS) return null;
        this.#suspectedAt = now;
        const status = await this.#timers.timeout(PROVIDER_TIMEOUT_MS, () => check(token.text)).catch(() => 0);
        if (status && status !== 401) return null;
        if (status || now - token.receivedAt >= SUSPECT_EVERY_MS) this.forget(token.text);
        return status ? refusal('401')
            : { kind: 'socket', error: new Error('handshakes fail, and the platform does not say why: the token may be bad') };
    }

    /** Returns in how many ms, at least `leastMs`, the token should be refreshed; null if it does not expire. */
    refreshInMs(leastMs) {
        const leftMs = this.#token ? this.#leftMs(this.#token) : Infinity;
        if (leftMs === Infinity) return null;
        const early = Math.min(REFRESH_BEFORE_MS, leftMs / 5);
        return Math.min(Math.max(leftMs - early, leastMs, 0), MAX_TIMER_MS);
    }

    /**
     * Time until a token expires, in ms. Counts from its arrival if the server's clock is not known and the device's is
     * plainly wrong.
     */
    #leftMs({ expiresAt, ttl, receivedAt }) {
        if (!expiresAt) return Infinity;
        if (this.#time.knowsServer) return expiresAt - this.#time.serverNow();
        const now = this.#time.now();
        const atFirst = expiresAt - receivedAt;
        const isPlausible = atFirst > 0 && atFirst <= (ttl || Infinity) + 5000;
        return (isPlausible ? atFirst : ttl || LEAST_TTL_MS) - (now - receivedAt);
    }
}

/** Returns the `error` event for a token that the gateway refused. */
export const refusal = (why) => ({ kind: 'token', error: new Error(`the gateway refused the token: ${why}`) });

/** Returns `exp` and `iat` of a JWT, or NaN for any other text. (Mini-programs have no `atob`.) */
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
