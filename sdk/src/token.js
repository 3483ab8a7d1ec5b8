// The client's token: asks the app's provider for it, and knows how long it lasts.

/** A failed refresh is retried after this. A younger token is not suspected when a handshake fails. */
export const RETRY_TOKEN_MS = 10_000;
const REFRESH_BEFORE_MS = 60_000;
const LEAST_LEFT_MS = 5000;
const PROVIDER_TIMEOUT_MS = 15_000;
/** How long a token is used that says only when it expires, and by the device's clock has expired already. */
const LEAST_TTL_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

export class TokenHolder {
    #time; #timers; #provider;
    #token = null; // {text, expiresAt?, ttl?, receivedAt}

    constructor({ time, timers, provider }) {
        this.#time = time;
        this.#timers = timers;
        this.#provider = provider;
    }

    /** Returns the token, or a new one from the provider if it expires within `LEAST_LEFT_MS`. */
    async fresh() {
        const token = this.#token;
        if (token && this.#leftMs(token) > LEAST_LEFT_MS) return token.text;
        this.#token = null;
        const given = await this.#timers.timeout(PROVIDER_TIMEOUT_MS, () => this.#provider());
        const text = typeof given === 'string' ? given : given && given.token;
        if (typeof text !== 'string' || !text) throw new TypeError('the token provider returned no token');
        const claims = claimsOf(text);
        const expiresAt = given.expiresAt || (claims.exp && claims.exp * 1000);
        this.#token = { text, expiresAt, ttl: (claims.exp - claims.iat) * 1000 || 0, receivedAt: this.#time.now() };
        return text;
    }

    forget() { this.#token = null; }

    /** Time since the provider returned the token, in ms; null without a token. */
    get ageMs() { return this.#token && this.#time.now() - this.#token.receivedAt; }

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
