import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Decimal, parse, show, write } from '../json.js';

test('parsing and writing changes nothing but spaces', () => {
    for (const text of [
        '{"win":{"20":15.0,"3":1.850,"a \\"é\\n":-0,"e":1E5}}', '[]', '{}', '[1,[2,{"x":[]}],null,true,false,"\\\\"]', '"\\u2028"', '9007199254740993',
    ]) assert.deepEqual(parse(write(parse(text))), parse(text), text);
    assert.equal(write(parse(' { "b" : 2.10 , "1" : [ 1.0 ] } ')), '{"b":2.10,"1":[1.0]}');
});

test('malformed JSON is refused', () => {
    for (const text of ['', '{', '[1,]', '{"a"}', '{"a":}', '01', '1.', '+1', '"a', 'nul', '{} x', '{"a":1,}', ':', '[1 2]', "'a'", '.5']) {
        assert.throws(() => parse(text), SyntaxError, text);
    }
});

test('a text is shown without quotes and a number as it was written', () => {
    assert.deepEqual([show('<b>'), show(new Decimal('1.50')), show(null), show(true)], ['<b>', '1.50', 'null', 'true']);
});

test('a member may be named __proto__', () => {
    assert.equal(parse('{"__proto__":{"x":1}}').get('__proto__').get('x').text, '1');
});
