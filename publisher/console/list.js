// The list of markets on the left of the desk: search, pages, and each market's status and first prices.

import { statusOf } from './api.js';
import { compare } from './decimal.js';
import { el, find, put } from './dom.js';
import { Decimal, show } from './json.js';
import { age } from './time.js';

const PAGE = 100;
const SEARCH_AFTER_MS = 150;
/** How long a price that moved has its arrow. */
const MOVED_MS = 2500;
const PRICES = 3;
const TONES = { open: 'good', suspended: 'warn', closed: 'bad' };

export class List {
    #app; #list = find('list'); #rows = new Map(); #search = ''; #hasMore = false; #visible = new Set(); #watch; #timer;
    #load = 0; // counts calls of `load`: the response to an earlier one is dropped

    constructor(app) {
        this.#app = app;
        this.#watch = new IntersectionObserver((changes) => {
            for (const { target, isIntersecting } of changes) this.#visible[isIntersecting ? 'add' : 'delete'](target.dataset.id);
        });
        find('search').addEventListener('input', ({ target }) => {
            clearTimeout(this.#timer);
            this.#timer = setTimeout(() => {
                this.#search = target.value.trim();
                this.load();
            }, SEARCH_AFTER_MS);
        });
        find('more-markets').addEventListener('click', () => this.load([...this.#rows.keys()].at(-1)));
    }

    /** The ids of the rows inside the window. */
    get visible() { return [...this.#visible]; }

    get ids() { return [...this.#rows.keys()]; }

    /** Loads the first page, or the page after a market. `isQuiet`: only adds markets that are new on that page. */
    async load(after = '', isQuiet = false) {
        const load = isQuiet ? this.#load : this.#load += 1;
        const page = await this.#app.ask(() => this.#app.api.markets({ search: this.#search, after, limit: PAGE }));
        if (!page || load !== this.#load) return;
        if (!after && !isQuiet) this.#clear();
        for (const market of page.markets) this.#app.markets.set(market.id, market);
        for (const market of page.markets) if (!this.#rows.has(market.id)) this.#add(market.id);
        if (!isQuiet) this.#hasMore = page.hasMore;
        this.show();
    }

    /** Draws every row. */
    show() {
        const { texts } = this.#app;
        for (const [id, row] of this.#rows) this.#fill(id, row);
        find('none').hidden = this.#rows.size > 0;
        find('more-markets').hidden = !this.#hasMore;
        put(find('count'), texts.of(this.#hasMore ? 'foundMore' : 'found', { count: this.#rows.size }));
    }

    /** Highlights the selected market's row. */
    highlight(selected) {
        for (const [id, { button }] of this.#rows) {
            button.setAttribute('aria-current', String(id === selected));
            button.tabIndex = id === selected ? 0 : -1;
        }
        if (!this.#rows.has(selected)) this.#rows.values().next().value?.button.setAttribute('tabindex', '0');
    }

    /** Selects and focuses the market `by` rows below the selected one. */
    move(by) {
        const ids = this.ids;
        if (!ids.length) return;
        const at = ids.indexOf(this.#app.selected);
        const next = ids[at < 0 ? 0 : Math.min(ids.length - 1, Math.max(0, at + by))];
        this.#app.choose(next);
        const { button } = this.#rows.get(next);
        button.focus();
        button.scrollIntoView({ block: 'nearest' });
    }

    focus() {
        (this.#rows.get(this.#app.selected) ?? this.#rows.values().next().value)?.button.focus();
    }

    #clear() {
        this.#watch.disconnect();
        this.#visible.clear();
        this.#rows.clear();
        this.#list.replaceChildren();
    }

    #add(id) {
        const row = {
            id: el('b.id', {}, id), status: el('span.badge'), age: el('span.age.faint'), prices: el('span.prices'), seq: el('span.seq.faint'), shown: new Map(),
        };
        row.button = el('button.row', { type: 'button', tabindex: -1, onclick: () => this.#app.choose(id) },
            el('span.first', {}, row.id, row.status, row.age), el('span.second', {}, row.prices, row.seq));
        const item = el('li', { 'data-id': id }, row.button);
        const next = [...this.#rows.keys()].find((other) => Number(other) > Number(id));
        if (next) {
            this.#list.insertBefore(item, this.#rows.get(next).item);
            this.#rows = new Map([...this.#rows, [id, { ...row, item }]].sort(([a], [b]) => Number(a) - Number(b)));
        } else {
            this.#list.append(item);
            this.#rows.set(id, { ...row, item });
        }
        this.#watch.observe(item);
        this.highlight(this.#app.selected);
    }

    #fill(id, row) {
        const { texts, markets, now } = this.#app;
        const market = markets.get(id);
        if (!market) return;
        const status = statusOf(market.lines);
        put(row.status, status ? (status in TONES ? texts.of(status) : status) : '');
        row.status.hidden = !status || status === 'open';
        row.status.className = `badge ${TONES[status] ?? ''}`;
        put(row.age, market.ts ? age(texts, now - market.ts) : texts.of('none'));
        put(row.seq, texts.of('seq', { seq: market.seq }));
        this.#fillPrices(row, market.lines);
    }

    /** Draws the first prices of the first line that has some, with an arrow on those that moved lately. */
    #fillPrices(row, lines) {
        const of = [...lines].find(([, line]) => [...line.values()].some((value) => value instanceof Decimal))?.[1] ?? new Map();
        const prices = [...of].filter(([, value]) => value instanceof Decimal).slice(0, PRICES);
        if (row.prices.childElementCount !== prices.length) row.prices.replaceChildren(...prices.map(() => el('span.number')));
        prices.forEach(([selection, price], index) => {
            const cell = row.prices.children[index];
            const text = show(price);
            const last = row.shown.get(selection);
            if (last !== undefined && last.text !== text) {
                const moved = compare(last.text, text);
                row.shown.set(selection, { text, tone: moved > 0 ? 'down' : moved < 0 ? 'up' : '', until: performance.now() + MOVED_MS });
            } else if (last === undefined) row.shown.set(selection, { text, tone: '', until: 0 });
            const { tone, until } = row.shown.get(selection);
            put(cell, text);
            cell.title = selection;
            cell.className = `number ${performance.now() < until ? tone : ''}`;
        });
    }
}
