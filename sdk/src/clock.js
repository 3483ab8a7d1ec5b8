// What the hosts share.

const steady = typeof performance === 'undefined' ? null : performance;

/** Time, randomness and timers. Not every mini-program has a monotonic clock. */
export const clock = {
    now: () => Date.now(),
    ...(steady && steady.now && { monotonic: () => steady.now() }),
    random: () => Math.random(),
    setTimeout: (run, ms) => setTimeout(run, ms),
    clearTimeout: (timer) => clearTimeout(timer),
};

/** Returns the HTTP status in a platform's text about a failed handshake, such as "Unexpected server response: 401". */
export function statusIn(text) {
    const [, status] = /(?:response|status)\D{0,40}\b([45]\d\d)\b/i.exec(text || '') || [];
    return status && Number(status);
}
