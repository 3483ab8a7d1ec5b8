import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Draft, body, lineRows, movedLines, plan, reasonProblem } from '../diff.js';
import { parse, write } from '../json.js';

const LINES = parse('{"moneyline":{"home":1.850,"away":2.10},"total":{"over":1.90,"line":2.5,"name":"goals"}}');
const problems = (draft) => plan(draft, LINES).problems.map(({ line, selection, problem }) => [line, selection, problem]);

test('a payload carries each changed line whole, with exactly the text that was typed', () => {
    const draft = new Draft();
    draft.type('moneyline', 'home', '1.9000', LINES);
    draft.type('total', 'line', '3.0', LINES);
    draft.type('total', 'name', '2', LINES);
    const { payload, rows } = plan(draft, LINES);
    assert.equal(write(payload), '{"moneyline":{"home":1.9000,"away":2.10},"total":{"over":1.90,"line":3.0,"name":"2"}}');
    assert.deepEqual(rows.map(({ selection, before, after }) => [selection, before, after]), [
        ['home', '1.850', '1.9000'], ['line', '2.5', '3.0'], ['name', 'goals', '2'],
    ]);
    assert.equal(body('1001', payload, 'a "b"', 7).startsWith('{"marketId":1001,"payload":{"moneyline":'), true);
    assert.equal(body('1001', new Map(), 'a "b"', 7), '{"marketId":1001,"payload":{},"reason":"a \\"b\\"","expectedSeq":7}');
});

test('typing the current text, or clearing the field, is not an edit', () => {
    const draft = new Draft();
    draft.type('moneyline', 'home', '1.850', LINES);
    assert.equal(draft.isEmpty, true);
    draft.type('moneyline', 'home', '1.8', LINES);
    draft.type('moneyline', 'home', '', LINES);
    assert.equal(draft.isEmpty, true);
    assert.equal(draft.seen.size, 0);
    draft.type('moneyline', 'home', '1.85', LINES);
    assert.equal(draft.isEmpty, false, 'another text for the same value is an edit');
});

test('a value is checked by the rules of its selection', () => {
    for (const [line, selection, text, problem] of [
        ['moneyline', 'home', '1', 'outOfRange'], ['moneyline', 'home', '1.23456', 'tooPrecise'], ['moneyline', 'home', 'x', 'notDecimal'],
        ['total', 'line', '-0.5', null], ['total', 'line', '1e3', null], ['total', 'line', '1,5', 'notNumber'], ['total', 'name', 'x', null],
    ]) {
        const draft = new Draft();
        draft.type(line, selection, text, LINES);
        assert.deepEqual(problems(draft), problem ? [[line, selection, problem]] : [], text);
    }
});

test('lines are added and removed, and names are checked', () => {
    const draft = new Draft();
    draft.of('total', LINES).isRemoved = true;
    draft.added.push({ name: 'new', extra: [{ name: 'yes', value: '1.50' }] });
    const { payload, rows, problems: none } = plan(draft, LINES);
    assert.equal(write(payload), '{"total":null,"new":{"yes":1.50}}');
    assert.deepEqual([none, rows.length, rows[0].after, rows.at(-1).before], [[], 4, null, null]);
    draft.added = [
        { name: 'moneyline', extra: [] }, { name: '', extra: [{ name: 'yes', value: '1.5' }] },
        { name: 'b', extra: [{ name: 'yes', value: '1.5' }, { name: 'yes', value: '1' }] }, { name: 'c', extra: [{ name: 'x\u0000', value: '1' }] },
    ];
    assert.deepEqual(problems(draft), [
        ['+0', null, 'twice'], ['+0', null, 'noSelections'], ['+1', null, 'name'], ['+2', '+1', 'twice'], ['+3', '+0', 'name'],
    ]);
});

test('only changed lines that the draft edits count as moved', () => {
    const draft = new Draft();
    draft.type('moneyline', 'home', '1.9', LINES);
    const elsewhere = parse('{"moneyline":{"home":1.850,"away":2.10},"total":{"over":1.95}}');
    assert.deepEqual(movedLines(draft, elsewhere, parse), []);
    const moved = parse('{"moneyline":{"home":1.87,"away":2.10}}');
    assert.deepEqual(movedLines(draft, moved, parse).map(({ selection, before, after }) => [selection, before, after]), [['home', '1.850', '1.87']]);
    assert.equal(write(plan(draft, moved).payload), '{"moneyline":{"home":1.9,"away":2.10}}');
    assert.equal(movedLines(draft, new Map(), parse).length, 2, 'gone');
    draft.acceptCurrent(moved);
    assert.deepEqual(movedLines(draft, moved, parse), []);
});

test('a row says whether its move is large', () => {
    const [row] = lineRows('a', parse('{"x":2.00}'), parse('{"x":2.50}'));
    assert.deepEqual([row.tenths, row.isLarge], [250n, true]);
    assert.deepEqual(lineRows('a', null, parse('{"x":2.50}'))[0].isLarge, false);
});

test('a payload has at most 32 lines and 16 KiB', () => {
    const many = new Draft();
    for (let n = 0; n < 33; n += 1) many.added.push({ name: `l${n}`, extra: [{ name: 'x', value: '1' }] });
    assert.deepEqual(problems(many), [[null, null, 'tooLarge']]);
    const large = new Draft();
    const extra = Array.from({ length: 400 }, (_, n) => ({ name: `${n}`.padEnd(60, '界'), value: '1' }));
    large.added.push({ name: 'l', extra });
    assert.deepEqual(problems(large), [[null, null, 'tooLarge']]);
});

test('a reason is required, and its length and characters are limited', () => {
    assert.equal(reasonProblem('  '), 'noReason');
    assert.equal(reasonProblem('x'.repeat(501)), 'reason');
    assert.equal(reasonProblem('\u0007'), 'reason');
    assert.equal(reasonProblem('two\nlines\t界'), null);
});
