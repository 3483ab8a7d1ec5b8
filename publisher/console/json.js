// JSON without loss: a number keeps its text and an object its order, because prices and names need both.

/** A number as it was written. */
export class Decimal {
    constructor(text) { this.text = text; }

    toString() { return this.text; }
}

export const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

const TOKEN = /\s*(?:([{}[\],:])|(true|false|null)|(-?\d[\d.eE+-]*)|("(?:[^"\\]|\\.)*"))/y;
const WORDS = { true: true, false: false, null: null };

/** Parses JSON: objects become Maps, numbers Decimals, other values as in `JSON.parse`. Throws a SyntaxError. */
export function parse(text) {
    let at = 0;
    const next = () => {
        TOKEN.lastIndex = at;
        const found = TOKEN.exec(text);
        if (!found) throw new SyntaxError(`not JSON at ${at}`);
        at = TOKEN.lastIndex;
        return found;
    };
    const value = ([, sign, word, number, string]) => {
        if (word) return WORDS[word];
        if (string) return JSON.parse(string);
        if (number && NUMBER.test(number)) return new Decimal(number);
        if (sign === '{') return object();
        if (sign === '[') return array();
        throw new SyntaxError(`not JSON at ${at}`);
    };
    /** Reads items, separated by commas, up to `end`. */
    const items = (end, item) => {
        let token = next();
        if (token[1] === end) return;
        for (;;) {
            item(token);
            const [, sign] = next();
            if (sign === end) return;
            if (sign !== ',') throw new SyntaxError(`not JSON at ${at}`);
            token = next();
        }
    };
    const object = () => {
        const members = new Map();
        items('}', ([, , , , name]) => {
            if (!name || next()[1] !== ':') throw new SyntaxError(`not JSON at ${at}`);
            members.set(JSON.parse(name), value(next()));
        });
        return members;
    };
    const array = () => {
        const values = [];
        items(']', (token) => values.push(value(token)));
        return values;
    };
    const whole = value(next());
    if (text.slice(at).trim()) throw new SyntaxError(`not JSON at ${at}`);
    return whole;
}

/** Writes what `parse` returns, without spaces. */
export function write(value) {
    if (value instanceof Decimal) return value.text;
    if (value instanceof Map) return `{${[...value].map(([name, member]) => `${JSON.stringify(name)}:${write(member)}`).join(',')}}`;
    if (Array.isArray(value)) return `[${value.map(write).join(',')}]`;
    return JSON.stringify(value);
}

/** Formats a value for people: a text without its quotes, a number as it was written. */
export function show(value) {
    return typeof value === 'string' ? value : write(value);
}
