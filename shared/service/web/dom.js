// Makes elements from text only, so that nothing from a log ever becomes markup.

/**
 * Returns a new element. `tag` may have classes: `button.primary`. An attribute `on…` is a listener. Attributes and
 * children that are `false`, `null` or `undefined` are left out.
 */
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

/** Sets an element's text, if it differs. Setting it anyway would cost a layout and disturb selections and screen readers. */
export function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
}
