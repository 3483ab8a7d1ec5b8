// Modal dialogs. Esc declines.

import { el } from './dom.js';

/** Resolves to whether the trader confirmed. `isReady()`, called at each input, says whether the trader may. */
export function confirm(texts, { title, content = [], yes, no = texts.of('cancel'), isDanger = false, isReady = () => true }) {
    return new Promise((resolve) => {
        const sure = el(isDanger ? 'button.danger' : 'button.primary', { type: 'submit' }, yes);
        const form = el('form', {},
            el('h2', { id: 'question' }, title), ...content,
            el('div.actions', {}, el('button', { type: 'button', onclick: () => dialog.close() }, no), sure));
        const dialog = el('dialog', { 'aria-labelledby': 'question' }, form);
        const check = () => { sure.disabled = !isReady(); };
        form.addEventListener('input', check);
        form.addEventListener('submit', (event) => {
            event.preventDefault();
            if (isReady()) dialog.close('yes');
        });
        dialog.addEventListener('keydown', (event) => {
            if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
            event.stopPropagation();
        });
        dialog.addEventListener('close', () => {
            dialog.remove();
            resolve(dialog.returnValue === 'yes');
        });
        document.body.append(dialog);
        check();
        dialog.showModal();
        (form.querySelector('input, textarea') ?? sure).focus();
    });
}

/** Asks for the reason of a change of status. Resolves to null if the trader declines. A `phrase` must be typed to confirm. */
export async function askStatus(texts, { title, text, phrase, isDanger }) {
    const reason = el('input', { id: 'status-reason', maxlength: 500, autocomplete: 'off', placeholder: texts.of('reasonHint') });
    const typed = phrase && el('input', { id: 'status-phrase', autocomplete: 'off', spellcheck: 'false' });
    const isReady = () => reason.value.trim() !== '' && (!typed || typed.value.trim() === phrase);
    const content = [
        el('p', {}, text),
        el('label', { for: 'status-reason' }, texts.of('reason')), reason,
        ...(typed ? [el('label', { for: 'status-phrase' }, texts.of('typeToConfirm', { phrase: `“${phrase}”` })), typed] : []),
    ];
    const sure = await confirm(texts, { title, content, yes: texts.of('confirm'), isDanger, isReady });
    return sure ? reason.value.trim() : null;
}

export function showKeys(texts) {
    const keys = [['/', 'keySearch'], ['j  k  ↓  ↑', 'keyMove'], ['Enter', 'keyEdit'], ['Ctrl+Enter', 'keySubmit'], ['Esc', 'keyCancel'], ['?', 'keyHelp']];
    const rows = keys.flatMap(([key, name]) => [el('dt', {}, el('kbd', {}, key)), el('dd', {}, texts.of(name))]);
    const close = el('button', { type: 'button', onclick: () => dialog.close() }, texts.of('close'));
    const dialog = el('dialog', { 'aria-labelledby': 'question' },
        el('h2', { id: 'question' }, texts.of('keysTitle')), el('dl.keys', {}, ...rows), el('div.actions', {}, close));
    dialog.addEventListener('keydown', (event) => event.stopPropagation());
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}
