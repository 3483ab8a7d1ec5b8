// Elements, made of text only: what comes from a log is never markup.

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

/** Only what differs is touched: it costs a layout, and disturbs selections and screen readers. */
export function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
}
