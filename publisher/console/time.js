// Times in the words of people.

/** Formats an age: `12 s`, `3 min` … */
export function age(texts, ms) {
    const s = Math.max(0, Math.floor(ms / 1000));
    if (s < 60) return texts.of('seconds', { n: s });
    if (s < 3600) return texts.of('minutes', { n: Math.floor(s / 60) });
    if (s < 86_400) return texts.of('hours', { n: Math.floor(s / 3600) });
    return texts.of('days', { n: Math.floor(s / 86_400) });
}

/** Formats a time that is left: `4:05`. */
export function countdown(ms) {
    const s = Math.max(0, Math.ceil(ms / 1000));
    return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
}

const two = (n) => String(n).padStart(2, '0');

/** Formats a moment in the reader's time zone. Has the date only if it is not today. */
export function clock(ts, now = Date.now()) {
    const at = new Date(ts);
    const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    if (at.toDateString() === new Date(now).toDateString()) return time;
    return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}
