// What a draft would change, as rows of before and after, and as the payload that does it. A line is the unit of change:
// a payload carries each line that is touched, whole.

import { PRICED, isLarge, movedBy, oddsProblem } from './decimal.js';
import { Decimal, NUMBER, show, write } from './json.js';

export const MAX_REASON = 500;
const MAX_LINES = 32;
const MAX_PAYLOAD_BYTES = 16 * 1024;
const MAX_NAME = 64;

/**
 * What a trader is about to send. `edits`: line → `{cells: Map of selection → typed text, extra: [{name, value}],
 * isRemoved, replaced: Map | null}`, of which `replaced` (where it is there) is the whole line. `added`: new lines,
 * `{name, extra}`. `seen`: line → its text when it was touched first, `null` where there was none.
 */
export class Draft {
    static #count = 0;

    /** Which one it is. */
    id = Draft.#count += 1;
    edits = new Map();
    added = [];
    seen = new Map();
    reason = '';
    undoOf = null;

    /** The edit of a line that is there, begun now if it was not. */
    of(line, lines) {
        if (!this.edits.has(line)) {
            this.edits.set(line, { cells: new Map(), extra: [], isRemoved: false });
            this.#see(line, lines);
        }
        return this.edits.get(line);
    }

    /** Typed text; the text that stands there anyway is no edit. */
    type(line, selection, text, lines) {
        const edit = this.of(line, lines);
        const stands = lines.get(line)?.get(selection);
        if (text === '' || (stands !== undefined && text === show(stands))) edit.cells.delete(selection);
        else edit.cells.set(selection, text);
        this.tidy(line);
    }

    /** Takes these whole lines in place of those that stand. */
    replace(payload, lines) {
        for (const [line, to] of payload) {
            this.edits.set(line, { cells: new Map(), extra: [], isRemoved: false, replaced: to });
            this.#see(line, lines);
        }
    }

    /** An edit that edits nothing is none. */
    tidy(line) {
        const edit = this.edits.get(line);
        if (edit && !edit.cells.size && !edit.extra.length && !edit.isRemoved && edit.replaced === undefined) {
            this.edits.delete(line);
            this.seen.delete(line);
        }
    }

    /** The trader has seen how it stands now. */
    seeAgain(lines) {
        for (const line of this.seen.keys()) this.#see(line, lines);
    }

    get isEmpty() { return !this.edits.size && !this.added.length; }

    #see(line, lines) {
        const stands = lines.get(line);
        this.seen.set(line, stands ? write(stands) : null);
    }
}

/** `{payload: Map, rows, problems: [{line, selection, problem}]}` of a draft on `lines` as they stand. */
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

/** Where a line that the draft touches has moved since it was seen: rows from what was seen to what stands. */
export function movedLines(draft, lines, parse) {
    return [...draft.seen].flatMap(([line, seen]) => {
        const stands = lines.get(line) ?? null;
        if ((stands && write(stands)) === seen) return [];
        return lineRows(line, seen === null ? null : parse(seen), stands);
    });
}

/** A row for each selection that differs: `{line, selection, before, after, tenths, isLarge}`, texts or `null`. */
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

/** `null`, or what is wrong. */
export function valueProblem(selection, text) {
    if (PRICED.has(selection)) return oddsProblem(text);
    return NUMBER.test(text) ? null : 'notNumber';
}

function nameProblem(name) {
    return [...name].length < 1 || [...name].length > MAX_NAME || /\p{Cc}/u.test(name) ? 'name' : null;
}

/** `null`, or what is wrong. Whoever changes a price by hand says why. */
export function reasonProblem(reason) {
    if (!reason.trim()) return 'noReason';
    return [...reason].length > MAX_REASON || /[^\P{Cc}\n\t]/u.test(reason) ? 'reason' : null;
}

/** The body of an override. */
export function body(market, payload, reason, expectedSeq) {
    return `{"marketId":${market},"payload":${write(payload)},"reason":${JSON.stringify(reason)},"expectedSeq":${expectedSeq}}`;
}
