// Compares the client with the table docs/protocol.md#close-codes, and the table with the vectors, which hold every client.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { World } from './world.js';

const root = new URL('../../', import.meta.url);
const table = /^#+ Close codes$([^]*?)^#/m.exec(readFileSync(new URL('docs/protocol.md', root), 'utf8'))[1];
const cells = table.split('\n').map((row) => row.split('|').slice(1, -1).map((cell) => cell.trim()));
/** What the table says a client does after each code, in the words of a vector's `then`. */
const CODES = new Map(cells.filter(([code]) => /^\d{4}$/.test(code)).map((row) => [Number(row[0]), ruleOf(row.at(-1))]));

function ruleOf(text) {
    if (/\bstop\b/i.test(text)) return { reconnect: false };
    const [, seconds = 0] = /(\d+)(?: ?(?:to|–|-) ?\d+)? s\b/.exec(text) ?? [];
    return { reconnect: true, leastWaitMs: seconds * 1000, newToken: /\bnew token\b/i.test(text) };
}

test('the table has the codes of the protocol', () => {
    assert.ok(CODES.size >= 11, [...CODES.keys()].join());
    assert.deepEqual([CODES.get(4403), CODES.get(4401), CODES.get(4429)], [
        { reconnect: false }, { reconnect: true, leastWaitMs: 0, newToken: true }, { reconnect: true, leastWaitMs: 5000, newToken: false },
    ]);
});

for (const [code, rule] of CODES) test(`after ${code} without bye the client does what the table says`, async () => {
    const world = await new World({}, { random: () => 0 }).live();
    world.close(code);
    const { state, retryInMs } = world.of('state').at(-1);
    if (!rule.reconnect) return assert.equal(state, 'stopped');
    assert.deepEqual([state, retryInMs], ['waiting', rule.leastWaitMs]);
    await world.pass(retryInMs);
    assert.equal(world.tokens, rule.newToken ? 2 : 1);
});

test('every code of the table is in a vector, with what the table says', () => {
    const dir = new URL('docs/vectors/messages/', root);
    const steps = readdirSync(dir).flatMap((name) => JSON.parse(readFileSync(new URL(name, dir), 'utf8')).steps);
    const found = new Map();
    steps.forEach((step, number) => {
        const hasBye = steps[number - 1]?.say?.includes('"bye"'); // then the code does not count
        if (step.close && !hasBye) found.set(step.close, step.then);
    });
    for (const [code, rule] of CODES) assert.deepEqual(found.get(code), rule, String(code));
});
