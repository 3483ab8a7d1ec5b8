import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { TEXTS } from '../texts.js';

const values = (text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();

test('both languages have the same texts, with the same values', () => {
    assert.deepEqual(Object.keys(TEXTS.zh), Object.keys(TEXTS.en));
    for (const [name, text] of Object.entries(TEXTS.en)) assert.deepEqual(values(TEXTS.zh[name]), values(text), name);
});

test('every text that is used exists, and every text is used', () => {
    const dir = new URL('../', import.meta.url);
    const files = readdirSync(dir).filter((name) => /\.(js|html)$/.test(name) && name !== 'texts.js');
    const source = files.map((name) => readFileSync(new URL(name, dir), 'utf8')).join('\n');
    const used = [...source.matchAll(/(?:texts\.of\('|data-(?:text|label|title|placeholder)=")(\w+)/g)].map(([, name]) => name);
    for (const name of used) assert.ok(name in TEXTS.en, name);
    const composed = /^(confirm(Suspend|Open)(All)?)$/; // names put together in main.js
    for (const name of Object.keys(TEXTS.en)) {
        assert.ok(composed.test(name) || used.includes(name) || new RegExp(`['"]${name}['"]`).test(source) || source.includes(`${name}:`), `${name} is never used`);
    }
});
