import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { TEXTS } from '../texts.js';

const values = (text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();

test('both languages say the same things, with the same values', () => {
    assert.deepEqual(Object.keys(TEXTS.zh), Object.keys(TEXTS.en));
    for (const [name, text] of Object.entries(TEXTS.en)) assert.deepEqual(values(TEXTS.zh[name]), values(text), name);
});

test('what is said is there, and what is there is said', () => {
    const dir = new URL('../', import.meta.url);
    const files = readdirSync(dir).filter((name) => /\.(js|html)$/.test(name) && name !== 'texts.js');
    const source = files.map((name) => readFileSync(new URL(name, dir), 'utf8')).join('\n');
    const asked = [...source.matchAll(/(?:texts\.of\('|data-(?:text|label|title|placeholder)=")(\w+)/g)].map(([, name]) => name);
    for (const name of asked) assert.ok(name in TEXTS.en, name);
    const built = /^(confirm(Suspend|Open)(All)?)$/;
    for (const name of Object.keys(TEXTS.en)) {
        assert.ok(built.test(name) || asked.includes(name) || new RegExp(`['"]${name}['"]`).test(source) || source.includes(`${name}:`), `${name} is never said`);
    }
});
