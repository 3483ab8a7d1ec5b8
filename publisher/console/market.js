// The selected market in the middle of the desk: its prices, the fields in which a trader types new ones, and the review of
// what would change. `sender.js` sends it.

import { statusOf } from './api.js';
import { movedLines, plan, reasonProblem } from './diff.js';
import { el, find, put } from './dom.js';
import { keepingFocus } from './focus.js';
import { Decimal, parse, show } from './json.js';
import { change, diffList } from './rows.js';
import { age } from './time.js';

const TONES = { open: 'good', suspended: 'warn', closed: 'bad' };
/** The line that only suspending and opening a market changes. */
const STATUS = 'status';

const key = (...names) => JSON.stringify(names);

export class MarketView {
    #app; #root = find('chosen'); #shape = ''; #cells = new Map(); #elements = {}; #problems = new Map();

    constructor(app) {
        this.#app = app;
        // Enter moves to the next field. main.js handles Ctrl+Enter, which sends.
        this.#root.addEventListener('keydown', (event) => {
            if (event.key !== 'Enter' || event.ctrlKey || event.metaKey || event.target.tagName !== 'INPUT') return;
            event.preventDefault();
            const fields = [...this.#root.querySelectorAll('input:not(:disabled), textarea')];
            fields[fields.indexOf(event.target) + 1]?.focus();
        });
    }

    /** Draws the market and its draft. Builds the elements again only when there are others than before. */
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
            const scrolled = this.#elements.lines?.scrollTop ?? 0;
            keepingFocus(this.#root, () => this.#build(market, draft));
            this.#elements.lines.scrollTop = scrolled;
        }
        this.#refresh(market, draft);
    }

    /** Moves the focus to the first field for a price. */
    edit() {
        (this.#root.querySelector('.line input:not(:disabled)') ?? this.#root.querySelector('button'))?.focus();
    }

    cancel() {
        this.#app.dropDraft();
        this.#shape = '';
        this.show();
    }

    /** Moves the focus to the first field with a problem. */
    focusProblem() { this.#root.querySelector('[aria-invalid="true"]')?.focus(); }

    #build(market, draft) {
        const { texts, session } = this.#app;
        this.#cells.clear();
        this.#problems.clear();
        const elements = this.#elements = {
            status: el('span.badge'), seq: el('span.faint'), changed: el('span.faint'),
            toggle: el('button', { type: 'button', 'data-trader': true, onclick: () => this.#app.setStatus(elements.toggle.dataset.verb, market.id) }),
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
        elements.lines = el('div.lines', { tabindex: -1 }, ...lines);
        this.#root.replaceChildren(
            el('div.head', {},
                el('h2', { id: 'market-title' }, texts.of('market', { id: market.id })), elements.status, el('span.facts', {}, elements.seq, elements.changed), el('span.fill'), elements.toggle),
            elements.lines, ...(session.mayTrade ? [this.#buildReview(draft)] : []));
    }

    /** A line of the market. */
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

    /** A line that the trader adds. */
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

    /** A row for a selection that the trader adds. */
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
        const elements = this.#elements;
        elements.reason = el('textarea', {
            id: 'reason', 'data-key': 'reason', rows: 1, maxlength: 500, placeholder: texts.of('reasonHint'), 'aria-label': texts.of('reason'),
            oninput: ({ target }) => { draft.reason = target.value; this.#touched(); },
        });
        elements.reason.value = draft.reason;
        Object.assign(elements, {
            diffs: el('div', { id: 'diffs' }), moved: el('div.note', { role: 'alert', hidden: true }), later: el('div.note', { hidden: true }),
            failed: el('div.note.bad', { role: 'alert', hidden: true }), undo: el('span.badge.accent', { hidden: true }), wrong: el('span.problem', { role: 'status' }),
            again: el('button', { id: 'again', type: 'button', onclick: () => this.#app.sender.again() }, texts.of('again')),
            cancel: el('button', { id: 'cancel', type: 'button', onclick: () => this.cancel() }, texts.of('cancel')),
            publish: el('button.primary', { id: 'publish', type: 'button', onclick: () => this.#app.sender.submit() }),
        });
        return el('div.review', { 'aria-label': texts.of('review'), role: 'group' },
            el('div.title', {}, el('h3', {}, texts.of('review')), elements.undo),
            elements.diffs, elements.moved, elements.later, elements.failed, elements.reason,
            el('div.actions', {}, elements.wrong, el('span.fill'), elements.again, elements.cancel, elements.publish));
    }

    /** Updates texts and states in the elements that `#build` made. */
    #refresh(market, draft) {
        const app = this.#app;
        const { texts, session } = app;
        const elements = this.#elements;
        const status = statusOf(market.lines);
        put(elements.status, status ? (status in TONES ? texts.of(status) : status) : '');
        elements.status.className = `badge ${TONES[status] ?? ''}`;
        elements.status.hidden = !status;
        put(elements.seq, texts.of('seq', { seq: market.seq }));
        put(elements.changed, market.ts ? texts.of('changed', { age: age(texts, app.now - market.ts) }) : texts.of('never'));
        const verb = status === 'suspended' || status === 'closed' ? 'open' : 'suspend';
        elements.toggle.dataset.verb = verb;
        elements.toggle.className = verb === 'suspend' ? 'danger' : '';
        elements.toggle.disabled = market.seq === 0;
        put(elements.toggle, texts.of(verb === 'suspend' ? 'suspend' : 'reopen'));
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
        const elements = this.#elements;
        // A new row shows its problem only when every field of it has text, or after an attempt to send it.
        for (const [name, { problem, inputs }] of this.#problems) {
            const found = problems.find(({ line, selection }) => key(line, selection) === name)?.problem;
            const isShown = found && (draft.isTried || inputs.every((input) => input.value !== ''));
            put(problem, isShown ? texts.of(found) : '');
            inputs.forEach((input) => input.setAttribute('aria-invalid', String(Boolean(isShown))));
        }
        const about = draft.isEmpty ? null : reasonProblem(draft.reason);
        const whole = problems.find(({ line }) => line === null)?.problem;
        const isReasonWrong = about && (draft.isTried || about !== 'noReason');
        elements.reason.setAttribute('aria-invalid', String(Boolean(isReasonWrong)));
        put(elements.wrong, whole ? texts.of(whole) : isReasonWrong ? `${texts.of('reason')}: ${texts.of(about === 'noReason' ? 'noReason' : 'reasonBad')}` : '');
        elements.diffs.replaceChildren(draft.isEmpty ? el('p.faint', {}, texts.of('noChanges')) : diffList(texts, rows, 12));
        const moved = movedLines(draft, market.lines, parse);
        note(elements.moved, moved.length > 0, () => [texts.of('moved'), diffList(texts, moved, 6)]);
        const later = draft.later ?? [];
        note(elements.later, later.length > 0, () => [texts.of('laterTouched', { which: later.slice(0, 8).map(({ seq, actor }) => `seq ${seq} (${actor})`).join(', ') })]);
        note(elements.failed, Boolean(draft.failed), () => [draft.failed]);
        elements.undo.hidden = !draft.undoOf;
        put(elements.undo, draft.undoOf ? texts.of('undoing', { id: draft.undoOf }) : '');
        elements.again.hidden = !draft.pending || !draft.failed;
        elements.cancel.hidden = draft.isEmpty;
        elements.publish.disabled = draft.isEmpty || Boolean(draft.isBusy);
        elements.publish.replaceChildren(texts.of(draft.isBusy ? 'publishing' : 'publish'), el('kbd', { 'aria-hidden': 'true' }, texts.of('publishKey')));
        elements.reason.closest('.review').classList.toggle('idle', draft.isEmpty);
    }

    #lines() { return this.#app.markets.get(this.#app.selected).lines; }

    /** The draft has changed, so the request that was sent before cannot be repeated. */
    #touched() {
        const draft = this.#app.draft();
        draft.failed = null;
        draft.pending = null;
        this.show();
    }
}

/** Shows or hides a note. Leaves an unchanged text alone, so that screen readers read it only once. */
function note(element, isShown, content) {
    element.hidden = !isShown;
    const next = el('div', {}, ...(isShown ? content() : []));
    if (element.textContent !== next.textContent) element.replaceChildren(...next.childNodes);
}

function isEditable(line, value) {
    return line !== STATUS && (value instanceof Decimal || typeof value === 'string');
}
