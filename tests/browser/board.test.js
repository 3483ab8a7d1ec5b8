// The live board (gateway/board) in a real browser.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { TEXTS } from '../../gateway/board/texts.js';
import { close, open, shot } from './browser.js';
import { embedded, system } from './system.js';

after(close);

/** The errors that a browser logs when a test breaks a socket. */
const BROKEN_SOCKET = /WebSocket connection|ERR_INTERNET_DISCONNECTED|ERR_CONNECTION/;

const card = (page, id) => page.locator(`[data-market="${id}"]`);
const price = (page, id, selection) => card(page, id).locator(`.price[data-selection="${selection}"]`);
const state = (page, name) => page.waitForSelector(`body[data-state="${name}"]`);
const logged = (page, text) => page.locator('#journal .what', { hasText: text }).first().waitFor();
const atSeq = (page, id, seq) => page.waitForSelector(`[data-market="${id}"][data-seq="${seq}"]`);
const number = async (page, id) => Number((await page.locator(id).textContent()).replaceAll(',', ''));

const moneyline = (home, away = '2.10') => `{"moneyline":{"home":${home},"away":${away}}}`;

/** Opens a board and waits until it shows market `id` at `seq`. */
async function boardAt(t, gateway, id, seq, options) {
    const page = await open(t, `${gateway.url}/?markets=${id}`, options);
    await state(page, 'open');
    await atSeq(page, id, seq);
    return page;
}

test('an override shows within one second in two tabs on two gateways', async (t) => {
    const { publisher, gateways } = await system(t);
    await publisher.publish(1001, moneyline('1.50'));
    const pages = await Promise.all(gateways.map((gateway) => boardAt(t, gateway, 1001, 1)));
    const shown = pages.map(async (page) => {
        const at = await page.waitForFunction(() => {
            const price = document.querySelector('[data-market="1001"] .price[data-selection="home"]');
            return price.textContent === '1.850' && Date.now();
        });
        return at.jsonValue();
    });
    const { ts } = await publisher.publish(1001, moneyline('1.850'));
    for (const at of await Promise.all(shown)) assert.ok(at - ts < 1000, `${at - ts} ms`);
    for (const page of pages) {
        assert.equal(await price(page, 1001, 'home').getAttribute('data-went'), 'up');
        assert.equal(await price(page, 1001, 'away').getAttribute('data-went'), '');
        assert.ok(await page.locator('#console').isHidden(), 'a gateway beside a publisher has no console');
    }
});

test('the board shows all markets, and new ones as they appear', async (t) => {
    const gateway = await embedded(t);
    const page = await open(t, gateway.url);
    await state(page, 'open');
    await page.locator('#empty').waitFor();
    for (const id of [1003, 1001, 1002]) await gateway.publish(id, moneyline('1.50'));
    await atSeq(page, 1002, 1);
    const ids = () => page.locator('.card').evaluateAll((all) => all.map(({ dataset }) => Number(dataset.market)));
    await page.waitForFunction(() => document.querySelectorAll('.card[data-seq]').length === 3);
    assert.deepEqual(await ids(), [1001, 1002, 1003]);
    assert.ok(await page.locator('#empty').isHidden());
    assert.equal(await page.locator('#console').getAttribute('href'), `${gateway.url}/console`);
    // Chosen markets are in the address of the page.
    await card(page, 1002).locator('.remove').click();
    await page.fill('#id', '7001, 1001');
    await page.press('#id', 'Enter');
    assert.deepEqual(await ids(), [1001, 1003, 7001]);
    assert.equal(new URL(page.url()).search, '?markets=1001,1003,7001');
    await card(page, 7001).getByText('No prices yet').waitFor();
    await page.fill('#id', '1001 <b>');
    await page.press('#id', 'Enter');
    await page.locator('#wrong').waitFor();
    assert.deepEqual(await ids(), [1001, 1003, 7001]);
    await page.reload();
    await atSeq(page, 1003, 1);
    assert.deepEqual(await ids(), [1001, 1003, 7001]);
    await page.click('#all');
    await atSeq(page, 1002, 1);
});

test('a dropped connection resumes without a hole while prices keep changing', async (t) => {
    // With these settings everything that the board misses is replayed as updates.
    const gateway = await embedded(t, { RESUME_MAX: '100000', HISTORY_LEN: '100000' });
    let seq = (await gateway.publish(1001, moneyline('1.50'))).seq;
    const page = await boardAt(t, gateway, 1001, 1);
    let isPublishing = true;
    const publishing = (async () => { while (isPublishing) seq = (await gateway.publish(1001, moneyline(`1.${10 + (seq % 89)}`))).seq; })();
    for (let times = 1; times <= 3; times += 1) {
        await state(page, 'open');
        await page.click('#drop');
        await page.waitForFunction((count) => [...document.querySelectorAll('#journal [data-name="logResumed"]')].length === count, times);
    }
    isPublishing = false;
    await publishing;
    await atSeq(page, 1001, seq);
    await page.waitForFunction((count) => document.querySelector('#total').textContent.replaceAll(',', '') === String(count), seq - 1);
    assert.equal(await number(page, '#holes'), 0);
    assert.equal(await price(page, 1001, 'home').textContent(), `1.${10 + ((seq - 1) % 89)}`);
});

test('updates missed offline are replayed, and the journal says from which seq and how many', async (t) => {
    const gateway = await embedded(t);
    await gateway.publish(1001, moneyline('1.50'));
    const page = await boardAt(t, gateway, 1001, 1);
    await page.click('#offline');
    await state(page, 'waiting');
    await card(page, 1001).getByText('Catching up').waitFor();
    for (let n = 0; n < 7; n += 1) await gateway.publish(1001, moneyline(`1.6${n}`));
    assert.equal(await card(page, 1001).getAttribute('data-seq'), '1');
    await logged(page, 'Resumed at seq 1, 7 updates replayed');
    await atSeq(page, 1001, 8);
    assert.equal(await price(page, 1001, 'home').textContent(), '1.66');
    assert.equal(await number(page, '#holes'), 0);
});

test('without a network the board does not connect, and it reconnects as soon as the network is back', async (t) => {
    const gateway = await embedded(t);
    await gateway.publish(1001, moneyline('1.50'));
    const page = await boardAt(t, gateway, 1001, 1, { expected: BROKEN_SOCKET });
    await page.context().setOffline(true);
    await page.click('#drop');
    await state(page, 'waiting');
    await page.locator('#why', { hasText: 'offline' }).waitFor();
    await gateway.publish(1001, moneyline('1.60'));
    await page.context().setOffline(false);
    await logged(page, 'Resumed at seq 1, 1 updates replayed');
    await atSeq(page, 1001, 2);
});

test('a banner says that prices may be old while Redis does not respond', async (t) => {
    const { redis, publisher, gateways: [gateway] } = await system(t, [{ STALE_AFTER: '1s' }]);
    await publisher.publish(1001, moneyline('1.50'));
    const page = await boardAt(t, gateway, 1001, 1);
    assert.ok(await page.locator('#banner').isHidden());
    redis.freeze();
    await page.locator('#banner', { hasText: 'Prices may be old' }).waitFor();
    await card(page, 1001).getByText('Catching up').waitFor();
    redis.goOn();
    await page.locator('#banner').waitFor({ state: 'hidden' });
    await logged(page, 'Prices are fresh again');
    await publisher.publish(1001, moneyline('1.60'));
    await atSeq(page, 1001, 2);
});

test('suspended and closed markets are shown as such', async (t) => {
    const gateway = await embedded(t);
    await gateway.publish(1001, `{"moneyline":{"home":1.50},"status":{"state":"open","inPlay":true}}`);
    const page = await boardAt(t, gateway, 1001, 1);
    await card(page, 1001).getByText('In play').waitFor();
    for (const [state, text] of [['suspended', 'Suspended'], ['closed', 'Closed'], ['open', 'Live']]) {
        await gateway.publish(1001, `{"status":{"state":"${state}"}}`);
        await card(page, 1001).getByText(text, { exact: true }).waitFor();
        assert.equal(await card(page, 1001).evaluate((element) => element.classList.contains('shut')), state !== 'open');
    }
});

test('a price that moves flashes, unless the reader prefers reduced motion', async (t) => {
    const gateway = await embedded(t);
    await gateway.publish(1001, moneyline('1.50'));
    for (const [at, reducedMotion, flashes] of [[1, 'no-preference', 1], [2, 'reduce', 0]]) {
        const page = await boardAt(t, gateway, 1001, at, { reducedMotion });
        const moved = page.waitForFunction(() => {
            const price = document.querySelector('.price[data-selection="home"][data-went="down"]');
            return price && { flashes: price.getAnimations().length };
        });
        await gateway.publish(1001, moneyline(`1.4${9 - at}`));
        assert.equal((await (await moved).jsonValue()).flashes, flashes, reducedMotion);
    }
});

test('text from a payload is never markup', async (t) => {
    const gateway = await embedded(t);
    const evil = ['<img src=x onerror=document.title=1>', '"><script>document.title=1</script>', '{{title}}', '__proto__', 'constructor', 'javascript:alert(1)'];
    const line = `{${evil.map((name) => `${JSON.stringify(name)}:${JSON.stringify(name)}`).join(',')},"home":2.10,"is":true,"deep":null}`;
    await gateway.publish(1001, `{${evil.map((name) => `${JSON.stringify(name)}:${line}`).join(',')},"status":{"state":"<b>x</b>","inPlay":"<i>"}}`);
    const page = await boardAt(t, gateway, 1001, 1);
    await price(page, 1001, 'home').first().waitFor();
    await gateway.publish(1001, `{"constructor":{"pick":"<u>3</u>"}}`);
    await atSeq(page, 1001, 2);
    const shown = await card(page, 1001).textContent();
    for (const text of [...evil, '<u>3</u>']) assert.ok(shown.includes(text), text);
    assert.equal(await card(page, 1001).locator('img, script, b, i, u, a').count(), 0);
    assert.match(await page.title(), /^KMarket/);
});

test('the board uses the browser\'s language until the reader chooses another, and remembers the choice', async (t) => {
    const gateway = await embedded(t);
    await gateway.publish(1001, moneyline('1.50'));
    const page = await boardAt(t, gateway, 1001, 1, { locale: 'zh-CN' });
    const language = () => page.evaluate(() => document.documentElement.lang);
    await card(page, 1001).getByText('胜负').waitFor();
    await logged(page, '已连接');
    assert.equal(await language(), 'zh-CN');
    await page.click('#language');
    await card(page, 1001).getByText('Moneyline').waitFor();
    await logged(page, 'Connected');
    await page.reload();
    await card(page, 1001).getByText('Moneyline').waitFor();
    assert.equal(await language(), 'en');
});

test('both languages have every text, with the same values', () => {
    const names = Object.keys(TEXTS.en);
    assert.deepEqual(Object.keys(TEXTS.zh), names);
    const values = (text) => text.match(/\{\w+\}/g)?.sort().join() ?? '';
    for (const name of names) assert.equal(values(TEXTS.zh[name]), values(TEXTS.en[name]), name);
    const html = readFileSync(new URL('../../gateway/board/index.html', import.meta.url), 'utf8');
    for (const [, name] of html.matchAll(/data-(?:text|title|label|placeholder)="(\w+)"/g)) assert.ok(name in TEXTS.en, name);
});

test('the reader pastes a token when the gateway issues none to the page', async (t) => {
    const gateway = await embedded(t, { TOKEN_API_KEY: 'key' });
    await gateway.publish(1001, moneyline('1.50'));
    const page = await open(t, `${gateway.url}/?markets=1001`, { expected: /401|426|WebSocket connection/ });
    await page.locator('#ask').waitFor();
    await page.fill('#token', 'not a token');
    await page.press('#token', 'Enter');
    await logged(page, 'The token is no longer valid');
    await page.locator('#ask').waitFor();
    const response = await fetch(`${gateway.url}/api/ws/token`, {
        method: 'POST', headers: { authorization: 'Bearer key' }, body: '{"userId":1}',
    });
    await page.fill('#token', (await response.json()).token);
    await page.press('#token', 'Enter');
    await atSeq(page, 1001, 1);
    assert.ok(await page.locator('#ask').isHidden());
    await page.reload();
    await atSeq(page, 1001, 1);
});

test('with READ_AUTH the board reads with its token', async (t) => {
    const gateway = await embedded(t, { READ_AUTH: 'token' });
    await gateway.publish(1001, moneyline('1.50'));
    const page = await open(t, gateway.url);
    await atSeq(page, 1001, 1);
});

test('the page fits the width of a phone', async (t) => {
    const gateway = await embedded(t);
    const long = 'a-selection-whose-name-is-longer-than-a-phone-is-wide';
    await gateway.publish(9007199254740991, `{"moneyline":{"home":1.5000,"draw":10000.0000,"away":2.10},"${long}":{"${long}":1234.5678,"line":-1.5},"status":{"state":"suspended","inPlay":true}}`);
    const page = await boardAt(t, gateway, 9007199254740991, 1, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
    for (const language of ['en', 'zh-CN']) {
        assert.equal(await page.evaluate(() => document.documentElement.lang), language);
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
        const wide = await page.locator('.card *:not(polyline)').evaluateAll((all) => all.filter((element) => element.getBoundingClientRect().right > 360).length);
        assert.equal(wide, 0);
        await page.click('#language');
    }
});

test('50 markets at 20 updates per second are drawn once per frame, up to the last update', async (t) => {
    const gateway = await embedded(t);
    const ids = Array.from({ length: 50 }, (_, n) => 2001 + n);
    const round = async (n) => {
        const response = await fetch(`${gateway.url}/admin/odds/batch`, {
            method: 'POST', headers: { authorization: `Bearer ${gateway.admin}`, 'content-type': 'application/json' },
            body: `[${ids.map((id) => `{"marketId":${id},"payload":${moneyline(`1.${10 + n}`, `2.${99 - n}`)}}`).join(',')}]`,
        });
        assert.equal(response.status, 200);
    };
    await round(0);
    const page = await open(t, gateway.url);
    await page.waitForFunction(() => document.querySelectorAll('.card[data-seq="1"]').length === 50);
    await page.evaluate(() => {
        window.frames_ = 0;
        const count = () => { window.frames_ += 1; requestAnimationFrame(count); };
        requestAnimationFrame(count);
        window.draws = 0;
        new MutationObserver((changes) => { window.draws += changes.length; }).observe(document.querySelector('[data-market="2001"]'), { attributeFilter: ['data-seq'] });
    });
    for (let n = 1; n <= 80; n += 1) await round(n);
    await page.waitForFunction(() => document.querySelectorAll('.card[data-seq="81"]').length === 50);
    const { frames, draws } = await page.evaluate(() => ({ frames: window.frames_, draws: window.draws }));
    assert.ok(draws <= frames && draws <= 80, `${draws} drawings in ${frames} frames`);
    assert.equal(await number(page, '#total'), 4000);
    assert.equal(await number(page, '#holes'), 0);
    assert.equal(await price(page, 2050, 'home').textContent(), '1.90');
});

test('screenshots of the board', async (t) => {
    const gateway = await embedded(t);
    let seed = 7;
    const chance = () => { seed = (seed * 16807) % 2147483647; return seed / 2147483647; };
    const markets = Array.from({ length: 12 }, (_, n) => ({ id: 1001 + n, home: 0.25 + chance() / 2, spread: -4.5 + n, total: 210.5 + n }));
    const odds = (p) => (1 / (p * 1.05)).toFixed(2);
    const updates = [];
    for (let n = 0; n < 45; n += 1) {
        for (const market of markets) {
            const drift = () => (chance() - 0.5) * 0.03;
            market.home = Math.min(0.85, Math.max(0.15, market.home + drift()));
            const side = 0.5 + drift() * 2, over = 0.5 + drift() * 2;
            updates.push(`{"marketId":${market.id},"payload":{"moneyline":{"home":${odds(market.home)},"away":${odds(1 - market.home)}},"spread":{"line":${market.spread.toFixed(1)},"home":${odds(side)},"away":${odds(1 - side)}},"total":{"line":${market.total},"over":${odds(over)},"under":${odds(1 - over)}}}}`);
        }
    }
    updates.unshift('{"marketId":1002,"payload":{"status":{"state":"open","inPlay":true}}}', '{"marketId":1005,"payload":{"status":{"state":"suspended","inPlay":true}}}', '{"marketId":1009,"payload":{"status":{"state":"closed"}}}');
    const publish = (items) => fetch(`${gateway.url}/admin/odds/batch`, { method: 'POST', headers: { authorization: `Bearer ${gateway.admin}`, 'content-type': 'application/json' }, body: `[${items.join(',')}]` });
    const later = updates.splice(-60);
    await publish(updates);
    for (const [name, options] of [
        ['board-light', {}],
        ['board-dark', { colorScheme: 'dark' }],
        ['board-phone-zh', { locale: 'zh-CN', viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }],
    ]) {
        const page = await open(t, gateway.url, options);
        await page.waitForFunction(() => document.querySelectorAll('.card[data-seq]').length === 12);
        await page.click('#offline');
        await state(page, 'waiting');
        await publish(later.splice(0, 14));
        await page.waitForFunction(() => document.querySelector('#journal [data-name="logResumedMany"]'));
        await page.waitForFunction(() => !document.getAnimations().length);
        await publish(later.splice(0, 6));
        await page.waitForFunction(() => document.getAnimations().length);
        await shot(page, name);
    }
});
