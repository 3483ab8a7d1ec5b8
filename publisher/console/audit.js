// The audit of the selected market on the right of the desk: live, filtered, older pages, CSV export, and undo.

import { lineRows } from './diff.js';
import { el, find, put } from './dom.js';
import { diffList } from './rows.js';
import { age, clock } from './time.js';

const PAGE = 50;
/** Filters apply when nothing was typed for this long. */
const TYPED_MS = 250;
/** How long a new entry is highlighted. */
const FRESH_MS = 4000;
const ROWS = 8;
const CSV_PAGE = 500;
const CSV_PAGES = 40;

export class AuditView {
    #app; #list = find('entries'); #market = null; #entries = new Map(); #before = null; #timer;
    #load = 0; // counts calls of `load`: the response to an earlier one is dropped

    constructor(app) {
        this.#app = app;
        const filters = find('filters');
        filters.addEventListener('submit', (event) => event.preventDefault());
        filters.addEventListener('input', () => {
            clearTimeout(this.#timer);
            this.#timer = setTimeout(() => this.load(this.#market), TYPED_MS);
        });
        find('older').addEventListener('click', () => this.#older());
        find('csv').addEventListener('click', () => this.#export());
    }

    /** Shows the newest page of a market. */
    async load(market) {
        this.#market = market;
        this.#load += 1;
        this.#entries.clear();
        this.#before = null;
        this.#list.replaceChildren();
        this.show();
        await this.tail();
    }

    /** Adds the entries that are new since the last page. */
    async tail() {
        if (!this.#market) return;
        const load = this.#load;
        const page = await this.#app.ask(() => this.#app.api.audit({ ...this.#query(), limit: PAGE }));
        if (!page || load !== this.#load) return;
        const isFirst = this.#entries.size === 0;
        const fresh = page.entries.filter(({ auditId }) => !this.#entries.has(auditId));
        // More entries are new than a page has. The list starts again, because some between are missing.
        if (!isFirst && fresh.length === page.entries.length && page.hasMore) {
            this.#entries.clear();
            this.#list.replaceChildren();
        }
        if (this.#entries.size === 0) this.#before = page.before;
        const known = new Map(this.#entries);
        this.#entries = new Map([...fresh.map((entry) => [entry.auditId, entry]), ...known]);
        const items = fresh.map((entry) => this.#item(entry));
        this.#list.prepend(...items);
        if (!isFirst) {
            for (const item of items) {
                item.classList.add('fresh');
                setTimeout(() => item.classList.remove('fresh'), FRESH_MS);
            }
        }
        this.show();
    }

    /** Builds every entry again, as after a change of language. */
    redraw() {
        this.#list.replaceChildren(...[...this.#entries.values()].map((entry) => this.#item(entry)));
        this.show();
    }

    show() {
        find('tail').hidden = !this.#market;
        find('csv').disabled = !this.#market;
        find('older').hidden = !this.#before;
        const isNone = this.#entries.size === 0;
        find('no-entries').hidden = !isNone || !this.#market;
        put(find('no-entries'), this.#app.texts.of(isNone && this.#before ? 'looked' : 'noEntries'));
    }

    async #older() {
        const load = this.#load;
        const page = await this.#app.ask(() => this.#app.api.audit({ ...this.#query(), before: this.#before, limit: PAGE }));
        if (!page || load !== this.#load) return;
        this.#before = page.before;
        for (const entry of page.entries) {
            if (this.#entries.has(entry.auditId)) continue;
            this.#entries.set(entry.auditId, entry);
            this.#list.append(this.#item(entry));
        }
        this.show();
    }

    async #export() {
        const { texts, api } = this.#app;
        const market = this.#market;
        const pages = [];
        let before = null;
        try {
            for (let n = 0; n < CSV_PAGES; n += 1) {
                const page = await api.auditCsv({ ...this.#query(), ...(before && { before }), limit: CSV_PAGE });
                pages.push(n ? page.text.slice(page.text.indexOf('\r\n') + 2) : page.text); // one header
                before = page.before;
                if (!before) break;
            }
        } catch (error) {
            if (error.status === 401) this.#app.expired(error.message);
            this.#app.say(texts.of('exportFailed', { why: error.message }), 'bad');
            return;
        }
        // Spreadsheets need the byte order mark to recognise UTF-8.
        const url = URL.createObjectURL(new Blob(['\ufeff', ...pages], { type: 'text/csv;charset=utf-8' }));
        el('a', { href: url, download: `audit-${market}.csv` }).click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
    }

    #query() {
        const moment = (id, plus) => {
            const at = new Date(find(id).value).getTime();
            return Number.isNaN(at) ? '' : Math.max(0, at + plus);
        };
        const query = { marketId: this.#market, actor: find('actor').value.trim(), since: moment('since', 0), until: moment('until', 999) };
        return Object.fromEntries(Object.entries(query).filter(([, value]) => value !== ''));
    }

    #item(entry) {
        const { texts, now, session } = this.#app;
        const rows = [...entry.after].flatMap(([line, after]) => lineRows(line, entry.before.get(line) ?? null, after));
        const undo = session.mayTrade && el('button.quiet', {
            type: 'button', 'aria-label': texts.of('undoLabel', { id: entry.auditId }), onclick: () => this.#app.undo(entry),
        }, texts.of('undo'));
        return el('li', {},
            el('div.entry-head', {},
                el('time', { datetime: new Date(entry.ts).toISOString(), title: `${new Date(entry.ts).toISOString()} · ${age(texts, now - entry.ts)}` }, clock(entry.ts)),
                el('b.actor', { title: entry.actor }, entry.actor), el('span.fill'), el('span.faint.small', { title: `${entry.auditId} ${entry.requestId}` }, texts.of('seq', { seq: entry.seq })), undo),
            el('div.entry-reason', {}, entry.reason || el('span.faint', {}, texts.of('noReasonGiven'))),
            diffList(texts, rows, ROWS));
    }
}
