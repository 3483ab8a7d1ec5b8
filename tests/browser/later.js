// What a test started ends in reverse: a page before the gateway it looks at, and that before its Redis.

const ends = new WeakMap();

/** Has `end` run after the test `t`, before everything that was given here earlier. */
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
