// One market on the board. `take` keeps every update; `draw`, called at most once per frame, shows the last state.

import { el, put } from './dom.js';

/** The most updates in the chart. */
export const SAMPLES = 60;
/** The chart is at least as wide as this many updates. */
const LEAST_WIDTH = 24;
/** Curves in the chart: the first selections of the first line. */
const SERIES = 3;
const CHART_EVERY_MS = 200;
const FLASH_MS = 900;
const WIDTH = 120;
const HEIGHT = 36;

const PRICE = /^\d+(\.\d+)?$/;
/** The order of lines and of the selections in each. Others come after these. */
const LINES = ['moneyline', 'win', 'spread', 'total'];
const ORDER = ['home', 'over', 'yes', 'draw', 'away', 'under', 'no'];
/** Members of a line that are handicaps or totals, not prices. */
const POINTS = new Set(['line', 'points', 'handicap']);

const calm = matchMedia('(prefers-reduced-motion: reduce)');

function svg(tag, attributes) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
}

export class Card {
    #texts; #market = null; #shape = null; #rejected = null;
    #cells = new Map(); // keyOf(line, selection) → {line, selection, text, price, flashing}
    #went = new Map(); // the same key → 'up' or 'down'
    #moved = new Set(); // the keys that moved since the last drawing
    #samples = []; // prices of `#names` per update, oldest first
    #names = []; // selections in the chart
    #chartAt = 0;

    constructor(id, texts, remove) {
        this.id = id;
        this.#texts = texts;
        this.badge = el('span.badge');
        this.play = el('span.badge.accent');
        this.age = el('span.age.faint');
        this.seq = el('span.seq.faint');
        this.removal = el('button.quiet.remove', { type: 'button', onclick: () => remove(id) }, '×');
        this.chart = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', class: 'chart' });
        this.baseline = svg('line', { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: 'baseline' });
        this.series = Array.from({ length: SERIES }, (_, n) => svg('polyline', { class: `series-${n}`, points: '' }));
        this.chart.append(this.baseline, ...this.series);
        this.body = el('div.lines');
        this.root = el('article.card.panel', {},
            el('header', {}, el('h3.mono', {}, String(id)), this.badge, this.play, el('span.fill'), this.removal),
            el('div.facts', {}, this.seq, this.age), this.chart, this.body);
        this.root.dataset.market = id;
        this.label();
    }

    get seqNow() { return this.#market ? this.#market.seq : null; }

    /** Takes a `change` event of the client. */
    take(market) {
        const before = this.#market?.lines;
        this.#market = market;
        this.#rejected = null;
        for (const name of market.changed) {
            const [was, is] = [before?.[name], market.lines[name]];
            if (!was || !is) continue;
            for (const selection of Object.keys(is)) {
                if (!isPrice(selection, is[selection]) || !isPrice(selection, was[selection])) continue;
                const by = Number(is[selection]) - Number(was[selection]);
                if (!by) continue;
                const key = keyOf(name, selection);
                this.#went.set(key, by > 0 ? 'up' : 'down');
                this.#moved.add(key);
            }
        }
        this.#sample();
    }

    reject(code) { this.#rejected = code; }

    label() {
        this.#shape = null;
        const title = this.#texts.of('remove', { id: this.id });
        this.removal.title = title;
        this.removal.setAttribute('aria-label', title);
        this.age.title = this.#texts.of('age');
    }

    /** Draws the market. `fresh`: as in the SDK; `now`: the time of the frame. */
    draw(fresh, now) {
        const market = this.#market;
        this.#drawState(fresh);
        if (!market) return;
        put(this.seq, `${this.#texts.of('seq')} ${market.seq}`);
        this.root.dataset.seq = market.seq;
        const shape = JSON.stringify(shapeOf(market.lines));
        if (shape !== this.#shape) {
            this.#build(market.lines);
            this.#shape = shape;
        }
        for (const [key, cell] of this.#cells) {
            put(cell.text, asText(market.lines[cell.line][cell.selection]));
            cell.price.dataset.went = this.#went.get(key) ?? '';
            if (this.#moved.has(key)) flash(cell, this.#went.get(key));
        }
        this.#moved.clear();
        if (now - this.#chartAt >= CHART_EVERY_MS) {
            this.#chartAt = now;
            this.#drawChart();
        }
    }

    /** Draws the age of the last update, or nothing for null. */
    drawAge(ageMs) { put(this.age, ageMs === null ? '' : ageText(this.#texts, ageMs)); }

    get ts() { return this.#market?.ts || null; }

    #drawState(fresh) {
        const { state, inPlay } = this.#market?.lines.status ?? {};
        const [name, kind] = this.#rejected ? [this.#rejected === 'FORBIDDEN' ? 'forbidden' : 'refused', 'bad']
            : this.#market && !this.#market.seq ? ['noPrices', '']
                : state === 'closed' ? ['finished', 'bad']
                    : state === 'suspended' ? ['suspended', 'warn']
                        : fresh ? ['live', 'good'] : ['notFresh', ''];
        put(this.badge, this.#texts.of(name));
        this.badge.className = `badge ${kind}`;
        this.play.hidden = inPlay !== true;
        put(this.play, this.#texts.of('inPlay'));
        this.root.classList.toggle('shut', state === 'closed' || state === 'suspended');
        this.root.classList.toggle('old', !fresh);
    }

    #build(lines) {
        this.#cells.clear();
        this.#went = new Map([...this.#went].filter(([key]) => keysOf(lines).has(key)));
        this.body.replaceChildren(...shapeOf(lines).map(([line, selections]) => {
            const points = selections.filter((name) => POINTS.has(name));
            const title = el('h4', {}, el('span.name', {}, wording(this.#texts, line)));
            for (const name of points) title.append(this.#cell(line, name, 'points'));
            const prices = selections.filter((name) => !POINTS.has(name)).map((selection) => {
                const nth = line === shapeOf(lines)[0][0] ? this.#names.indexOf(selection) : -1;
                const name = el('span.name', {}, wording(this.#texts, selection));
                return el(`div.selection${nth < 0 ? '' : `.series-${nth}`}`, {}, name, this.#cell(line, selection, 'price'));
            });
            return el(prices.length > 2 ? 'section.many' : 'section', {}, title, el('div.selections', {}, ...prices));
        }));
    }

    #cell(line, selection, className) {
        const text = el('span');
        const price = el(`span.${className}`, {}, text);
        price.dataset.selection = selection;
        price.dataset.line = line;
        this.#cells.set(keyOf(line, selection), { line, selection, text, price, flashing: null });
        return price;
    }

    /** Adds older updates, oldest first, to the chart. `lines` is the state after the last of them. */
    lookBack(updates, lines) {
        const [line, names] = chartOf(lines);
        if (!names || names.join('\n') !== this.#names.join('\n')) return;
        const past = updates.map(({ payload }) => pricesOf(payload[line], names)).filter(Boolean);
        // The card has the last of them already: it was the first state that the card took.
        this.#samples = [...past.slice(0, -1), ...this.#samples].slice(-SAMPLES);
        this.#chartAt = 0;
    }

    #sample() {
        const [line, names = []] = chartOf(this.#market.lines);
        if (names.join('\n') !== this.#names.join('\n')) {
            this.#names = names;
            this.#samples = [];
            this.#shape = null;
        }
        if (names.length && this.#market.changed.includes(line)) {
            this.#samples.push(pricesOf(this.#market.lines[line], names));
            if (this.#samples.length > SAMPLES) this.#samples.shift();
        }
    }

    /** Draws each selection's change in percent since the first sample, all on one scale around the middle. */
    #drawChart() {
        const [first] = this.#samples;
        const changes = first ? this.#names.map((_, n) => this.#samples.map((prices) => prices[n] / first[n] - 1)) : [];
        const width = WIDTH / (Math.max(this.#samples.length, LEAST_WIDTH) - 1);
        const most = Math.max(0.01, ...changes.flat().map(Math.abs));
        this.series.forEach((line, n) => {
            const x = (index) => (width * index).toFixed(1);
            const y = (change) => (HEIGHT / 2 - change / most * (HEIGHT / 2 - 2)).toFixed(1);
            let points = '';
            (changes[n] ?? []).forEach((change, index) => {
                if (index) points += `${x(index)},${y(changes[n][index - 1])} `; // a price stays until the next update
                points += `${x(index)},${y(change)} `;
            });
            line.setAttribute('points', points);
        });
        const names = this.#names.map((name) => wording(this.#texts, name)).join(', ');
        this.chart.setAttribute('aria-label', this.#texts.of('chart', { names, n: this.#samples.length }));
    }
}

/** Returns a known name in the reader's language, any other as it was published. */
function wording(texts, name) {
    return KNOWN.has(name) ? texts.of(name) : name;
}

const KNOWN = new Set([...LINES, ...ORDER]);

/** Returns the lines and selections to show, in order: `[[line, [selection …]] …]`. The status line is not among them. */
function shapeOf(lines) {
    const by = (order) => (a, b) => (order.indexOf(a) + 1 || Infinity) - (order.indexOf(b) + 1 || Infinity) || 0;
    return Object.keys(lines)
        .filter((line) => line !== 'status' && lines[line] && typeof lines[line] === 'object')
        .sort() // so that the order after a snapshot is the same as after updates
        .sort(by(LINES))
        .map((line) => [line, Object.keys(lines[line]).sort(by(ORDER))]);
}

/** Returns the line that the chart shows, and its selections. */
function chartOf(lines) {
    const [first] = shapeOf(lines);
    if (!first) return [];
    const [line, selections] = first;
    return [line, selections.filter((name) => isPrice(name, lines[line][name])).slice(0, SERIES)];
}

/** Returns the prices of these selections, or null if one of them has none. */
function pricesOf(line, names) {
    if (!line || !names.every((name) => isPrice(name, line[name]))) return null;
    return names.map((name) => Number(line[name]));
}

const keyOf = (line, selection) => JSON.stringify([line, selection]);

function keysOf(lines) {
    return new Set(shapeOf(lines).flatMap(([line, selections]) => selections.map((selection) => keyOf(line, selection))));
}

function isPrice(selection, value) {
    return !POINTS.has(selection) && typeof value === 'string' && PRICE.test(value);
}

const asText = (value) => (value && typeof value === 'object' ? JSON.stringify(value) : String(value));

function flash(cell, went) {
    cell.flashing?.cancel();
    if (calm.matches || !went) return;
    cell.flashing = cell.price.animate(
        [{ backgroundColor: `var(--${went}-soft)` }, { backgroundColor: `var(--${went}-soft)`, offset: 0.3 }, { backgroundColor: 'transparent' }],
        { duration: FLASH_MS, easing: 'ease-out' });
}

function ageText(texts, ms) {
    const s = ms / 1000;
    if (s < 1) return texts.of('now');
    if (s < 60) return texts.of('seconds', { n: Math.floor(s) });
    if (s < 3600) return texts.of('minutes', { n: Math.floor(s / 60) });
    if (s < 86_400) return texts.of('hours', { n: Math.floor(s / 3600) });
    return texts.of('days', { n: Math.floor(s / 86_400) });
}
