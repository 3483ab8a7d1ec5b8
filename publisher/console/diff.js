// Drafts of overrides: what a draft would change, as rows of before and after, and the payload that changes it. A payload
// carries each changed line whole. The limits repeat those of the publisher: docs/protocol.md#rules-of-an-override.

import { PRICED, isLarge, movedBy, oddsProblem } from './decimal.js';
import { Decimal, NUMBER, show, write } from './json.js';

export const MAX_REASON = 500;
const MAX_LINES = 32;
const MAX_PAYLOAD_BYTES = 16 * 1024;
const MAX_NAME = 64;

/** The override that a trader is typing for one market. */
export class Draft {
    static #count = 0;

    id = Draft.#count += 1;
    /**
     * Line → `{cells, extra, isRemoved, replaced}`: typed texts by selection, new selections `[{name, value}]`, and, if
     * it is set, the new line as a whole (null: removed).
     */
    edits = new Map();
    /** New lines: `[{name, extra}]`. */
    added = [];
    /** Line → its JSON text when the trader began to edit it, null if it did not exist. */
    seen = new Map();
    reason = '';
    /** The id of the audit entry that this draft undoes, and the later entries that it would undo as well. */
    undoOf = null;
    later = [];

    // Sending, by sender.js.
    isTried = false; // the trader has tried to send it
    isBusy = false; // a request is under way
    pending = null; // {body, key} of the request that may be repeated
    failed = null; // why the last attempt failed

    /** Returns the edit of an existing line. Begins one if there is none. */
    of(line, lines) {
        if (!this.edits.has(line)) {
            this.edits.set(line, { cells: new Map(), extra: [], isRemoved: false });
            this.#see(line, lines);
        }
        return this.edits.get(line);
    }

    /** Takes typed text. An empty text, or the current one, is not an edit. */
    type(line, selection, text, lines) {
        const edit = this.of(line, lines);
        const current = lines.get(line)?.get(selection);
        if (text === '' || (current !== undefined && text === show(current))) edit.cells.delete(selection);
        else edit.cells.set(selection, text);
        this.tidy(line);
    }

    /** Replaces whole lines: line → its new selections, or null to remove it. */
    replace(payload, lines) {
        for (const [line, to] of payload) {
            this.edits.set(line, { cells: new Map(), extra: [], isRemoved: false, replaced: to });
            this.#see(line, lines);
        }
    }

    /** Drops the edit of a line if it changes nothing. */
    tidy(line) {
        const edit = this.edits.get(line);
        if (edit && !edit.cells.size && !edit.extra.length && !edit.isRemoved && edit.replaced === undefined) {
            this.edits.delete(line);
            this.seen.delete(line);
        }
    }

    /** Notes that the trader has seen the current lines. */
    acceptCurrent(lines) {
        for (const line of this.seen.keys()) this.#see(line, lines);
    }

    get isEmpty() { return !this.edits.size && !this.added.length; }

    #see(line, lines) {
        const current = lines.get(line);
        this.seen.set(line, current ? write(current) : null);
    }
}

/** Applies a draft to the current lines. Returns `{payload: Map, rows, problems: [{line, selection, problem}]}`. */
export function plan(draft, lines) {
    const payload = new Map();
    const problems = [];
    const note = (line, selection, problem) => { if (problem) problems.push({ line, selection, problem }); };
    const extras = (line, into, extra) => extra.forEach(({ name, value }, index) => {
        const key = `+${index}`;
        note(line, key, nameProblem(name) ?? (into.has(name) ? 'twice' : null) ?? valueProblem(name, value));
        into.set(name, new Decimal(value));
    });
    for (const [line, edit] of draft.edits) {
        if (edit.replaced !== undefined) {
            payload.set(line, edit.replaced);
        } else if (edit.isRemoved) {
            payload.set(line, null);
        } else {
            const to = new Map(lines.get(line) ?? []);
            for (const [selection, text] of edit.cells) {
                const isText = typeof to.get(selection) === 'string' && !PRICED.has(selection);
                if (!isText) note(line, selection, valueProblem(selection, text));
                to.set(selection, isText ? text : new Decimal(text));
            }
            extras(line, to, edit.extra);
            payload.set(line, to);
        }
    }
    draft.added.forEach(({ name, extra }, index) => {
        const key = `+${index}`;
        note(key, null, nameProblem(name) ?? (payload.has(name) || lines.has(name) ? 'twice' : null));
        if (!extra.length) note(key, null, 'noSelections');
        const to = new Map();
        extras(key, to, extra);
        payload.set(name, to);
    });
    if (payload.size > MAX_LINES || (!problems.length && new TextEncoder().encode(write(payload)).length > MAX_PAYLOAD_BYTES)) {
        note(null, null, 'tooLarge');
    }
    const rows = [...payload].flatMap(([line, to]) => lineRows(line, lines.get(line) ?? null, to));
    return { payload, rows, problems };
}

/** Returns rows for the lines of a draft that have changed since the trader saw them: from then to now. */
export function movedLines(draft, lines, parse) {
    return [...draft.seen].flatMap(([line, seen]) => {
        const current = lines.get(line) ?? null;
        if ((current && write(current)) === seen) return [];
        return lineRows(line, seen === null ? null : parse(seen), current);
    });
}

/** Returns a row per selection that differs: `{line, selection, before, after, tenths, isLarge}`, with texts or null. */
export function lineRows(line, before, after) {
    const selections = new Set([...(before?.keys() ?? []), ...(after?.keys() ?? [])]);
    const rows = [];
    for (const selection of selections) {
        const [from, to] = [before, after].map((of) => (of?.has(selection) ? of.get(selection) : undefined));
        if (from !== undefined && to !== undefined && write(from) === write(to)) continue;
        const text = (value) => (value === undefined ? null : show(value));
        const numbers = from instanceof Decimal && to instanceof Decimal;
        rows.push({
            line, selection, before: text(from), after: text(to),
            tenths: numbers ? movedBy(from.text, to.text) : null,
            isLarge: numbers && isLarge(from.text, to.text),
        });
    }
    return rows;
}

/** Returns what is wrong with a typed value, or null. */
export function valueProblem(selection, text) {
    if (PRICED.has(selection)) return oddsProblem(text);
    return NUMBER.test(text) ? null : 'notNumber';
}

function nameProblem(name) {
    return [...name].length < 1 || [...name].length > MAX_NAME || /\p{Cc}/u.test(name) ? 'name' : null;
}

/** Returns what is wrong with a reason, or null. The console requires one, although the API does not. */
export function reasonProblem(reason) {
    if (!reason.trim()) return 'noReason';
    return [...reason].length > MAX_REASON || /[^\P{Cc}\n\t]/u.test(reason) ? 'reason' : null;
}

/** Returns the JSON body of an override. */
export function body(market, payload, reason, expectedSeq) {
    return `{"marketId":${market},"payload":${write(payload)},"reason":${JSON.stringify(reason)},"expectedSeq":${expectedSeq}}`;
}
