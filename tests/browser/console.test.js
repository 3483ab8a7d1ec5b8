// The trading console (publisher/console) in a real browser.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, test } from 'node:test';
import { close, open, shot } from './browser.js';
import { embedded } from './system.js';

after(close);

const ADMIN_JWT_SECRET = 'a secret of the desk with thirty-two bytes';
const PRICES = '{"moneyline":{"home":1.850,"away":2.10,"draw":3.40},"total":{"line":2.5,"over":1.90,"under":1.92},"status":{"state":"open","inPlay":true}}';

/** Matches the error that the browser logs for a response with this status. */
const failedWith = (status) => new RegExp(`status of ${status}`);

function token(sub = 'desk-1', role = 'trader', seconds = 3600) {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const now = Math.floor(Date.now() / 1000);
    const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub, role, iss: 'kmarket', aud: 'admin', iat: now - 10, exp: now + seconds })}`;
    return `${signed}.${createHmac('sha256', ADMIN_JWT_SECRET).update(signed).digest('base64url')}`;
}

/** Starts a system with three markets. Returns functions with which a test changes and reads them beside the page. */
async function system(t, markets = { 1001: PRICES, 1002: '{"moneyline":{"home":1.52,"away":2.65}}', 2001: '{"total":{"over":1.95,"under":1.87}}' }) {
    // `desk` ends the system after the page, which would log errors without it.
    const ends = [];
    const gateway = await embedded({ after: (end) => ends.push(end) }, { ADMIN_JWT_SECRET });
    for (const [id, payload] of Object.entries(markets)) await gateway.publish(Number(id), payload);
    const ask = async (path, body) => {
        const headers = { authorization: `Bearer ${token('api', 'admin')}` };
        const response = await fetch(gateway.url + path, { method: body ? 'POST' : 'GET', headers, body });
        assert.equal(response.status, 200, path);
        return response.text();
    };
    const set = (id, payload, reason = 'by the api', sub = 'api') => fetch(`${gateway.url}/admin/odds/override`, {
        method: 'POST', headers: { authorization: `Bearer ${token(sub)}` }, body: `{"marketId":${id},"payload":${payload},"reason":${JSON.stringify(reason)}}`,
    });
    return {
        url: gateway.url, gateway, ends, set, state: (id) => ask(`/admin/markets?ids=${id}`),
        audit: async (id) => JSON.parse(await ask(`/admin/audit?marketId=${id}`)).entries,
    };
}

/** Opens the console, signed in by a link. */
async function desk(t, { url, ends }, { as = token(), ...options } = {}) {
    let page;
    try {
        page = await open(t, `${url}/console#token=${as}`, { viewport: { width: 1440, height: 900 }, ...options });
    } finally {
        ends.splice(0).forEach((end) => t.after(end));
    }
    await page.locator('#list .row').first().waitFor();
    return page;
}

const choose = (page, id) => page.locator('#list .row', { hasText: String(id) }).click();
const price = (page, line, selection) => page.getByLabel(`New price for ${selection} in ${line}`, { exact: true });
const said = (page, text) => page.locator('#said').getByText(text).waitFor();
const publish = (page) => page.locator('#publish').click();
const dialog = (page) => page.locator('dialog[open]');

test('a trader signs in by a link, and the token leaves the address and is not stored for other tabs', async (t) => {
    const page = await desk(t, await system(t));
    assert.equal(new URL(page.url()).hash, '');
    assert.equal(await page.evaluate(() => JSON.stringify({ ...localStorage })), '{}');
    assert.equal((await page.locator('#who').textContent()).trim(), 'desk-1 trader');
    await page.reload();
    await page.locator('#list .row').first().waitFor();
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByLabel('Admin token').waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await page.getByLabel('Admin token').fill('nonsense');
    await dialog(page).getByRole('button', { name: 'Sign in' }).click();
    await dialog(page).getByText('This is not a token.').waitFor();
    await page.getByLabel('Admin token').fill(token('desk-2'));
    await dialog(page).getByRole('button', { name: 'Sign in' }).click();
    await page.getByText('desk-2').waitFor();
    // A link in the same tab signs in another trader.
    await page.goto(`${page.url()}#token=${token('desk-3')}`);
    await page.getByText('desk-3').waitFor();
    assert.equal(new URL(page.url()).hash, '');
});

test('the console uses the browser\'s language, and a change of language keeps what was typed', async (t) => {
    const page = await desk(t, await system(t), { locale: 'zh-CN' });
    await page.getByText('操盘台').waitFor();
    await choose(page, 1001);
    await page.locator('#chosen input').first().fill('1.9');
    await page.locator('#reason').fill('原因');
    await page.getByRole('button', { name: 'English' }).click();
    await page.getByText('Trading console').waitFor();
    assert.equal(await page.locator('html').getAttribute('lang'), 'en');
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '1.9');
    assert.equal(await page.locator('#reason').inputValue(), '原因');
    await page.locator('#entries').getByRole('button', { name: 'Undo' }).waitFor();
});

test('an override is reviewed before it is sent, and sent exactly as it was typed', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    await choose(page, 1001);
    await price(page, 'moneyline', 'home').fill('1.9000');
    await page.locator('#diffs').getByText('1.9000').waitFor();
    assert.match(await page.locator('#diffs').textContent(), /moneyline home\s*1\.850 → 1\.9000\s*\+2\.7 %/);
    await publish(page);
    await page.getByText('Reason: required').waitFor();
    await page.locator('#reason').fill('line move');
    await shot(page, 'console-edit');
    await publish(page);
    await said(page, 'Market 1001: published as seq 2.');
    assert.match(await system_.state(1001), /"moneyline":\{"home":1\.9000,"away":2\.10,"draw":3\.40\}/);
    await page.locator('#entries li', { hasText: 'line move' }).waitFor();
    await page.locator('#list .row', { hasText: '1001' }).getByText('seq 2').waitFor();
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '');
});

/** Publishes home at 1.90 when the API has just set `payload`, which the page does not know yet. */
async function overtaken(t, payload) {
    const system_ = await system(t);
    const page = await desk(t, system_, { expected: failedWith(409) });
    await choose(page, 1001);
    await price(page, 'moneyline', 'home').fill('1.90');
    await page.locator('#reason').fill('mine');
    // The payload is set between the page's request and its arrival, so the page cannot have read it.
    await page.route('**/admin/odds/override', async (route) => {
        await system_.set(1001, payload);
        await route.continue();
    }, { times: 1 });
    await publish(page);
    return { system_, page };
}

test('a price that moved is shown beside the price that the trader saw, and must be confirmed', async (t) => {
    const { system_, page } = await overtaken(t, '{"moneyline":{"home":1.87,"away":2.05,"draw":3.40}}');
    await dialog(page).getByText('The price has moved').waitFor();
    const cells = (await dialog(page).locator('tbody tr').allTextContents()).sort();
    assert.deepEqual(cells, ['moneyline away2.102.052.05', 'moneyline home1.8501.871.90']);
    await shot(page, 'console-conflict');
    await dialog(page).getByRole('button', { name: 'Back' }).click();
    assert.match(await system_.state(1001), /"home":1\.87,/, 'nothing was overwritten');
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '1.90');
    await publish(page);
    await dialog(page).getByRole('button', { name: 'Publish over it' }).click();
    await said(page, 'published as seq 3');
    assert.match(await system_.state(1001), /"moneyline":\{"home":1\.90,"away":2\.05,"draw":3\.40\}/);
}, { timeout: 60_000 });

test('a change to another line of the market does not interrupt the trader', async (t) => {
    const { page } = await overtaken(t, '{"total":{"over":1.99}}');
    await said(page, 'published as seq 3');
});

test('an override that the publisher would refuse is not sent', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    await choose(page, 1001);
    await page.locator('#reason').fill('x');
    for (const [text, problem] of [['1', 'above 1, at most 10000'], ['1.23456', 'at most 4 decimals'], ['1,9', 'a plain decimal such as 1.85']]) {
        await price(page, 'moneyline', 'home').fill(text);
        await page.locator('.line').getByText(problem).waitFor();
        await publish(page);
        assert.equal(await page.evaluate(() => document.activeElement.getAttribute('aria-invalid')), 'true');
    }
    assert.equal((await system_.audit(1001)).length, 1);
});

test('a large move must be confirmed', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    await choose(page, 1001);
    await price(page, 'moneyline', 'away').fill('2.60');
    await page.locator('#reason').fill('injury');
    await publish(page);
    await dialog(page).getByText('2.10 → 2.60').waitFor();
    await page.keyboard.press('Escape');
    assert.equal((await system_.audit(1001)).length, 1, 'Esc declines');
    await publish(page);
    await dialog(page).getByRole('button', { name: 'Yes, publish' }).click();
    await said(page, 'published as seq 2');
});

test('lines are added and removed', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    await choose(page, 1001);
    await page.getByRole('button', { name: '+ Add line' }).click();
    await page.keyboard.type('winner');
    await page.keyboard.press('Tab');
    const added = page.locator('.line', { has: page.locator('.line-name') });
    await added.getByLabel('Selection').fill('yes');
    await added.getByLabel('Price').fill('1.50');
    await page.locator('.line', { hasText: 'total' }).getByRole('button', { name: 'Remove line' }).click();
    await page.locator('#reason').fill('other lines');
    await publish(page);
    await said(page, 'published as seq 2');
    const state = await system_.state(1001);
    assert.match(state, /"winner":\{"yes":1\.50\}/);
    assert.doesNotMatch(state, /"total"/);
});

test('one market is suspended and opened, and all markets only after a typed phrase', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    await choose(page, 1001);
    await page.locator('#chosen').getByRole('button', { name: 'Suspend' }).click();
    await dialog(page).getByLabel('Reason').fill('red card');
    await dialog(page).getByRole('button', { name: 'Confirm' }).click();
    await said(page, '1 changed, 0 unchanged, 0 failed.');
    await page.locator('#list .row', { hasText: '1001' }).getByText('suspended').waitFor();
    assert.match(await system_.state(1001), /"status":\{"state":"suspended","inPlay":true\}/);
    await page.getByRole('button', { name: 'Suspend all' }).click();
    await dialog(page).getByLabel('Reason').fill('storm');
    const sure = dialog(page).getByRole('button', { name: 'Confirm' });
    assert.equal(await sure.isDisabled(), true);
    await dialog(page).getByLabel('Type “suspend all” to confirm').fill('suspend all');
    await sure.click();
    await said(page, '2 changed, 1 unchanged, 0 failed.');
    await shot(page, 'console-suspended');
    await page.locator('#chosen').getByRole('button', { name: 'Open' }).click();
    await dialog(page).getByLabel('Reason').fill('go on');
    await page.keyboard.press('Enter');
    await said(page, '1 changed');
    assert.equal((await system_.audit(1001))[0].reason, 'go on');
});

test('an audit entry is undone by a new override, and later changes to its lines are listed', async (t) => {
    const system_ = await system(t);
    await system_.set(1001, '{"moneyline":{"home":1.20},"new":{"yes":1.5}}', 'a mistake');
    await system_.set(1001, '{"moneyline":{"home":1.25}}', 'later');
    const page = await desk(t, system_);
    await choose(page, 1001);
    await page.locator('#entries li', { hasText: 'a mistake' }).getByRole('button', { name: 'Undo' }).click();
    await page.getByText('Later changes to the same lines').waitFor();
    assert.match(await page.locator('#reason').inputValue(), /^undo of 1001-\d+-\d+$/);
    assert.match(await page.locator('#diffs').textContent(), /home\s*1\.25 → 1\.850/);
    await shot(page, 'console-undo');
    await publish(page);
    await dialog(page).getByRole('button', { name: 'Yes, publish' }).click();
    await said(page, 'published as seq 4');
    const state = await system_.state(1001);
    assert.match(state, /"moneyline":\{"home":1\.850,"away":2\.10,"draw":3\.40\}/);
    assert.doesNotMatch(state, /"new"/);
    assert.match((await system_.audit(1001))[0].reason, /^undo of/);
});

test('the audit shows new entries, filters, loads older pages and exports CSV', async (t) => {
    const system_ = await system(t);
    for (let n = 0; n < 60; n += 1) await system_.set(1001, `{"moneyline":{"home":1.${80 + (n % 10)}}}`, `move ${n}`, n % 20 ? 'api' : 'desk-7');
    const page = await desk(t, system_, { acceptDownloads: true });
    await choose(page, 1001);
    const entries = page.locator('#entries > li');
    await entries.nth(49).waitFor();
    await system_.set(1001, '{"moneyline":{"home":1.95}}', 'just now');
    await entries.first().getByText('just now').waitFor();
    await page.getByRole('button', { name: 'Load older' }).click();
    await entries.nth(61).waitFor();
    assert.equal(await entries.count(), 62);
    await page.getByLabel('Actor').fill('desk-7');
    await page.waitForFunction(() => document.querySelectorAll('#entries > li').length === 3);
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'Export CSV' }).click()]);
    assert.equal(download.suggestedFilename(), 'audit-1001.csv');
    const rows = (await readFile(await download.path(), 'utf8')).split('\r\n');
    assert.equal(rows.length, 5, 'a header, three entries, an empty last line');
    assert.match(rows[0], /^\ufeffauditId,marketId/);
    assert.match(rows[1], /,desk-7,move 40,/);
    await page.getByLabel('Since').fill('2999-01-01T00:00');
    await page.getByText('No entries').waitFor();
});

test('an expired session asks for a new token, and what was typed is kept', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_, { as: token('desk-1', 'trader', 5), expected: failedWith(401) });
    await page.getByText(/Session ends in 0:0/).waitFor();
    await choose(page, 1001);
    await price(page, 'moneyline', 'home').fill('1.91');
    await page.locator('#reason').fill('typed before');
    await dialog(page).getByText('The session has expired').waitFor();
    await page.getByLabel('Admin token').fill(token());
    await dialog(page).getByRole('button', { name: 'Sign in' }).click();
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '1.91');
    await publish(page);
    await said(page, 'published as seq 2');
});

test('a viewer sees everything and has no controls', async (t) => {
    const page = await desk(t, await system(t), { as: token('eve', 'viewer') });
    await choose(page, 1001);
    await page.locator('#entries li').first().waitFor();
    assert.equal(await page.locator('#chosen input, #publish, #reason').count(), 0);
    for (const name of ['Suspend', 'Suspend all', 'Open all', 'Undo', '+ Add line']) {
        assert.equal(await page.getByRole('button', { name, exact: true }).filter({ visible: true }).count(), 0, name);
    }
    await shot(page, 'console-viewer');
});

test('text from payloads, reasons and tokens never becomes markup', async (t) => {
    const evil = '<img src=x onerror="alert(1)"><script>alert(2)</script>';
    const short = '<img src=x onerror=alert(1)>';
    const system_ = await system(t, { 1001: JSON.stringify({ [`${short}l`]: { [`${short}s`]: evil, home: 1.85 }, status: { state: short } }) });
    await system_.set(1001, JSON.stringify({ x: { [short]: evil } }), evil, evil);
    const page = await desk(t, system_, { as: token(evil) });
    page.on('dialog', () => assert.fail('a script ran'));
    await choose(page, 1001);
    await page.locator('#entries li', { hasText: evil }).first().waitFor();
    await page.locator('#search').fill(short);
    await page.getByText('No markets').waitFor();
    await page.locator('#actor').fill(evil);
    await page.waitForTimeout(0);
    await price(page, `${short}l`, `${short}s`).fill(`${evil}!`);
    await page.locator('#reason').fill(evil);
    await page.locator('#diffs').getByText(`${evil}!`).waitFor();
    await shot(page, 'console-hostile');
    await publish(page);
    await said(page, 'published as seq 3');
    assert.equal(await page.locator('img[src="x"], body script').count(), 0);
});

test('after a lost response the same request is repeated with the same key and applied once', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_, { expected: /ERR_FAILED|ERR_CONNECTION/ });
    await choose(page, 1001);
    await price(page, 'moneyline', 'home').fill('1.93');
    await page.locator('#reason').fill('once');
    const keys = [];
    await page.route('**/admin/odds/override', async (route) => {
        keys.push(route.request().headers()['idempotency-key']);
        if (keys.length > 1) return route.continue();
        await route.fetch();
        return route.abort();
    });
    await publish(page);
    await page.getByText('Outcome unknown').waitFor();
    await page.getByRole('button', { name: 'Try again' }).click();
    await said(page, 'published as seq 2');
    assert.equal(keys.length, 2);
    assert.equal(keys[0], keys[1]);
    assert.equal((await system_.audit(1001)).length, 2);
});

test('visible markets are polled with one request each time, and not while the page is hidden', async (t) => {
    const system_ = await system(t, {});
    const items = Array.from({ length: 150 }, (_, n) => `{"marketId":${n + 1},"payload":{"win":{"home":1.85}}}`);
    await fetch(`${system_.url}/admin/odds/batch`, { method: 'POST', headers: { authorization: `Bearer ${token()}` }, body: `[${items}]` });
    const page = await desk(t, system_);
    await page.locator('#count', { hasText: '100+' }).waitFor();
    await page.getByRole('button', { name: 'Load more' }).click();
    await page.locator('#count', { hasText: /^150$/ }).waitFor();
    const polled = [];
    page.on('request', (request) => { if (request.url().includes('/admin/')) polled.push(new URL(request.url()).searchParams.get('ids')?.split(',')); });
    await page.locator('#list .row').last().scrollIntoViewIfNeeded();
    while (!polled.at(-1)?.includes('150')) await page.waitForRequest(/ids=/);
    assert.ok(polled.at(-1).length < 40, `only visible markets: ${polled.at(-1)}`);
    await fetch(`${system_.url}/admin/odds/override`, { method: 'POST', headers: { authorization: `Bearer ${token()}` }, body: '{"marketId":150,"payload":{"win":{"home":1.86}}}' });
    await page.locator('#list .row').last().getByText('1.86').waitFor();
    const hide = (hidden) => page.evaluate((value) => {
        Object.defineProperty(document, 'hidden', { value, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
    await hide(true);
    await page.waitForLoadState('networkidle'); // half a second without a request
    await page.waitForFunction(() => document.getElementById('link').classList.contains('bad'));
    polled.length = 0;
    await hide(false);
    await page.waitForFunction(() => document.getElementById('link').classList.contains('good'));
    assert.ok(polled.length > 0);
});

test('prices are marked as stale when the publisher is gone', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_, { expected: /ERR_|status of 503/ });
    await choose(page, 1001);
    await page.locator('#link', { hasText: 'Live' }).waitFor();
    await system_.gateway.end('SIGKILL');
    await page.getByRole('alert').filter({ hasText: 'Prices below are not current' }).waitFor();
    assert.equal(await page.evaluate(() => document.body.classList.contains('stale')), true);
    await page.locator('#link', { hasText: 'No connection' }).waitFor();
    await shot(page, 'console-stale');
});

test('a market can be overridden with the keyboard alone', async (t) => {
    const system_ = await system(t);
    const page = await desk(t, system_);
    const keys = page.keyboard;
    await keys.press('?');
    await dialog(page).getByText('search markets').waitFor();
    await keys.press('Escape');
    await keys.press('/');
    await keys.type('100');
    await page.waitForFunction(() => document.querySelectorAll('#list .row').length === 2);
    await keys.press('ArrowDown');
    await page.getByText('Market 1001', { exact: true }).waitFor();
    await keys.press('j');
    await page.getByText('Market 1002', { exact: true }).waitFor();
    await keys.press('k');
    await page.getByText('Market 1001', { exact: true }).waitFor();
    await keys.press('Enter');
    await keys.type('1.99');
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '1.99');
    await keys.press('Escape');
    assert.equal(await price(page, 'moneyline', 'home').inputValue(), '', 'Esc cancels');
    await keys.press('Enter');
    await keys.type('1.98');
    await page.locator('#reason').focus();
    await keys.type('by hand');
    await keys.press('Control+Enter');
    await said(page, 'published as seq 2');
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline === 'solid' || await page.evaluate(() => document.activeElement === document.body), true);
});

for (const [name, options] of [
    ['light', {}], ['dark', { colorScheme: 'dark' }], ['zh', { locale: 'zh-CN' }], ['zh-dark', { locale: 'zh-CN', colorScheme: 'dark' }],
    ['narrow', { viewport: { width: 360, height: 740 } }], ['tablet', { viewport: { width: 900, height: 800 } }],
]) {
    test(`screenshot of the console: ${name}`, async (t) => {
        const markets = { 1001: PRICES };
        for (let n = 2; n <= 14; n += 1) markets[1000 + n] = `{"moneyline":{"home":1.${50 + n},"away":2.${10 + n},"draw":3.${40 + n}}${n % 5 ? '' : ',"status":{"state":"suspended"}'}}`;
        const system_ = await system(t, markets);
        await system_.set(1001, '{"moneyline":{"home":1.87,"away":2.08,"draw":3.40}}', 'line move', 'desk-1');
        await system_.set(1001, '{"total":{"line":2.5,"over":1.95,"under":1.87}}', 'steam on the over', 'desk-2');
        await system_.set(1001, '{"moneyline":{"home":1.85,"away":2.12,"draw":3.45}}', 'team news', 'desk-1');
        const page = await desk(t, system_, options);
        await choose(page, 1001);
        await page.locator('#chosen input').first().fill('1.92');
        await page.locator('#chosen input').nth(1).fill('2.60');
        await page.locator('#reason').fill(name.startsWith('zh') ? '首发名单公布' : 'lineups are out');
        await page.locator('#entries > li').nth(3).waitFor();
        await page.locator('#link.good').waitFor();
        const width = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.equal(width, 0, 'nothing is wider than the page');
        if (!/narrow|tablet/.test(name)) assert.equal(await page.evaluate(() => document.documentElement.scrollHeight), 900, 'the desk fits one screen');
        await shot(page, `console-${name}`, { fullPage: name === 'narrow' || name === 'tablet' });
    });
}
