// JSON in which every number stays the text it was: `2.10` is "2.10". (JSON.parse would make 2.1 of it.)

let native = false;
JSON.parse('1.0', (_, value, context) => { native = Boolean(context && context.source === '1.0'); return value; });

export const parse = (text) => (native ? parseBySource(text) : parseByScan(text));

/** For engines whose revivers are told the source text. */
export function parseBySource(text) {
    return JSON.parse(text, (_, value, context) => (typeof value === 'number' ? context.source : value));
}

/** For all others: numbers are put into quotes before they are parsed. Strings are matched first, so that theirs stay. */
export function parseByScan(text) {
    return JSON.parse(text.replace(STRING_OR_NUMBER, (token) => (token[0] === '"' ? token : `"${token}"`)));
}

const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
