// Runs a function at an interval, one call at a time. Pauses while the page is hidden.

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

    /** Runs the function at once, unless a call is under way. */
    async now() {
        if (this.#isRunning || !this.#isOn || document.hidden) return;
        clearTimeout(this.#timer);
        this.#isRunning = true;
        // An error must not end the polling.
        try { await this.#run(); } catch (error) { reportError(error); }
        this.#isRunning = false;
        if (this.#isOn) this.#timer = setTimeout(() => this.now(), this.#every);
    }
}
