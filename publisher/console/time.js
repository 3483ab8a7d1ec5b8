// Times for people.

/** `12 s`, `3 min` … of some milliseconds. */
export function age(texts, ms) {
    const s = Math.max(0, Math.floor(ms / 1000));
    if (s < 60) return texts.of('seconds', { n: s });
    if (s < 3600) return texts.of('minutes', { n: Math.floor(s / 60) });
    if (s < 86_400) return texts.of('hours', { n: Math.floor(s / 3600) });
    return texts.of('days', { n: Math.floor(s / 86_400) });
}

/** `4:05` of some milliseconds. */
export function countdown(ms) {
    const s = Math.max(0, Math.ceil(ms / 1000));
    return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
}

const two = (n) => String(n).padStart(2, '0');

/** The reader's own time, the date only where it is another day. */
export function clock(ts, now = Date.now()) {
    const at = new Date(ts);
    const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    if (at.toDateString() === new Date(now).toDateString()) return time;
    return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}
