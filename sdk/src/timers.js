// Named timers. A second timer of the same name replaces the first.

/** A timer that fires this late shows that the app was frozen, so the silence until then proves nothing. */
const LATE_MS = 2000;

export class Timers {
    #host; #time;
    #cancels = new Map(); // name → cancel

    constructor({ host, time }) {
        this.#host = host;
        this.#time = time;
    }

    has(name) { return this.#cancels.has(name); }

    /** Runs `run` once, in `ms`. Passes whether the timer fired late. */
    set(name, ms, run) {
        this.cancel(name);
        const due = this.#time.now() + ms;
        const timer = this.#host.setTimeout(() => {
            this.#cancels.delete(name);
            const isLate = this.#time.now() - due > LATE_MS;
            if (isLate) this.#time.frozen();
            run(isLate);
        }, ms);
        this.#cancels.set(name, () => this.#host.clearTimeout(timer));
    }

    cancel(name) {
        const cancel = this.#cancels.get(name);
        this.#cancels.delete(name);
        if (cancel) cancel();
    }

    cancelAll() { [...this.#cancels.keys()].forEach((name) => this.cancel(name)); }

    /** Resolves with the result of `run`, or rejects after `ms`. Ignores a result or an error that comes later. */
    timeout(ms, run) {
        return new Promise((resolve, reject) => {
            const timer = this.#host.setTimeout(() => reject(new Error(`timed out after ${ms} ms`)), ms);
            new Promise((settle) => { settle(run()); }).then(resolve, reject).then(() => this.#host.clearTimeout(timer));
        });
    }
}
