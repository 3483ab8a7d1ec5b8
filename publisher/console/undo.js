// Taking an override back: another one, which sets each line that it touched to how it was before.

/** line → as it was, or `null` where it was not. */
export function undo(entry) {
    return new Map([...entry.after.keys()].map((line) => [line, entry.before.get(line) ?? null]));
}

export function undoReason(entry) {
    return `undo of ${entry.auditId}`;
}

/** Those of `entries` that are later and touched a line that `entry` touched. Undoing it undoes part of them. */
export function laterOnSameLines(entry, entries) {
    const isLater = (other) => other.epoch > entry.epoch || (other.epoch === entry.epoch && other.seq > entry.seq);
    return entries.filter((other) => isLater(other) && [...other.after.keys()].some((line) => entry.after.has(line)));
}
