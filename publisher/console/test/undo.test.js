import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parse, write } from '../json.js';
import { laterOnSameLines, undo, undoReason } from '../undo.js';

const entry = (seq, before, after, epoch = 1) => ({ auditId: `7-${seq}-0`, epoch, seq, before: parse(before), after: parse(after) });

test('undo restores each changed line, and removes lines that did not exist before', () => {
    const done = entry(2, '{"a":{"x":1.50},"b":{"y":2}}', '{"a":{"x":1.60},"b":null,"c":{"z":3}}');
    assert.equal(write(undo(done)), '{"a":{"x":1.50},"b":{"y":2},"c":null}');
    assert.equal(undoReason(done), 'undo of 7-2-0');
});

test('later entries that changed the same lines are found', () => {
    const done = entry(2, '{}', '{"a":{"x":1}}');
    const oldEpoch = entry(9, '{}', '{"a":null}', 0);
    const [earlier, other, same, newEpoch] = [entry(1, '{}', '{"a":null}'), entry(3, '{}', '{"b":null}'), entry(4, '{}', '{"b":null,"a":null}'), entry(1, '{}', '{"a":null}', 2)];
    assert.deepEqual(laterOnSameLines(done, [newEpoch, same, other, done, earlier, oldEpoch]), [newEpoch, same]);
});
