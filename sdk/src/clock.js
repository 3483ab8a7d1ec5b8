// The members of a host that need no platform API beyond timers.

const steady = typeof performance === 'undefined' ? null : performance;

/** Time, randomness and timers. Not every mini-program has a monotonic clock. */
export const clock = {
    now: () => Date.now(),
    ...(steady && steady.now && { monotonic: () => steady.now() }),
    random: () => Math.random(),
    setTimeout: (run, ms) => setTimeout(run, ms),
    clearTimeout: (timer) => clearTimeout(timer),
};
