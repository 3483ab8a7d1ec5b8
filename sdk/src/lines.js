// Applies what a message carries to a market's lines. No I/O. Spread defines members, including one named __proto__:
// assignment would not.

const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);
const isObject = (value) => Boolean(value) && typeof value === 'object' && !Array.isArray(value);

/**
 * Returns the lines after an update: each line of `payload` replaces a whole line, and each line of `patch` replaces only
 * the selections that it has. `null` removes the line, or the selection. Returns null if `patch` names a line that is not
 * there: then `lines` are not those that the gateway made the patch for.
 */
export function merged(lines, payload = {}, patch = {}) {
    const result = without(payload, { ...lines, ...payload });
    for (const name of Object.keys(patch)) {
        if (!has(result, name) || !isObject(result[name])) return null;
        define(result, name, without(patch[name], { ...result[name], ...patch[name] }));
    }
    return result;
}

/** Throws unless `payload` and `patch` have the shape of an update's, and at least one of the two is there. */
export function checkLines({ payload, patch }) {
    const isGood = isObject(payload) ? patch === undefined || isObject(patch) : payload === undefined && isObject(patch);
    if (!isGood || !Object.values(patch || {}).every(isObject)) throw new TypeError('no payload or patch');
}

/** Removes from `result` each member that is null in `changes`. */
export function without(changes, result) {
    for (const name of Object.keys(changes)) if (changes[name] === null) delete result[name];
    return result;
}

function define(object, name, value) {
    Object.defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true });
}
