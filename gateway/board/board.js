// The board: markets as they are now, and what becomes of the connection that brings them.
//
// Whatever comes is kept at once and drawn with the next frame, so that a thousand updates a second cost no more than a
// frame's worth of drawing, and a page that nobody sees draws nothing.

import { Card, SAMPLES } from './card.js';
import { el, find, put } from './dom.js';
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
    find('ask').hidden = false;
    find('curl').textContent = `curl ${new URL('api/ws/token', here)} -H 'Authorization: Bearer <TOKEN_API_KEY>' -d '{"userId":"me"}'`;
    find('token').focus();
    drawSoon();
}

find('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN_KEY, find('token').value.trim());
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
            find('empty').hidden = cards.size > 0;
        }
    } catch { /* the connection's own state says it */ }
}

function show(id) {
    if (cards.has(id)) return;
    const card = new Card(id, texts, (gone) => choose([...cards.keys()].filter((other) => other !== gone)));
    cards.set(id, card);
    const after = [...cards.keys()].filter((other) => other > id).sort((a, b) => a - b)[0];
    find('cards').insertBefore(card.root, after ? cards.get(after).root : null);
    client.subscribe(id);
    find('empty').hidden = true;
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
    find('all').hidden = !chosen;
    lookForMarkets();
}

find('add').addEventListener('submit', (event) => {
    event.preventDefault();
    const ids = idsIn(find('id').value);
    const all = new Set([...cards.keys(), ...(ids ?? [])]);
    const wrong = !ids ? texts.of('badIds') : all.size > MAX_MARKETS ? texts.of('tooMany', { max: MAX_MARKETS }) : '';
    find('wrong').textContent = wrong;
    find('wrong').hidden = !wrong;
    find('id').setAttribute('aria-invalid', String(Boolean(wrong)));
    if (wrong) return;
    find('id').value = '';
    choose([...all].sort((a, b) => a - b));
});
find('all').addEventListener('click', () => choose(null));

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

find('drop').addEventListener('click', () => {
    ending = ['logDropped'];
    link.cut('DROPPED');
    ending = null;
});

find('offline').addEventListener('click', () => {
    find('offline').disabled = true;
    ending = ['logOffline', { s: OFFLINE_MS / 1000 }];
    link.goOffline('OFFLINE');
    ending = null;
    setTimeout(() => {
        find('offline').disabled = false;
        note('', 'logOnline');
        link.goOnline();
    }, OFFLINE_MS);
});

// ---- the journal ----

/** `name` of a text, so that the language may change later; `detail` is the same in all. */
function note(kind, name, values = {}, detail = '') {
    const text = el('span.what');
    text.dataset.name = name;
    text.dataset.values = JSON.stringify(values);
    const entry = el(kind ? `li.${kind}` : 'li', {}, el('time.mono.faint', {}, new Date().toTimeString().slice(0, 8)), text);
    if (detail) entry.append(el('span.detail.faint', {}, detail));
    find('journal').prepend(entry);
    while (find('journal').children.length > JOURNAL_LENGTH) find('journal').lastChild.remove();
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
    put(find('state'), texts.of(name));
    find('state').className = `badge ${KINDS[name] ?? ''}`;
    document.body.dataset.state = name;
    const left = Math.max(0, retryAt - Date.now());
    const why = name !== 'waiting' ? '' : find('offline').disabled || !navigator.onLine ? texts.of('offlineNow') : texts.of('retryIn', { s: (left / 1000).toFixed(1) });
    put(find('why'), why);
    find('drop').disabled = find('offline').disabled || name !== 'open';
    put(find('total'), updates.toLocaleString('en'));
    put(find('holes'), String(holes));
    find('holes').className = holes ? 'bad' : '';
    put(find('count'), cards.size ? String(cards.size) : '');
    drawBanner();
}

function drawBanner() {
    const { code = 0, reason = '' } = state;
    const [kind, text] = state.state === 'stopped' ? ['bad', texts.of('stoppedBanner', { code, reason })]
        : client.stale ? ['warn', texts.of('staleBanner', { s: Math.max(0, Math.round((serverNow() - client.stale.since) / 1000)) })]
            : ['', ''];
    put(find('banner'), text);
    find('banner').className = `banner ${kind}`;
    find('banner').hidden = !text;
}

const serverNow = () => Date.now() + (client.clock.offsetMs ?? 0);

setInterval(() => {
    ticks.push(updatesInTick);
    updatesInTick = 0;
    if (ticks.length > RATE_TICKS) ticks.shift();
    if (document.hidden) return;
    const perSecond = ticks.reduce((sum, count) => sum + count, 0) * 1000 / (ticks.length * TICK_MS);
    put(find('rate'), perSecond < 100 ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString('en'));
    const { rttMs } = client.clock;
    put(find('rtt'), rttMs === null ? '–' : rttMs < 1 ? '< 1 ms' : `${Math.round(rttMs)} ms`);
    for (const card of cards.values()) card.drawAge(card.ts && Math.max(0, serverNow() - card.ts));
    drawConnection();
}, TICK_MS);
setInterval(lookForMarkets, LOOK_FOR_MARKETS_MS);

// ---- texts ----

function speak() {
    document.title = texts.of('title');
    find('journal').querySelectorAll('.what').forEach(word);
    cards.forEach((card) => card.label());
    drawSoon(...cards.keys());
}

find('language').addEventListener('click', () => texts.choose(texts.language === 'zh' ? 'en' : 'zh'));
texts.onChange(speak);
speak();

if (CONSOLE) {
    find('console').href = new URL(CONSOLE, here);
    find('console').hidden = false;
}
find('all').hidden = !chosen;
chosen?.forEach(show);
client.start();
