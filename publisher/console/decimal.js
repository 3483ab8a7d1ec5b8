// Prices as decimal text, by the rules of the publisher (docs/protocol.md#rules-of-an-override). Nothing here is a float.
//
// `oddsProblem` repeats `check_decimal_odds` of shared/protocol/src/price.rs: docs/vectors/prices.json tests both. `PRICED`
// repeats that of shared/protocol/src/overrides.rs: a test compares it with the rules in docs/protocol.md.

/** Selections whose price must be decimal odds. */
export const PRICED = new Set(['home', 'away', 'draw', 'over', 'under', 'yes', 'no']);
/** A move above this many per cent needs a confirmation. */
export const LARGE_PERCENT = 20n;

const MAX_DECIMALS = 4;
const MAX_ODDS = 10_000n;

/** Returns what is wrong with odds (`notDecimal`, `tooPrecise` or `outOfRange`), or null. */
export function oddsProblem(text) {
    const match = /^(0|[1-9]\d*)(?:\.(\d+))?$/.exec(text);
    if (!match) return 'notDecimal';
    const [, whole, decimals = ''] = match;
    if (decimals.length > MAX_DECIMALS) return 'tooPrecise';
    const value = scaled(text, MAX_DECIMALS);
    return value > 10n ** 4n && value <= MAX_ODDS * 10n ** 4n && whole.length < 10 ? null : 'outOfRange';
}

/** Returns the move in tenths of a per cent, rounded to the nearest; null unless both are decimals and `before` is positive. */
export function movedBy(before, after) {
    const pair = both(before, after);
    if (!pair) return null;
    const [from, to] = pair;
    if (from <= 0n) return null;
    const twice = (to - from) * 2000n;
    const half = twice < 0n ? -from : from;
    return (twice + half) / (2n * from);
}

/** Returns whether the move is above LARGE_PERCENT. The comparison is exact. */
export function isLarge(before, after) {
    const pair = both(before, after);
    if (!pair) return false;
    const [from, to] = pair;
    const move = to > from ? to - from : from - to;
    return move * 100n > (from < 0n ? -from : from) * LARGE_PERCENT;
}

/** Returns −1, 0 or 1; null unless both are plain decimals. */
export function compare(a, b) {
    const pair = both(a, b);
    if (!pair) return null;
    return pair[0] < pair[1] ? -1 : Number(pair[0] > pair[1]);
}

/** Formats tenths of a per cent: `+12.3 %`. */
export function percent(tenths) {
    const size = tenths < 0n ? -tenths : tenths;
    const sign = tenths < 0n ? '−' : tenths > 0n ? '+' : '±';
    return `${sign}${size / 10n}.${size % 10n} %`;
}

/** Returns both decimals as integers of one scale, or null. */
function both(a, b) {
    const decimals = (text) => /^-?\d+(?:\.(\d+))?$/.exec(text)?.[1]?.length ?? (/^-?\d+$/.test(text) ? 0 : null);
    const counts = [decimals(a), decimals(b)];
    if (counts.includes(null)) return null;
    const scale = Math.max(...counts);
    return [scaled(a, scale), scaled(b, scale)];
}

function scaled(text, decimals) {
    const [whole, fraction = ''] = text.split('.');
    return BigInt(whole + fraction.padEnd(decimals, '0'));
}
