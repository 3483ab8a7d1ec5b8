// Keeps the focus while elements are replaced.

/** Runs `redraw`. Then the field with the same `data-key` has the focus and the cursor. */
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
