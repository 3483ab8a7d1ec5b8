// Undoes an override by another one, which sets each line that it changed to its state before.

/** Returns the payload that undoes an audit entry: line → its state before, or null if it did not exist. */
export function undo(entry) {
    return new Map([...entry.after.keys()].map((line) => [line, entry.before.get(line) ?? null]));
}

export function undoReason(entry) {
    return `undo of ${entry.auditId}`;
}

/** Returns those of `entries` that changed a line of `entry` later. To undo `entry` undoes them as well. */
export function laterOnSameLines(entry, entries) {
    const isLater = (other) => other.epoch > entry.epoch || (other.epoch === entry.epoch && other.seq > entry.seq);
    return entries.filter((other) => isLater(other) && [...other.after.keys()].some((line) => entry.after.has(line)));
}
