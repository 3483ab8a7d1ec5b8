// Parses JSON and keeps every number as the text that was sent: `2.10` becomes "2.10". (JSON.parse makes 2.1 of it.)

let native = false;
JSON.parse('1.0', (_, value, context) => { native = Boolean(context && context.source === '1.0'); return value; });

export const parse = (text) => (native ? parseBySource(text) : parseByScan(text));

/** For engines that pass the source text to the reviver. */
export function parseBySource(text) {
    return JSON.parse(text, (_, value, context) => (typeof value === 'number' ? context.source : value));
}

/** For other engines: quotes every number, then parses. The pattern matches strings first, so digits in a string stay. */
export function parseByScan(text) {
    return JSON.parse(text.replace(STRING_OR_NUMBER, (token) => (token[0] === '"' ? token : `"${token}"`)));
}

const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
