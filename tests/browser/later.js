// Ends what a test started in reverse order: a page before its gateway, and the gateway before its Redis.

const ends = new WeakMap();

/** Runs `end` after the test `t`, before every function that was passed earlier. */
export function later(t, end) {
    if (!ends.has(t)) {
        const stack = [];
        ends.set(t, stack);
        t.after(async () => {
            const errors = [];
            while (stack.length) await stack.pop()().catch((error) => errors.push(error));
            if (errors.length) throw errors[0];
        });
    }
    ends.get(t).push(async () => end());
}
