// Elements without markup: what comes from the log is text and nothing else.

export const byId = (id) => document.getElementById(id);

export function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
}

/** Only when it differs: a write that changes nothing costs a layout all the same. */
export function write(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

export function svg(tag, attributes) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
}
