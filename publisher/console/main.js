// The console puts its modules together: who is signed in, what is selected, and how fresh the prices are.

import { Api, ApiError } from './api.js';
import { AuditView } from './audit.js';
import { askStatus, confirm, showKeys } from './dialogs.js';
import { Draft } from './diff.js';
import { el, find, put } from './dom.js';
import { Texts } from './i18n.js';
import { List } from './list.js';
import { MarketView } from './market.js';
import { Poller } from './poller.js';
import { Sender } from './sender.js';
import { Session, linkedToken } from './session.js';
import { TEXTS } from './texts.js';
import { age, countdown } from './time.js';
import { laterOnSameLines, undo, undoReason } from './undo.js';

const PRICES_EVERY_MS = 1000;
const AUDIT_EVERY_MS = 2000;
const NEW_MARKETS_EVERY_MS = 5000;
const SHOW_EVERY_MS = 250;
/** Prices are shown as stale when the last response is older than this. */
const STALE_AFTER_MS = 3500;
const EXPIRY_SHOWN_MS = 10 * 60_000;
const MESSAGE_MS = 8000;
/** The most `ids` of one request. */
const MAX_IDS = 200;

class App {
    texts = new Texts(TEXTS);
    session = Session.restore();
    api = new Api(this.session);
    markets = new Map();
    drafts = new Map();
    selected = null;
    #ahead = 0; // the publisher's clock minus ours, in ms
    #respondedAt = null;
    #isLost = false; // the last request had no response
    #isSignedOut = true;

    constructor() {
        this.list = new List(this);
        this.market = new MarketView(this);
        this.sender = new Sender(this);
        this.audit = new AuditView(this);
        this.pollers = [
            new Poller(() => this.refresh(), PRICES_EVERY_MS),
            new Poller(() => this.audit.tail(), AUDIT_EVERY_MS),
            new Poller(() => this.list.load('', true), NEW_MARKETS_EVERY_MS),
        ];
    }

    /** The publisher's clock, in Unix ms. */
    get now() { return Date.now() + this.#ahead; }

    /** The selected market's draft. */
    draft() {
        const id = this.selected;
        if (!this.drafts.has(id)) this.drafts.set(id, new Draft());
        return this.drafts.get(id);
    }

    dropDraft() { this.drafts.delete(this.selected); }

    /** Returns what `read` returns, or null if it fails. Without a response the page shows that its prices get old. */
    async ask(read) {
        try {
            const page = await read();
            this.#respondedAt = performance.now();
            this.#isLost = false;
            return page;
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            if (error.status === 401) this.expired(error.message);
            else if (error.isUnknown) this.#isLost = true;
            else this.say(error.message, 'bad');
            return null;
        }
    }

    /** Reads these markets again; by default the selected one and those whose rows are visible. */
    async refresh(ids) {
        const wanted = ids ?? [...new Set([this.selected, ...this.list.visible].filter(Boolean))].slice(0, MAX_IDS);
        const started = Date.now();
        const page = await this.ask(() => this.api.markets(wanted.length ? { ids: wanted.join(',') } : { limit: 1 }));
        if (!page) return;
        this.#ahead = page.now - (started + Date.now()) / 2;
        for (const market of page.markets) {
            const known = this.markets.get(market.id);
            const isOlder = known && (market.epoch < known.epoch || (market.epoch === known.epoch && market.seq < known.seq));
            if (!isOlder) this.markets.set(market.id, market);
        }
        this.show();
    }

    choose(id) {
        if (id === this.selected) return;
        this.selected = id;
        this.list.highlight(id);
        this.market.show();
        this.audit.load(id);
        this.pollers[0].now();
    }

    show() {
        this.list.show();
        this.market.show();
        this.#showFreshness();
    }

    /** Suspends or opens one market, or all, after the trader gave a reason. */
    async setStatus(verb, id = null) {
        const { texts } = this;
        const isSuspend = verb === 'suspend';
        const name = `confirm${isSuspend ? 'Suspend' : 'Open'}${id ? '' : 'All'}`;
        const reason = await askStatus(texts, {
            title: texts.of(name, { id }), isDanger: isSuspend, text: texts.of(isSuspend ? 'suspendText' : id ? 'openText' : 'openAllText'),
            phrase: id ? null : texts.of(isSuspend ? 'phraseSuspend' : 'phraseOpen'),
        });
        if (reason === null) return;
        try {
            const results = await this.api.setStatus(verb, id ? { marketIds: [Number(id)] } : { all: true }, reason);
            const failed = results.filter(({ ok }) => !ok);
            const changed = results.filter((result) => result.changed).length;
            const done = texts.of('statusDone', { changed, same: results.length - failed.length - changed, failed: failed.length });
            const which = failed.length ? ` ${texts.of('statusFailed', { which: failed.slice(0, 3).map(({ message }) => message).join('; ') })}` : '';
            this.say(done + which, failed.length ? 'bad' : 'good');
        } catch (error) {
            if (error.status === 401) this.expired(error.message);
            this.say(texts.of('failed', { why: error.message }), 'bad');
        }
        await this.refresh();
        this.audit.tail();
    }

    /** Makes a draft that undoes an audit entry. */
    async undo(entry) {
        const { texts } = this;
        const id = this.selected;
        if (this.drafts.has(id) && !this.draft().isEmpty) {
            if (!await confirm(texts, { title: texts.of('dropDraft'), yes: texts.of('drop'), isDanger: true })) return;
        }
        const later = await this.ask(() => this.api.audit({ marketId: id, since: entry.ts, limit: 500 }));
        await this.refresh([id]);
        if (this.selected !== id) return;
        const draft = new Draft();
        draft.replace(undo(entry), this.markets.get(id).lines);
        draft.reason = undoReason(entry);
        draft.undoOf = entry.auditId;
        draft.later = laterOnSameLines(entry, later?.entries ?? []);
        this.drafts.set(id, draft);
        this.market.show();
        find('reason').value = draft.reason;
        find('publish').focus();
    }

    /** Shows a message for a while. */
    say(text, tone = '') {
        const said = el(`p${tone && `.${tone}`}`, {}, text);
        find('said').replaceChildren(said);
        setTimeout(() => said.remove(), MESSAGE_MS);
    }

    /** Asks for another token. Drafts are kept. */
    expired(why) {
        this.pollers.forEach((poller) => poller.stop());
        this.#signIn(this.session.left <= 0 ? this.texts.of('expired') : this.texts.of('refused', { why }));
    }

    async start() {
        this.texts.onChange(() => {
            this.show();
            this.audit.redraw();
            this.#showWho();
        });
        find('language').addEventListener('click', () => this.texts.choose(this.texts.language === 'zh' ? 'en' : 'zh'));
        find('signout').addEventListener('click', () => {
            this.session.token = null;
            location.reload();
        });
        find('keys').addEventListener('click', () => showKeys(this.texts));
        find('suspend-all').addEventListener('click', () => this.setStatus('suspend'));
        find('open-all').addEventListener('click', () => this.setStatus('open'));
        find('signin').querySelector('form').addEventListener('submit', (event) => {
            event.preventDefault();
            this.#tryToken(find('token').value.trim());
        });
        find('token').addEventListener('keydown', (event) => {
            if (event.key !== 'Enter') return;
            event.preventDefault();
            find('signin').querySelector('form').requestSubmit();
        });
        // Esc must not close the dialog: without a token the page has nothing to show.
        find('signin').addEventListener('cancel', (event) => event.preventDefault());
        find('signin').addEventListener('close', () => { if (this.#isSignedOut) this.#signIn(''); });
        document.addEventListener('keydown', (event) => this.#key(event));
        addEventListener('hashchange', () => {
            const token = linkedToken();
            if (token) this.#tryToken(token);
        });
        addEventListener('beforeunload', (event) => {
            if (this.session.token && [...this.drafts.values()].some((draft) => !draft.isEmpty)) event.preventDefault();
        });
        setInterval(() => this.#showFreshness(), SHOW_EVERY_MS);
        if (this.session.token) await this.#tryToken(this.session.token);
        else this.#signIn('');
    }

    #signIn(why) {
        const dialog = find('signin');
        this.#isSignedOut = true;
        find('signin-why').hidden = !why;
        put(find('signin-why'), why);
        if (!dialog.open) {
            find('token').value = '';
            dialog.showModal();
        }
        find('token').focus();
        this.#showWho();
    }

    /** Signs in if the publisher accepts the token, or cannot be reached to judge it. */
    async #tryToken(token) {
        if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) return this.#signIn(this.texts.of('tokenBad'));
        this.session.token = token;
        try {
            await this.api.markets({ limit: 1 });
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            if (error.status === 401 || error.status === 403) {
                const why = this.session.left <= 0 ? this.texts.of('expired') : this.texts.of('refused', { why: error.message });
                this.session.token = null;
                return this.#signIn(why);
            }
            // The publisher cannot judge the token now. The page shows that, and keeps trying.
        }
        find('token').value = '';
        this.#isSignedOut = false;
        if (find('signin').open) find('signin').close();
        find('desk').hidden = false;
        this.#showWho();
        this.show();
        this.audit.redraw();
        await this.list.load('', this.list.ids.length > 0);
        this.pollers.forEach((poller) => poller.start());
        if (!this.selected) this.list.focus();
    }

    #showWho() {
        const { sub, role } = this.session.claims;
        const isIn = Boolean(this.session.token) && !find('signin').open;
        find('who').hidden = !isIn;
        find('signout').hidden = !isIn;
        put(find('sub'), sub ?? '');
        find('sub').title = sub ?? '';
        put(find('role'), role ?? '');
        document.body.classList.toggle('trader', this.session.mayTrade);
    }

    /** Shows how old the prices are, and when the session ends. */
    #showFreshness() {
        const { texts } = this;
        const link = find('link');
        const isIn = !find('desk').hidden && !find('signin').open;
        link.hidden = !isIn;
        if (!isIn) {
            find('banner').hidden = true;
            find('expiry').hidden = true;
            return;
        }
        const old = this.#respondedAt === null ? Infinity : performance.now() - this.#respondedAt;
        const isStale = this.#isLost || old > STALE_AFTER_MS;
        const text = old === Infinity ? texts.of('waiting') : isStale ? texts.of('lost') : texts.of('live', { age: `${(old / 1000).toFixed(1)} s` });
        put(link, text);
        link.className = `badge ${isStale ? 'bad' : 'good'}`;
        document.body.classList.toggle('stale', isStale);
        find('banner').hidden = !isStale;
        put(find('banner'), isStale ? (old === Infinity ? texts.of('staleNever') : texts.of('stale', { age: age(texts, old) })) : '');
        const { left } = this.session;
        find('expiry').hidden = left > EXPIRY_SHOWN_MS;
        if (left <= EXPIRY_SHOWN_MS) put(find('expiry'), texts.of('expiresIn', { time: countdown(left) }));
        if (left <= 0) this.expired('');
    }

    #key(event) {
        if (document.querySelector('dialog[open]')) return;
        const { target } = event;
        const isTyping = ['INPUT', 'TEXTAREA', 'SELECT'].includes(target.tagName);
        const keys = {
            '/': () => find('search').focus(),
            '?': () => showKeys(this.texts),
            j: () => this.list.move(1),
            k: () => this.list.move(-1),
            ArrowDown: () => this.list.move(1),
            ArrowUp: () => this.list.move(-1),
        };
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            this.sender.submit();
        } else if (event.key === 'Escape') {
            if (isTyping && target.id === 'search') {
                target.value = '';
                target.dispatchEvent(new Event('input'));
                this.list.focus();
            } else if (this.selected && !this.draft().isEmpty) {
                this.market.cancel();
                this.list.focus();
            } else this.list.focus();
        } else if (event.ctrlKey || event.metaKey || event.altKey) {
            // Leave shortcuts of the browser alone.
        } else if (isTyping) {
            if (target.id === 'search' && ['ArrowDown', 'ArrowUp', 'Enter'].includes(event.key)) {
                event.preventDefault();
                this.list.move(event.key === 'ArrowUp' ? -1 : this.list.ids.includes(this.selected) ? 1 : 0);
            }
        } else if (event.key === 'Enter') {
            const id = target.closest('#list li')?.dataset.id;
            if (!id) return;
            event.preventDefault();
            this.choose(id);
            this.market.edit();
        } else if (Object.hasOwn(keys, event.key)) {
            event.preventDefault();
            keys[event.key]();
        }
    }
}

new App().start();
