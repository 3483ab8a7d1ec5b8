// Elements for the rows of `lineRows` in diff.js.

import { percent } from './decimal.js';
import { el } from './dom.js';

const tone = (tenths) => (tenths === null || tenths === 0n ? 'flat' : tenths > 0n ? 'up' : 'down');

/** Shows a move: `+2.7 %`, with a badge if it is large. */
export function change(texts, row) {
    if (row.tenths === null) return el('span.change');
    return el('span.change', {},
        el(`span.${tone(row.tenths)}`, {}, percent(row.tenths)),
        row.isLarge ? el('span.badge.warn', {}, texts.of('large')) : null);
}

const value = (texts, text) => (text === null ? el('span.faint', {}, texts.of('absent')) : el('span', {}, text));

/** Shows a row: `moneyline home  1.85 → 1.90  +2.7 %`. A missing value is shown as the text `absent`. */
export function diffRow(texts, row) {
    return el('li.diff', {},
        el('span.name', {}, row.line, ' ', el('b', {}, row.selection)), ' ',
        el('span.from', {}, value(texts, row.before)), el('span.faint', {}, ' → '), el('span.to', {}, value(texts, row.after)), ' ',
        change(texts, row));
}

export function diffList(texts, rows, max = Infinity) {
    const list = el('ul.diffs', {}, ...rows.slice(0, max).map((row) => diffRow(texts, row)));
    if (rows.length > max) list.append(el('li.faint', {}, `+ ${rows.length - max}`));
    return list;
}
