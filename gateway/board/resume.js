// Follows a resume to its end: how much was replayed, to how many markets, and whether a number was missing.

export class Resume {
    #open = new Map(); // id → the seq at which it has everything that it missed
    #report = null;

    /**
     * `answers`: the ack's `{id, seq, recovered}`; `seqOf`: what the board had. Answers with the report if that is all:
     * how many `markets`, updates `replayed` and `resets`, and of those that `moved`, from which seq to which.
     */
    begin(answers, seqOf) {
        this.#open.clear();
        this.#report = { markets: answers.length, replayed: 0, resets: 0, moved: [] };
        for (const { id, seq, recovered } of answers) {
            const had = seqOf(id) ?? 0;
            if (answers.length === 1 || seq !== had) this.#report.moved.push({ id, from: had, to: seq });
            if (!recovered || seq > had) this.#open.set(id, seq);
        }
        return this.#end();
    }

    /** What a market's change means for it; the report if that was the last one. */
    change({ marketId, seq, cause }) {
        const to = this.#open.get(marketId);
        if (to === undefined) return null;
        if (cause === 'update') this.#report.replayed += 1;
        else this.#report.resets += 1;
        if (cause !== 'update' || seq >= to) this.#open.delete(marketId);
        return this.#end();
    }

    /** A market that nobody waits for any more. */
    forget(marketId) {
        this.#open.delete(marketId);
        return this.#end();
    }

    #end() {
        if (this.#open.size || !this.#report) return null;
        const report = this.#report;
        this.#report = null;
        return report;
    }
}
