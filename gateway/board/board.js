// The board: markets as they are now, and what becomes of the connection that brings them.
//
// Whatever comes is kept at once and drawn with the next frame, so that a thousand updates a second cost no more than a
// frame's worth of drawing, and a page that nobody sees draws nothing.

import { Card, SAMPLES } from './card.js';
import { byId, element, write } from './dom.js';
import { Texts } from './i18n.js';
import { Link } from './link.js';
import { CONSOLE } from './place.js';
import { Resume } from './resume.js';
import { Client } from './sdk/index.js';
import { parse } from './sdk/json.js';
import { TEXTS } from './texts.js';

const MAX_MARKETS = 50;
const LOOK_FOR_MARKETS_MS = 5000;
const OFFLINE_MS = 5000;
const TICK_MS = 250;
/** Over which updates a second are counted. */
const RATE_TICKS = 12;
const JOURNAL_LENGTH = 40;
/** Markets that an entry tells the numbers of. */
const MOVED_SHOWN = 8;
const TOKEN_KEY = 'kmarket.token';

const here = new URL('.', location.href);
const texts = new Texts(TEXTS);
const cards = new Map(); // id → Card
const dirty = new Set(); // ids
const seqs = new Map(); // id → the last number that came
const resume = new Resume();
const ticks = []; // updates in each of the last ticks
let chosen = chosenMarkets(); // null: all there are
let updates = 0, updatesInTick = 0, holes = 0;
let state = { state: 'idle' };
let retryAt = 0;
let drawing = false;
let ending = null; // why the connection is about to end, when it is by the reader's wish
let pasted = sessionStorage.getItem(TOKEN_KEY);
const user = `board-${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}`;
let token = null;

const link = new Link({
    authorization: () => (token ? { authorization: `Bearer ${token}` } : {}),
    resumed: (answers) => reportResume(resume.begin(answers, (id) => seqs.get(id))),
});
const client = new Client({ url: here.href, host: link.host, token: freshToken });

// ---- tokens ----

async function freshToken() {
    if (pasted) {
        token = pasted;
        return pasted;
    }
    const answer = await fetch(new URL('api/ws/token', here), {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ userId: user }),
    });
    if (answer.status === 401) ask();
    if (!answer.ok) throw new Error(`${answer.status} ${(await answer.json().catch(() => ({}))).message ?? ''}`);
    const issued = await answer.json();
    token = issued.token;
    return issued;
}

/** This gateway gives the page none: the reader may have one. */
function ask() {
    client.close();
    byId('ask').hidden = false;
    byId('curl').textContent = `curl ${new URL('api/ws/token', here)} -H 'Authorization: Bearer <TOKEN_API_KEY>' -d '{"userId":"me"}'`;
    byId('token').focus();
    drawSoon();
}

byId('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN_KEY, byId('token').value.trim());
    location.reload();
});

function forgetPasted() {
    pasted = null;
    sessionStorage.removeItem(TOKEN_KEY);
    note('bad', 'tokenRefused');
    ask();
}

// ---- which markets ----

function chosenMarkets() {
    const text = new URLSearchParams(location.search).get('markets');
    return text === null ? null : idsIn(text)?.slice(0, MAX_MARKETS) ?? null;
}

/** Null when there is anything else in it. */
function idsIn(text) {
    const ids = text.split(/[\s,，、]+/).filter(Boolean).map((part) => (/^[1-9]\d*$/.test(part) ? Number(part) : NaN));
    return ids.length && ids.every(Number.isSafeInteger) ? [...new Set(ids)] : null;
}

async function lookForMarkets() {
    if (chosen || document.hidden || !token || state.state !== 'open' || client.stale) return;
    try {
        const { status, text } = await link.host.get(new URL(`api/markets?limit=${MAX_MARKETS}`, here));
        if (status === 200 && !chosen) {
            // One that is listed no longer stays: a list may have holes for a while, a board should not.
            JSON.parse(text).markets.filter((id) => !cards.has(id)).slice(0, MAX_MARKETS - cards.size).forEach(show);
            byId('empty').hidden = cards.size > 0;
        }
    } catch { /* the connection's own state says it */ }
}

function show(id) {
    if (cards.has(id)) return;
    const card = new Card(id, texts, (gone) => choose([...cards.keys()].filter((other) => other !== gone)));
    cards.set(id, card);
    const after = [...cards.keys()].filter((other) => other > id).sort((a, b) => a - b)[0];
    byId('cards').insertBefore(card.root, after ? cards.get(after).root : null);
    client.subscribe(id);
    byId('empty').hidden = true;
    drawSoon(id);
}

function hide(id) {
    cards.get(id)?.root.remove();
    cards.delete(id);
    seqs.delete(id);
    client.unsubscribe(id);
    reportResume(resume.forget(id));
    drawSoon();
}

/** These and no others, in the page's address as well; null: all there are. */
function choose(ids) {
    chosen = ids;
    const address = new URL(location.href);
    address.search = ids ? `?markets=${ids.join(',')}` : '';
    history.replaceState(null, '', address);
    [...cards.keys()].filter((id) => !ids?.includes(id)).forEach(hide);
    ids?.forEach(show);
    byId('all').hidden = !chosen;
    lookForMarkets();
}

byId('add').addEventListener('submit', (event) => {
    event.preventDefault();
    const ids = idsIn(byId('id').value);
    const all = new Set([...cards.keys(), ...(ids ?? [])]);
    const wrong = !ids ? texts.of('badIds') : all.size > MAX_MARKETS ? texts.of('tooMany', { max: MAX_MARKETS }) : '';
    byId('wrong').textContent = wrong;
    byId('wrong').hidden = !wrong;
    byId('id').setAttribute('aria-invalid', String(Boolean(wrong)));
    if (wrong) return;
    byId('id').value = '';
    choose([...all].sort((a, b) => a - b));
});
byId('all').addEventListener('click', () => choose(null));

// ---- what comes ----

client.on('change', (market) => {
    const card = cards.get(market.marketId);
    if (!card) return;
    if (market.cause === 'update') {
        updates += 1;
        updatesInTick += 1;
        const last = seqs.get(market.marketId);
        if (last !== undefined && market.seq !== last + 1) holes += 1;
    }
    if (market.cause !== 'update') lookBack(card, market);
    seqs.set(market.marketId, market.seq);
    card.take(market);
    reportResume(resume.change(market));
    drawSoon(market.marketId);
});

/** What a market did before it was here, for its chart. */
async function lookBack(card, { marketId, epoch, seq, lines }) {
    if (!seq) return;
    try {
        const url = new URL(`api/markets/${marketId}/odds/updates?since_seq=${Math.max(0, seq - SAMPLES)}&limit=${SAMPLES}`, here);
        const { status, text } = await link.host.get(url);
        const page = status === 200 ? parse(text) : {};
        if (Number(page.epoch) === epoch) card.lookBack(page.updates.filter((update) => Number(update.seq) <= seq), lines);
    } catch { /* then it begins here */ }
    drawSoon(marketId);
}

client.on('fresh', ({ marketId }) => drawSoon(marketId));

client.on('rejected', ({ marketId, code }) => {
    cards.get(marketId)?.reject(code);
    drawSoon(marketId);
});

client.on('stale', (stale) => {
    if (stale) note('warn', 'logStale', stale);
    else note('good', 'logFresh');
    drawSoon(...cards.keys());
});

client.on('error', ({ kind, error }) => {
    if (kind === 'token' && state.state !== 'closed') note('bad', 'logToken', { message: error.message });
});

client.on('state', (event) => {
    const before = state.state;
    state = event;
    retryAt = event.state === 'waiting' ? Date.now() + event.retryInMs : 0;
    const { code = 0, reason = '' } = event;
    if (event.state === 'open') {
        note('good', 'logConnected');
        lookForMarkets();
    } else if (event.state === 'stopped') {
        note('bad', 'logStopped', { code, reason });
    } else if (before === 'open' && event.state === 'waiting') {
        if (ending) note('warn', ...ending);
        else note('bad', 'logLost', { code, reason });
    } else if (before === 'connecting' && event.state === 'waiting' && pasted && code === 1006) {
        judgePasted();
    }
    drawSoon(...cards.keys());
});

/** A handshake that fails tells a page nothing. The same path without one says what it thinks of the token. */
async function judgePasted() {
    const { status } = await link.host.get(new URL('ws/odds', here)).catch(() => ({ status: 0 }));
    if (status === 401) forgetPasted();
}

function reportResume(report) {
    if (!report) return;
    const { markets, replayed, resets, moved } = report;
    if (markets === 1) note('good', 'logResumed', { seq: moved[0].from, n: replayed });
    else {
        const some = moved.slice(0, MOVED_SHOWN).map(({ id, from, to }) => `${id}: ${from} → ${to}`.replaceAll(' ', '\u00a0'));
        note('good', 'logResumedMany', { markets, n: replayed }, [...some, ...(moved.length > MOVED_SHOWN ? ['…'] : [])].join('  '));
    }
    if (resets) note('warn', 'logReset', { markets: resets });
}

// ---- what the reader does to the connection ----

byId('drop').addEventListener('click', () => {
    ending = ['logDropped'];
    link.cut('DROPPED');
    ending = null;
});

byId('offline').addEventListener('click', () => {
    byId('offline').disabled = true;
    ending = ['logOffline', { s: OFFLINE_MS / 1000 }];
    link.goOffline('OFFLINE');
    ending = null;
    setTimeout(() => {
        byId('offline').disabled = false;
        note('', 'logOnline');
        link.goOnline();
    }, OFFLINE_MS);
});

// ---- the journal ----

/** `name` of a text, so that the language may change later; `detail` is the same in all. */
function note(kind, name, values = {}, detail = '') {
    const text = element('span', 'what');
    text.dataset.name = name;
    text.dataset.values = JSON.stringify(values);
    const entry = element('li', kind, element('time', 'mono faint', new Date().toTimeString().slice(0, 8)), text);
    if (detail) entry.append(element('span', 'detail faint', detail));
    byId('journal').prepend(entry);
    while (byId('journal').children.length > JOURNAL_LENGTH) byId('journal').lastChild.remove();
    word(text);
}

function word(entry) {
    entry.textContent = texts.of(entry.dataset.name, JSON.parse(entry.dataset.values));
}

// ---- drawing ----

function drawSoon(...ids) {
    ids.forEach((id) => dirty.add(id));
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(draw);
}

function draw(now) {
    drawing = false;
    for (const id of dirty) cards.get(id)?.draw(client.market(id)?.fresh ?? false, now);
    dirty.clear();
    drawConnection();
}

const KINDS = { open: 'good', connecting: 'accent', waiting: 'warn', stopped: 'bad', closed: 'bad' };

function drawConnection() {
    const name = state.state;
    write(byId('state'), texts.of(name));
    byId('state').className = `badge ${KINDS[name] ?? ''}`;
    document.body.dataset.state = name;
    const left = Math.max(0, retryAt - Date.now());
    const why = name !== 'waiting' ? '' : byId('offline').disabled || !navigator.onLine ? texts.of('offlineNow') : texts.of('retryIn', { s: (left / 1000).toFixed(1) });
    write(byId('why'), why);
    byId('drop').disabled = byId('offline').disabled || name !== 'open';
    write(byId('total'), updates.toLocaleString('en'));
    write(byId('holes'), String(holes));
    byId('holes').className = holes ? 'bad' : '';
    write(byId('count'), cards.size ? String(cards.size) : '');
    drawBanner();
}

function drawBanner() {
    const { code = 0, reason = '' } = state;
    const [kind, text] = state.state === 'stopped' ? ['bad', texts.of('stoppedBanner', { code, reason })]
        : client.stale ? ['warn', texts.of('staleBanner', { s: Math.max(0, Math.round((serverNow() - client.stale.since) / 1000)) })]
            : ['', ''];
    write(byId('banner'), text);
    byId('banner').className = `banner ${kind}`;
    byId('banner').hidden = !text;
}

const serverNow = () => Date.now() + (client.clock.offsetMs ?? 0);

setInterval(() => {
    ticks.push(updatesInTick);
    updatesInTick = 0;
    if (ticks.length > RATE_TICKS) ticks.shift();
    if (document.hidden) return;
    const perSecond = ticks.reduce((sum, count) => sum + count, 0) * 1000 / (ticks.length * TICK_MS);
    write(byId('rate'), perSecond < 100 ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString('en'));
    const { rttMs } = client.clock;
    write(byId('rtt'), rttMs === null ? '–' : rttMs < 1 ? '< 1 ms' : `${Math.round(rttMs)} ms`);
    for (const card of cards.values()) card.drawAge(card.ts && Math.max(0, serverNow() - card.ts));
    drawConnection();
}, TICK_MS);
setInterval(lookForMarkets, LOOK_FOR_MARKETS_MS);

// ---- texts ----

function speak() {
    document.title = texts.of('title');
    byId('journal').querySelectorAll('.what').forEach(word);
    cards.forEach((card) => card.label());
    drawSoon(...cards.keys());
}

byId('language').addEventListener('click', () => texts.choose(texts.language === 'zh' ? 'en' : 'zh'));
texts.onChange(speak);
speak();

if (CONSOLE) {
    byId('console').href = new URL(CONSOLE, here);
    byId('console').hidden = false;
}
byId('all').hidden = !chosen;
chosen?.forEach(show);
client.start();
