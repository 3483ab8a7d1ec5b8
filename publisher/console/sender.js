// Sends the selected market's draft as an override: checks it, lets the trader confirm large moves and conflicts, and sends
// it again when other lines of the market have changed meanwhile.

import { ApiError } from './api.js';
import { confirm } from './dialogs.js';
import { body, movedLines, plan, reasonProblem } from './diff.js';
import { el } from './dom.js';
import { parse } from './json.js';
import { diffList } from './rows.js';

/** How often an override is repeated while other lines of the market change, before it counts as failed. */
const ATTEMPTS = 5;

export class Sender {
    #app;

    constructor(app) { this.#app = app; }

    /** Sends the draft, unless it has problems or the trader declines. */
    async submit() {
        const app = this.#app;
        const id = app.selected;
        const draft = app.draft();
        if (draft.isEmpty || draft.isBusy || !app.session.mayTrade) return;
        draft.isTried = true;
        draft.failed = null;
        draft.pending = null;
        let confirmed = '[]';
        for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
            const market = app.markets.get(id);
            const { payload, rows, problems } = plan(draft, market.lines);
            app.market.show();
            if (problems.length || reasonProblem(draft.reason)) {
                app.market.focusProblem();
                return;
            }
            const moved = movedLines(draft, market.lines, parse);
            if (moved.length) {
                if (!await confirmConflict(app.texts, moved, rows)) return;
                draft.acceptCurrent(market.lines);
            }
            const large = rows.filter((row) => row.isLarge);
            const asked = JSON.stringify(large.map(({ line, selection, before, after }) => [line, selection, before, after]));
            if (asked !== '[]' && asked !== confirmed) {
                if (!await confirmLarge(app.texts, large)) return;
                confirmed = asked;
            }
            draft.pending = { body: body(id, payload, draft.reason.trim(), market.seq), key: uuid() };
            if (await this.#send(id, draft) !== 'conflict') return;
            await app.refresh([id]);
        }
        draft.failed = app.texts.of('failed', { why: app.texts.of('conflict') });
        app.market.show();
    }

    /** Sends the same request again, with the same idempotency key, after its outcome was unknown. */
    async again() {
        const app = this.#app;
        const draft = app.draft();
        if (draft.pending && !draft.isBusy && await this.#send(app.selected, draft) === 'conflict') {
            await app.refresh([app.selected]);
            await this.submit();
        }
    }

    /** Returns `done`, `conflict` or `failed`. */
    async #send(id, draft) {
        const app = this.#app;
        draft.isBusy = true;
        draft.failed = null;
        app.market.show();
        try {
            const { seq } = await app.api.override(draft.pending.body, draft.pending.key);
            app.drafts.delete(id);
            app.say(app.texts.of('published', { id, seq }), 'good');
            await app.refresh([id]);
            app.audit.tail();
            return 'done';
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            if (error.status === 409) return 'conflict';
            if (error.status === 401) app.expired(error.message);
            if (!error.isUnknown) draft.pending = null;
            draft.failed = app.texts.of(error.isUnknown ? 'unknown' : 'failed', { why: error.message });
            return 'failed';
        } finally {
            draft.isBusy = false;
            app.market.show();
        }
    }
}

/** Shows, side by side, the prices that the trader saw, the prices now, and the prices to be sent. */
function confirmConflict(texts, moved, rows) {
    const table = new Map();
    const at = ({ line, selection }) => {
        const name = JSON.stringify([line, selection]);
        if (!table.has(name)) table.set(name, { line, selection });
        return table.get(name);
    };
    for (const row of moved) Object.assign(at(row), { saw: row.before, now: row.after });
    for (const row of rows) {
        const into = at(row);
        Object.assign(into, { now: row.before, yours: row.after, saw: 'saw' in into ? into.saw : row.before });
    }
    const text = (value) => value ?? texts.of('absent');
    const lines = [...table.values()].map(({ line, selection, saw, now, yours = now }) => el('tr', {},
        el('td', {}, `${line} ${selection}`), el('td.number', {}, text(saw)), el('td.number', {}, el('b', {}, text(now))), el('td.number', {}, text(yours))));
    const head = ['selection', 'saw', 'now', 'yours'].map((name, index) => el(index ? 'th.number' : 'th', {}, texts.of(name)));
    return confirm(texts, {
        title: texts.of('conflict'), yes: texts.of('sendAnyway'), no: texts.of('back'), isDanger: true,
        content: [el('p', {}, texts.of('conflictText')), el('table', {}, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...lines))],
    });
}

function confirmLarge(texts, rows) {
    return confirm(texts, {
        title: texts.of('confirmLarge'), yes: texts.of('yesPublish'), no: texts.of('back'), isDanger: true,
        content: [el('p', {}, texts.of('confirmLargeText')), diffList(texts, rows)],
    });
}

/** Returns a new idempotency key. `crypto.randomUUID` exists only on pages served over HTTPS or from localhost. */
function uuid() {
    if (crypto.randomUUID) return crypto.randomUUID();
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
