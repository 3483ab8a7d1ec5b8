import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { PRICED, compare, isLarge, movedBy, oddsProblem, percent } from '../decimal.js';

const read = (name) => readFileSync(new URL(`../../../${name}`, import.meta.url), 'utf8');

test('the selections that need decimal odds are those of docs/protocol.md', () => {
    const [, names] = /^\| ((?:`\w+`(?:, | and )?)+) are decimal odds\b/m.exec(read('docs/protocol.md'));
    assert.deepEqual([...PRICED].sort(), names.match(/\w+(?=`)/g).sort());
});

test('odds are valid or not as docs/vectors/prices.json says', () => {
    const { valid, invalid } = JSON.parse(read('docs/vectors/prices.json'));
    assert.ok(valid.length && invalid.length);
    for (const text of valid) assert.equal(oddsProblem(text), null, text);
    for (const text of invalid) assert.notEqual(oddsProblem(text), null, text);
});

test('the problem of invalid odds is named', () => {
    for (const good of ['1.0001', '1.01', '2', '2.10', '9999.9999', '10000', '10000.0000']) assert.equal(oddsProblem(good), null, good);
    for (const [bad, problem] of [
        ['1', 'outOfRange'], ['1.0000', 'outOfRange'], ['0.5', 'outOfRange'], ['10000.0001', 'outOfRange'], ['99999999999999999999', 'outOfRange'],
        ['1.00001', 'tooPrecise'], ['2.10000', 'tooPrecise'],
        ['', 'notDecimal'], ['01.5', 'notDecimal'], ['1.', 'notDecimal'], ['.5', 'notDecimal'], ['+2', 'notDecimal'], ['-2', 'notDecimal'],
        ['1e1', 'notDecimal'], ['1,85', 'notDecimal'], [' 2', 'notDecimal'], ['2 ', 'notDecimal'], ['NaN', 'notDecimal'], ['１.8', 'notDecimal'],
    ]) assert.equal(oddsProblem(bad), problem, bad);
});

test('a move is exact, whatever the number of digits', () => {
    for (const [before, after, shown] of [
        ['1.85', '1.90', '+2.7 %'], ['2.00', '1.00', '−50.0 %'], ['2.10', '2.1', '±0.0 %'], ['1', '3', '+200.0 %'],
        ['9007199254740993', '9007199254740993.0', '±0.0 %'], ['3', '2', '−33.3 %'], ['2000', '2001', '+0.1 %'],
    ]) assert.equal(percent(movedBy(before, after)), shown, `${before} ${after}`);
    assert.equal(movedBy('x', '2'), null);
    assert.equal(movedBy('0', '2'), null);
    assert.equal(movedBy('1e3', '2'), null);
});

test('a move of 20 % is not large, and any larger move is', () => {
    assert.equal(isLarge('2.00', '2.40'), false);
    assert.equal(isLarge('2.00', '1.60'), false);
    assert.equal(isLarge('2.00', '2.4001'), true);
    assert.equal(isLarge('2.00', '1.5999'), true);
    assert.equal(isLarge('x', '9'), false);
});

test('prices compare by value', () => {
    assert.deepEqual([compare('2.10', '2.1'), compare('2.09', '2.1'), compare('10', '9.99'), compare('a', '1')], [0, -1, 1, null]);
});
