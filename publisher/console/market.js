// The chosen market in the middle: its prices, what the trader types, and sending it.

import { Refused, statusOf } from './api.js';
import { confirm } from './dialogs.js';
import { body, movedLines, plan, reasonProblem } from './diff.js';
import { el, find, put } from './dom.js';
import { keepingFocus } from './focus.js';
import { Decimal, parse, show } from './json.js';
import { change, diffList } from './rows.js';
import { age } from './time.js';

/** How often a market that only moved elsewhere is sent again before the trader is told. */
const ATTEMPTS = 5;
const TONES = { open: 'good', suspended: 'warn', closed: 'bad' };
/** The line that is changed by suspending and opening. */
const STATUS = 'status';

const key = (...names) => JSON.stringify(names);

export class MarketView {
    #app; #root = find('chosen'); #shape = ''; #cells = new Map(); #parts = {}; #problems = new Map();

    constructor(app) {
        this.#app = app;
        // Enter goes on to the next field; Ctrl+Enter, which sends, is the desk's.
        this.#root.addEventListener('keydown', (event) => {
            if (event.key !== 'Enter' || event.ctrlKey || event.metaKey || event.target.tagName !== 'INPUT') return;
            event.preventDefault();
            const fields = [...this.#root.querySelectorAll('input:not(:disabled), textarea')];
            fields[fields.indexOf(event.target) + 1]?.focus();
        });
    }

    /** Shows how the market and the draft stand now. */
    show() {
        const app = this.#app;
        const market = app.markets.get(app.selected);
        find('choose').hidden = Boolean(market);
        this.#root.hidden = !market;
        if (!market) return;
        const draft = app.draft();
        const shape = JSON.stringify([
            market.id, draft.id, app.texts.language, app.session.mayTrade,
            [...market.lines].map(([line, of]) => [line, [...of].map(([name, value]) => [name, isEditable(line, value)])]),
            [...draft.edits].map(([line, edit]) => [line, edit.isRemoved, edit.replaced !== undefined, edit.extra.length]),
            draft.added.map(({ extra }) => extra.length),
        ]);
        if (shape !== this.#shape) {
            this.#shape = shape;
            const scrolled = this.#parts.lines?.scrollTop ?? 0;
            keepingFocus(this.#root, () => this.#build(market, draft));
            this.#parts.lines.scrollTop = scrolled;
        }
        this.#refresh(market, draft);
    }

    /** Puts the cursor where the first price is typed. */
    edit() {
        (this.#root.querySelector('.line input:not(:disabled)') ?? this.#root.querySelector('button'))?.focus();
    }

    cancel() {
        this.#app.drop();
        this.#shape = '';
        this.show();
    }

    /** Everything that can be wrong is looked at, and asked about, before anything is sent. */
    async submit() {
        const app = this.#app;
        const id = app.selected;
        const draft = app.draft();
        if (draft.isEmpty || draft.isBusy || !app.session.mayTrade) return;
        draft.isTried = true;
        draft.failed = null;
        draft.pending = null;
        let agreed = '';
        for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
            const market = app.markets.get(id);
            const { payload, rows, problems } = plan(draft, market.lines);
            this.show();
            if (problems.length || reasonProblem(draft.reason)) {
                this.#root.querySelector('[aria-invalid="true"]')?.focus();
                return;
            }
            const moved = movedLines(draft, market.lines, parse);
            if (moved.length) {
                if (!await this.#askConflict(moved, rows)) return;
                draft.seeAgain(market.lines);
            }
            const large = JSON.stringify(rows.filter((row) => row.isLarge).map(({ line, selection, before, after }) => [line, selection, before, after]));
            if (large !== '[]' && large !== agreed) {
                if (!await this.#askLarge(rows.filter((row) => row.isLarge))) return;
                agreed = large;
            }
            draft.pending = { body: body(id, payload, draft.reason.trim(), market.seq), key: uuid() };
            if (await this.#send(id, draft) !== 'conflict') return;
            await app.refresh([id]);
        }
        draft.failed = app.texts.of('failed', { why: app.texts.of('conflict') });
        this.show();
    }

    /** The same request again, with its key. */
    async again() {
        const draft = this.#app.draft();
        if (draft.pending && !draft.isBusy && await this.#send(this.#app.selected, draft) === 'conflict') {
            await this.#app.refresh([this.#app.selected]);
            await this.submit();
        }
    }

    async #send(id, draft) {
        const app = this.#app;
        draft.isBusy = true;
        draft.failed = null;
        this.show();
        try {
            const { seq } = await app.api.override(draft.pending.body, draft.pending.key);
            app.drafts.delete(id);
            app.say(app.texts.of('published', { id, seq }), 'good');
            await app.refresh([id]);
            app.audit.tail();
            return 'done';
        } catch (error) {
            if (!(error instanceof Refused)) throw error;
            if (error.status === 409) return 'conflict';
            if (error.status === 401) app.expired(error.message);
            if (!error.isUnknown) {
                draft.pending = null;
                draft.failed = app.texts.of('failed', { why: error.message });
            } else draft.failed = app.texts.of('unknown', { why: error.message });
            return 'failed';
        } finally {
            draft.isBusy = false;
            this.show();
        }
    }

    /** What was seen, what is there now, and what would be sent, side by side. */
    #askConflict(moved, rows) {
        const { texts } = this.#app;
        const table = new Map();
        const at = ({ line, selection }) => {
            const name = key(line, selection);
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

    #askLarge(rows) {
        const { texts } = this.#app;
        return confirm(texts, {
            title: texts.of('confirmLarge'), yes: texts.of('yesPublish'), no: texts.of('back'), isDanger: true,
            content: [el('p', {}, texts.of('confirmLargeText')), diffList(texts, rows)],
        });
    }

    #build(market, draft) {
        const { texts, session } = this.#app;
        this.#cells.clear();
        this.#problems.clear();
        const parts = this.#parts = {
            status: el('span.badge'), seq: el('span.faint'), changed: el('span.faint'),
            toggle: el('button', { type: 'button', 'data-trader': true, onclick: () => this.#app.setStatus(parts.toggle.dataset.verb, market.id) }),
        };
        const lines = [...market.lines].map(([line, of]) => this.#buildLine(line, of, draft));
        draft.added.forEach((added, index) => lines.push(this.#buildAdded(added, `+${index}`, draft)));
        if (session.mayTrade) {
            lines.push(el('div.line-head', {}, el('button.quiet', {
                type: 'button', 'data-key': 'add-line', onclick: () => {
                    draft.added.push({ name: '', extra: [{ name: '', value: '' }] });
                    this.#touched();
                    [...this.#root.querySelectorAll('input.line-name')].at(-1)?.focus();
                },
            }, texts.of('addLine'))));
        }
        parts.lines = el('div.lines', { tabindex: -1 }, ...lines);
        this.#root.replaceChildren(
            el('div.head', {},
                el('h2', { id: 'market-title' }, texts.of('market', { id: market.id })), parts.status, el('span.facts', {}, parts.seq, parts.changed), el('span.fill'), parts.toggle),
            parts.lines, ...(session.mayTrade ? [this.#buildReview(draft)] : []));
    }

    #buildLine(line, of, draft) {
        const { texts, session } = this.#app;
        const edit = draft.edits.get(line);
        const isFixed = !session.mayTrade || edit?.isRemoved || edit?.replaced !== undefined;
        const rows = [...of].map(([selection, value]) => {
            const cell = { current: el('td.number.current'), change: el('td') };
            if (session.mayTrade && isEditable(line, value)) {
                cell.input = el('input', {
                    'data-key': key(line, selection), autocomplete: 'off', spellcheck: 'false', disabled: isFixed,
                    inputmode: value instanceof Decimal ? 'decimal' : null, 'aria-label': texts.of('edit', { line, selection }),
                    oninput: ({ target }) => {
                        draft.type(line, selection, value instanceof Decimal ? target.value.trim() : target.value, this.#app.markets.get(this.#app.selected).lines);
                        this.#touched();
                    },
                });
                cell.input.value = edit?.cells?.get(selection) ?? '';
            }
            this.#cells.set(key(line, selection), cell);
            return el('tr', {}, el('td', {}, selection), cell.current, session.mayTrade && el('td', {}, cell.input), session.mayTrade && cell.change);
        });
        const extras = (edit?.extra ?? []).map((extra, index) => this.#buildExtra(line, edit.extra, extra, index, draft));
        const tools = session.mayTrade && line !== STATUS && edit?.replaced === undefined ? [
            !edit?.isRemoved && el('button.quiet.small', {
                type: 'button', 'data-key': key('add', line), onclick: () => this.#addSelection(draft.of(line, this.#lines()).extra),
            }, texts.of('addSelection')),
            el('button.quiet.small', {
                type: 'button', 'data-key': key('remove', line), onclick: () => {
                    const of = draft.of(line, this.#lines());
                    of.isRemoved = !of.isRemoved;
                    draft.tidy(line);
                    this.#touched();
                },
            }, texts.of(edit?.isRemoved ? 'keepLine' : 'removeLine')),
        ] : [];
        const head = ['selection', 'current', ...(session.mayTrade && line !== STATUS ? ['new', 'change'] : ['', ''])];
        return el(`section.line${edit?.isRemoved ? '.gone' : ''}`, {},
            el('div.line-head', {}, el('h3', {}, line), edit?.isRemoved && el('span.badge.bad', {}, texts.of('removed')), el('span.fill'), ...tools),
            el('table', {},
                el('thead', {}, el('tr', {}, ...head.map((name, index) => el(['th.s', 'th.number.c', 'th.number.n', 'th'][index], {}, name ? texts.of(name) : '')))),
                el('tbody', {}, ...rows, ...extras)));
    }

    #buildAdded(added, at, draft) {
        const { texts } = this.#app;
        const name = el('input.name.line-name', {
            'data-key': key(at), maxlength: 64, placeholder: texts.of('lineName'), 'aria-label': texts.of('lineName'), autocomplete: 'off', spellcheck: 'false',
            oninput: ({ target }) => { added.name = target.value; this.#touched(); },
        });
        name.value = added.name;
        const problem = el('span.problem');
        this.#problems.set(key(at, null), { problem, inputs: [name] });
        const drop = () => {
            draft.added.splice(draft.added.indexOf(added), 1);
            this.#touched();
        };
        return el('section.line', {},
            el('div.line-head', {}, name, problem, el('span.fill'),
                el('button.quiet.small', { type: 'button', onclick: () => this.#addSelection(added.extra) }, texts.of('addSelection')),
                el('button.quiet.small', { type: 'button', onclick: drop }, texts.of('drop'))),
            el('table', {},
                el('thead', {}, el('tr', {}, ...['selection', 'current', 'new', 'change'].map((head, index) => el(['th.s', 'th.number.c', 'th.number.n', 'th'][index], {}, texts.of(head))))),
                el('tbody', {}, ...added.extra.map((extra, index) => this.#buildExtra(at, added.extra, extra, index, draft)))));
    }

    /** A selection that is not there yet. */
    #buildExtra(line, all, extra, index, draft) {
        const { texts } = this.#app;
        const field = (kind, of, label) => {
            const input = el(kind === 'name' ? 'input.name' : 'input', {
                'data-key': key(line, `+${index}`, kind), placeholder: label, 'aria-label': label, autocomplete: 'off', spellcheck: 'false', maxlength: 64,
                oninput: ({ target }) => { extra[of] = target.value.trim(); this.#touched(); },
            });
            input.value = extra[of];
            return input;
        };
        const [name, value] = [field('name', 'name', texts.of('selectionName')), field('value', 'value', texts.of('price'))];
        const problem = el('span.problem');
        this.#problems.set(key(line, `+${index}`), { problem, inputs: [name, value] });
        const drop = () => {
            all.splice(all.indexOf(extra), 1);
            draft.tidy(line);
            this.#touched();
        };
        return el('tr', {}, el('td', {}, name), el('td.number.faint', {}, texts.of('absent')), el('td', {}, value),
            el('td', {}, el('button.quiet.small', { type: 'button', onclick: drop }, texts.of('drop')), problem));
    }

    #addSelection(extra) {
        extra.push({ name: '', value: '' });
        this.#touched();
        [...this.#root.querySelectorAll('input.name')].findLast((input) => !input.value)?.focus();
    }

    #buildReview(draft) {
        const { texts } = this.#app;
        const parts = this.#parts;
        parts.reason = el('textarea', {
            id: 'reason', 'data-key': 'reason', rows: 1, maxlength: 500, placeholder: texts.of('reasonHint'), 'aria-label': texts.of('reason'),
            oninput: ({ target }) => { draft.reason = target.value; this.#touched(); },
        });
        parts.reason.value = draft.reason;
        Object.assign(parts, {
            diffs: el('div', { id: 'diffs' }), moved: el('div.note', { role: 'alert', hidden: true }), later: el('div.note', { hidden: true }),
            failed: el('div.note.bad', { role: 'alert', hidden: true }), undo: el('span.badge.accent', { hidden: true }), wrong: el('span.problem', { role: 'status' }),
            again: el('button', { id: 'again', type: 'button', onclick: () => this.again() }, texts.of('again')),
            cancel: el('button', { id: 'cancel', type: 'button', onclick: () => this.cancel() }, texts.of('cancel')),
            publish: el('button.primary', { id: 'publish', type: 'button', onclick: () => this.submit() }),
        });
        return el('div.review', { 'aria-label': texts.of('review'), role: 'group' },
            el('div.title', {}, el('h3', {}, texts.of('review')), parts.undo),
            parts.diffs, parts.moved, parts.later, parts.failed, parts.reason,
            el('div.actions', {}, parts.wrong, el('span.fill'), parts.again, parts.cancel, parts.publish));
    }

    #refresh(market, draft) {
        const app = this.#app;
        const { texts, session } = app;
        const parts = this.#parts;
        const status = statusOf(market.lines);
        put(parts.status, status ? (status in TONES ? texts.of(status) : status) : '');
        parts.status.className = `badge ${TONES[status] ?? ''}`;
        parts.status.hidden = !status;
        put(parts.seq, texts.of('seq', { seq: market.seq }));
        put(parts.changed, market.ts ? texts.of('changed', { age: age(texts, app.now - market.ts) }) : texts.of('never'));
        const verb = status === 'suspended' || status === 'closed' ? 'open' : 'suspend';
        parts.toggle.dataset.verb = verb;
        parts.toggle.className = verb === 'suspend' ? 'danger' : '';
        parts.toggle.disabled = market.seq === 0;
        put(parts.toggle, texts.of(verb === 'suspend' ? 'suspend' : 'reopen'));
        const { rows, problems } = plan(draft, market.lines);
        for (const [line, of] of market.lines) {
            for (const [selection, value] of of) {
                const { current, change: into, input } = this.#cells.get(key(line, selection));
                put(current, show(value));
                if (!session.mayTrade) continue;
                if (input) input.placeholder = show(value);
                if (input && draft.edits.get(line)?.replaced !== undefined) input.value = rows.find((of) => of.line === line && of.selection === selection)?.after ?? '';
                const problem = problems.find((of) => of.line === line && of.selection === selection)?.problem;
                const row = rows.find((of) => of.line === line && of.selection === selection);
                input?.setAttribute('aria-invalid', String(Boolean(problem)));
                into.replaceChildren(...(problem ? [el('span.problem', {}, texts.of(problem))] : row && !draft.edits.get(line)?.isRemoved ? [change(texts, row)] : []));
            }
        }
        if (session.mayTrade) this.#refreshReview(market, draft, rows, problems);
    }

    #refreshReview(market, draft, rows, problems) {
        const { texts } = this.#app;
        const parts = this.#parts;
        // What is new is not called wrong before it was tried to be sent, or has something in it.
        for (const [name, { problem, inputs }] of this.#problems) {
            const found = problems.find(({ line, selection }) => key(line, selection) === name)?.problem;
            const isTold = found && (draft.isTried || inputs.every((input) => input.value !== ''));
            put(problem, isTold ? texts.of(found) : '');
            inputs.forEach((input) => input.setAttribute('aria-invalid', String(Boolean(isTold))));
        }
        const about = draft.isEmpty ? null : reasonProblem(draft.reason);
        const whole = problems.find(({ line }) => line === null)?.problem;
        const isReasonWrong = about && (draft.isTried || about !== 'noReason');
        parts.reason.setAttribute('aria-invalid', String(Boolean(isReasonWrong)));
        put(parts.wrong, whole ? texts.of(whole) : isReasonWrong ? `${texts.of('reason')}: ${texts.of(about === 'noReason' ? 'noReason' : 'reasonBad')}` : '');
        parts.diffs.replaceChildren(draft.isEmpty ? el('p.faint', {}, texts.of('noChanges')) : diffList(texts, rows, 12));
        const moved = movedLines(draft, market.lines, parse);
        note(parts.moved, moved.length > 0, () => [texts.of('moved'), diffList(texts, moved, 6)]);
        const later = draft.later ?? [];
        note(parts.later, later.length > 0, () => [texts.of('laterTouched', { which: later.slice(0, 8).map(({ seq, actor }) => `seq ${seq} (${actor})`).join(', ') })]);
        note(parts.failed, Boolean(draft.failed), () => [draft.failed]);
        parts.undo.hidden = !draft.undoOf;
        put(parts.undo, draft.undoOf ? texts.of('undoing', { id: draft.undoOf }) : '');
        parts.again.hidden = !draft.pending || !draft.failed;
        parts.cancel.hidden = draft.isEmpty;
        parts.publish.disabled = draft.isEmpty || Boolean(draft.isBusy);
        parts.publish.replaceChildren(texts.of(draft.isBusy ? 'publishing' : 'publish'), el('kbd', { 'aria-hidden': 'true' }, texts.of('publishKey')));
        parts.reason.closest('.review').classList.toggle('idle', draft.isEmpty);
    }

    #lines() { return this.#app.markets.get(this.#app.selected).lines; }

    /** The draft is another one now: what was sent before is not it. */
    #touched() {
        const draft = this.#app.draft();
        draft.failed = null;
        draft.pending = null;
        this.show();
    }
}

/** Told once while it stays the same, so that it is read out once. */
function note(element, isShown, content) {
    element.hidden = !isShown;
    const next = el('div', {}, ...(isShown ? content() : []));
    if (element.textContent !== next.textContent) element.replaceChildren(...next.childNodes);
}

function isEditable(line, value) {
    return line !== STATUS && (value instanceof Decimal || typeof value === 'string');
}

/** For a secure page the browser's own; a page over plain HTTP has only random bytes. */
function uuid() {
    if (crypto.randomUUID) return crypto.randomUUID();
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
