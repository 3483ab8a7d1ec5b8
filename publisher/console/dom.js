// Elements, made of text only.

/** `tag` may have a class: `button.primary`. An attribute `on…` is a listener; `false`, `null` and `undefined` leave one out. */
export function el(tag, attributes = {}, ...children) {
    const [name, ...classes] = tag.split('.');
    const element = document.createElement(name);
    if (classes.length) element.className = classes.join(' ');
    for (const [key, value] of Object.entries(attributes)) {
        if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
        else if (value === true) element.setAttribute(key, '');
        else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
}

export const find = (id) => document.getElementById(id);

/** Only what differs is touched, so that nobody's selection or screen reader is disturbed. */
export function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** Runs `redraw`, and leaves the focus and the cursor in the field that has the same `data-key`. */
export function keepingFocus(root, redraw) {
    const active = root.contains(document.activeElement) ? document.activeElement : null;
    const key = active?.dataset.key;
    const [from, to] = [active?.selectionStart, active?.selectionEnd];
    redraw();
    if (!key) return;
    const again = [...root.querySelectorAll('[data-key]')].find((element) => element.dataset.key === key);
    if (!again || again === document.activeElement) return;
    again.focus({ preventScroll: true });
    if (typeof from === 'number' && again.setSelectionRange) again.setSelectionRange(from, to);
}
