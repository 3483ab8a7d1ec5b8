// Keeps the markets' states in the app's storage, so that the next run of the app can resume them.

const TIMEOUT_MS = 2000;
const SAVE_AFTER_MS = 1000;
/** How long the state of an unsubscribed market is kept. */
const KEEP_MS = 86_400_000;

export class Store {
    #time; #timers; #storage; #key; #markets; #emit;
    #states = {}; // id → {epoch, seq, ts, lines}
    #isLoaded = false;

    constructor({ time, timers, storage, key, markets, emit }) {
        this.#time = time;
        this.#timers = timers;
        this.#storage = storage;
        this.#key = key;
        this.#markets = markets;
        this.#emit = emit;
    }

    /** Returns the stored state of a market, or undefined. */
    stateOf(id) { return this.#states[id]; }

    forget(id) { delete this.#states[id]; }

    /** Reads the storage once. Restores each subscribed market that has no state yet. */
    async load() {
        if (this.#isLoaded) return;
        this.#isLoaded = true;
        if (!this.#storage) return;
        try {
            const text = await this.#timers.timeout(TIMEOUT_MS, () => this.#storage.get(this.#key));
            for (const [id, state] of Object.entries(text ? JSON.parse(text) : {})) {
                if (!isState(state)) continue;
                this.#states[id] = state;
                this.#markets.restore(Number(id), state);
            }
        } catch (error) {
            this.#emit('error', { kind: 'storage', error });
        }
    }

    saveSoon() {
        if (this.#storage && !this.#timers.has('save')) this.#timers.set('save', SAVE_AFTER_MS, () => this.save());
    }

    async save() {
        this.#timers.cancel('save');
        if (!this.#storage || !this.#isLoaded) return;
        for (const { id, epoch, seq, ts, lines, awaits } of this.#markets.all()) {
            if (seq !== null && !awaits) this.#states[id] = { epoch, seq, ts, lines };
        }
        const oldest = this.#time.serverNow() - KEEP_MS;
        for (const [id, { ts }] of Object.entries(this.#states)) {
            if (!this.#markets.get(Number(id)) && ts < oldest) delete this.#states[id];
        }
        try {
            await this.#storage.set(this.#key, JSON.stringify(this.#states));
        } catch (error) {
            this.#emit('error', { kind: 'storage', error });
        }
    }
}

function isState(state) {
    const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
    return Boolean(state && isCount(state.epoch) && isCount(state.seq) && isCount(state.ts)
        && state.lines && typeof state.lines === 'object');
}
