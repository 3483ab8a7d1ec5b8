// Follows a resume until every market has caught up, and counts markets, updates and resets.

export class Resume {
    #open = new Map(); // id → the seq up to which the market is replayed
    #report = null;

    /**
     * Takes the ack of a resume, `[{id, seq, recovered}]`, and `seqOf(id)`, the seq that the board had. Like the other
     * methods it returns the report when the resume is complete, else null. The report counts `markets`, `replayed`
     * updates and `resets`, and lists the markets that `moved`: `[{id, from, to}]`, in seqs.
     */
    begin(positions, seqOf) {
        this.#open.clear();
        this.#report = { markets: positions.length, replayed: 0, resets: 0, moved: [] };
        for (const { id, seq, recovered } of positions) {
            const had = seqOf(id) ?? 0;
            if (positions.length === 1 || seq !== had) this.#report.moved.push({ id, from: had, to: seq });
            if (!recovered || seq > had) this.#open.set(id, seq);
        }
        return this.#end();
    }

    /** Takes a change of a market. */
    change({ marketId, seq, cause }) {
        const to = this.#open.get(marketId);
        if (to === undefined) return null;
        if (cause === 'update') this.#report.replayed += 1;
        else this.#report.resets += 1;
        if (cause !== 'update' || seq >= to) this.#open.delete(marketId);
        return this.#end();
    }

    /** Stops waiting for this market. */
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
