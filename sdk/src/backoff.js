// How long a client waits before it connects again. No I/O.

const BACKOFF_MS = 500;
export const BACKOFF_MAX_MS = 30_000;
/** Of the first retries after a cut, this share falls into the first `SOON_MS`: a lone client is back within a second. */
const SOON_SHARE = 0.6;
const SOON_MS = 800;
/** The other first retries spread up to here, because a cut may have hit every client of a gateway at once. */
const SPREAD_MS = 3000;

/** Returns a wait with full jitter, which doubles with each attempt since the last lasting connection. 0 ≤ `random` < 1. */
export function backoffMs(attempts, random) {
    return random * Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** attempts);
}

/**
 * Returns the wait before the first retry after a cut that was not the client's own doing: uniform over the first 800 ms
 * with probability 0.6, else uniform from there to 3 s. The median is 667 ms.
 */
export function firstRetryMs(random) {
    if (random < SOON_SHARE) return SOON_MS * random / SOON_SHARE;
    return SOON_MS + (SPREAD_MS - SOON_MS) * (random - SOON_SHARE) / (1 - SOON_SHARE);
}
