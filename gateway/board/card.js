// One market on the board. `take` is called for every update, and keeps it; `draw` at most once a frame, and shows it.

import { element, svg, write } from './dom.js';

/** Updates that the chart goes back. */
const SAMPLES = 60;
/** Lines of the chart: the first selections of the first line. */
const SERIES = 3;
const CHART_EVERY_MS = 200;
const FLASH_MS = 900;
const WIDTH = 120;
const HEIGHT = 36;

const PRICE = /^\d+(\.\d+)?$/;
/** In this order in their line; all others behind them as they came. */
const ORDER = ['home', 'over', 'yes', 'draw', 'away', 'under', 'no'];
/** A line's member that is no price: by how much, or at how many. */
const POINTS = new Set(['line', 'points', 'handicap']);

const calm = matchMedia('(prefers-reduced-motion: reduce)');

export class Card {
    #texts; #market = null; #shape = null; #rejected = null;
    #cells = new Map(); // line and selection → {text, price, at}
    #went = new Map(); // the same → 'up' or 'down'
    #moved = new Set(); // the same, since the last drawing
    #samples = []; // prices of `#names`, oldest first
    #names = [];
    #chartAt = 0;

    constructor(id, texts, remove) {
        this.id = id;
        this.#texts = texts;
        this.badge = element('span', 'badge');
        this.play = element('span', 'badge accent');
        this.age = element('span', 'age faint');
        this.seq = element('span', 'seq faint');
        this.removal = element('button', 'quiet remove', '×');
        this.removal.type = 'button';
        this.removal.addEventListener('click', () => remove(id));
        this.chart = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', class: 'chart' });
        this.baseline = svg('line', { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: 'baseline' });
        this.series = Array.from({ length: SERIES }, (_, n) => svg('polyline', { class: `series-${n}`, points: '' }));
        this.chart.append(this.baseline, ...this.series);
        this.body = element('div', 'lines');
        this.root = element('article', 'card panel',
            element('header', '', element('h3', 'mono', String(id)), this.badge, this.play, element('span', 'fill'), this.removal),
            element('div', 'facts', this.seq, this.age), this.chart, this.body);
        this.root.dataset.market = id;
        this.label();
    }

    get seqNow() { return this.#market ? this.#market.seq : null; }

    /** A `change` of the client's. */
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

    /** `fresh`: the gateway vouches for its prices. */
    draw(fresh, now) {
        const market = this.#market;
        this.#drawState(fresh);
        if (!market) return;
        write(this.seq, `${this.#texts.of('seq')} ${market.seq}`);
        this.root.dataset.seq = market.seq;
        const shape = JSON.stringify(shapeOf(market.lines));
        if (shape !== this.#shape) {
            this.#build(market.lines);
            this.#shape = shape;
        }
        for (const [key, cell] of this.#cells) {
            write(cell.text, asText(market.lines[cell.line][cell.selection]));
            cell.price.dataset.went = this.#went.get(key) ?? '';
            if (this.#moved.has(key)) flash(cell, this.#went.get(key));
        }
        this.#moved.clear();
        if (now - this.#chartAt >= CHART_EVERY_MS) {
            this.#chartAt = now;
            this.#drawChart();
        }
    }

    /** `ageMs`: of its last update, or null. */
    drawAge(ageMs) { write(this.age, ageMs === null ? '' : ageText(this.#texts, ageMs)); }

    get ts() { return this.#market?.ts || null; }

    #drawState(fresh) {
        const { state, inPlay } = this.#market?.lines.status ?? {};
        const [name, kind] = this.#rejected ? [this.#rejected === 'FORBIDDEN' ? 'forbidden' : 'refused', 'bad']
            : this.#market && !this.#market.seq ? ['noPrices', '']
                : state === 'closed' ? ['finished', 'bad']
                    : state === 'suspended' ? ['suspended', 'warn']
                        : fresh ? ['live', 'good'] : ['notFresh', ''];
        write(this.badge, this.#texts.of(name));
        this.badge.className = `badge ${kind}`;
        this.play.hidden = inPlay !== true;
        write(this.play, this.#texts.of('inPlay'));
        this.root.classList.toggle('shut', state === 'closed' || state === 'suspended');
        this.root.classList.toggle('old', !fresh);
    }

    #build(lines) {
        this.#cells.clear();
        this.#went = new Map([...this.#went].filter(([key]) => keysOf(lines).has(key)));
        this.body.replaceChildren(...shapeOf(lines).map(([line, selections]) => {
            const points = selections.filter((name) => POINTS.has(name));
            const title = element('h4', '', wording(this.#texts, line));
            for (const name of points) title.append(' ', this.#cell(line, name, 'points'));
            const prices = selections.filter((name) => !POINTS.has(name)).map((selection) => {
                const name = element('span', 'name', wording(this.#texts, selection));
                const nth = line === shapeOf(lines)[0][0] ? this.#names.indexOf(selection) : -1;
                if (nth >= 0) name.classList.add(`series-${nth}`);
                return element('div', 'selection', name, this.#cell(line, selection, 'price'));
            });
            return element('section', '', title, element('div', 'selections', ...prices));
        }));
    }

    #cell(line, selection, className) {
        const text = element('span', '');
        const price = element('span', className, text);
        price.dataset.selection = selection;
        price.dataset.line = line;
        this.#cells.set(keyOf(line, selection), { line, selection, text, price, flashing: null });
        return price;
    }

    #sample() {
        const [first] = shapeOf(this.#market.lines);
        if (!first) return;
        const [line, selections] = first;
        const names = selections.filter((name) => isPrice(name, this.#market.lines[line][name])).slice(0, SERIES);
        if (names.join('\n') !== this.#names.join('\n')) {
            this.#names = names;
            this.#samples = [];
            this.#shape = null;
        }
        this.#samples.push(names.map((name) => Number(this.#market.lines[line][name])));
        if (this.#samples.length > SAMPLES) this.#samples.shift();
    }

    /** Each selection's change since the window began, in percent, on one scale around the middle. */
    #drawChart() {
        const changes = this.#names.map((_, n) => this.#samples.map((prices) => prices[n] / this.#samples[0][n] - 1));
        const most = Math.max(0.01, ...changes.flat().map(Math.abs));
        this.series.forEach((line, n) => {
            const x = (index) => (WIDTH * (index + SAMPLES - this.#samples.length) / (SAMPLES - 1)).toFixed(1);
            const y = (change) => (HEIGHT / 2 - change / most * (HEIGHT / 2 - 2)).toFixed(1);
            let points = '';
            (changes[n] ?? []).forEach((change, index) => {
                if (index) points += `${x(index)},${y(changes[n][index - 1])} `;
                points += `${x(index)},${y(change)} `;
            });
            line.setAttribute('points', points);
        });
        const names = this.#names.map((name) => wording(this.#texts, name)).join(', ');
        this.chart.setAttribute('aria-label', this.#texts.of('chart', { names, n: this.#samples.length }));
    }
}

/** A name of ours in the reader's language; any other as it was published. */
function wording(texts, name) {
    return KNOWN.has(name) ? texts.of(name) : name;
}

const KNOWN = new Set(['moneyline', 'spread', 'total', 'win', ...ORDER]);

/** What there is to show: `[line, [selection …]] …`. The status is shown otherwise. */
function shapeOf(lines) {
    const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
    return Object.keys(lines)
        .filter((line) => line !== 'status' && lines[line] && typeof lines[line] === 'object')
        .map((line) => [line, Object.keys(lines[line]).sort((a, b) => place(a) - place(b))]);
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
