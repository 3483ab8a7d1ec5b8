// The reader's place in what is drawn anew.

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
