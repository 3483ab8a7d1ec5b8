// Does something again and again, one at a time, and rests while nobody looks.

export class Poller {
    #run; #every; #timer = null; #isOn = false; #isRunning = false;

    constructor(run, everyMs) {
        this.#run = run;
        this.#every = everyMs;
        document.addEventListener('visibilitychange', () => { if (!document.hidden) this.now(); });
    }

    start() {
        this.#isOn = true;
        this.now();
    }

    stop() {
        this.#isOn = false;
        clearTimeout(this.#timer);
    }

    /** At once, unless it is under way. */
    async now() {
        if (this.#isRunning || !this.#isOn || document.hidden) return;
        clearTimeout(this.#timer);
        this.#isRunning = true;
        // Whatever is wrong once may be right the next time.
        try { await this.#run(); } catch (error) { reportError(error); }
        this.#isRunning = false;
        if (this.#isOn) this.#timer = setTimeout(() => this.now(), this.#every);
    }
}
