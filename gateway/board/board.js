// The board puts its modules together: the markets as they are now, and the state of the connection that delivers them.
//
// Changes are kept at once and drawn in the next frame. So a thousand updates per second cost one drawing per frame, and
// a hidden page draws nothing.

import { Card, SAMPLES } from './card.js';
import { CONSOLE } from './console.js';
import { el, find, put } from './dom.js';
import { Texts } from './i18n.js';
import { Link } from './link.js';
import { Resume } from './resume.js';
import { Client } from './sdk/index.js';
import { parse } from './sdk/json.js';
import { TEXTS } from './texts.js';

const MAX_MARKETS = 50;
const LIST_MARKETS_MS = 5000;
const OFFLINE_MS = 5000;
const TICK_MS = 250;
/** Ticks over which updates per second are averaged. */
const RATE_TICKS = 12;
const JOURNAL_LENGTH = 40;
/** The most markets whose seqs one journal entry shows. */
const MOVED_SHOWN = 8;
const TOKEN_KEY = 'kmarket.token';

const here = new URL('.', location.href);
const texts = new Texts(TEXTS);
const cards = new Map(); // id → Card
const dirty = new Set(); // ids of the cards to draw
const seqs = new Map(); // id → the last seq
const resume = new Resume();
const ticks = []; // updates per tick, newest last
let chosen = chosenMarkets(); // ids, or null for all markets
let updates = 0, updatesInTick = 0, holes = 0;
let state = { state: 'idle' };
let retryAt = 0;
let drawing = false;
let ending = null; // the journal text for a close that the reader caused
let pasted = sessionStorage.getItem(TOKEN_KEY);
const user = `board-${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}`;
let token = null;

const link = new Link({
    authorization: () => (token ? { authorization: `Bearer ${token}` } : {}),
    resumed: (positions) => reportResume(resume.begin(positions, (id) => seqs.get(id))),
});
const client = new Client({ url: here.href, host: link.host, token: freshToken });

// ---- tokens ----

async function freshToken() {
    if (pasted) {
        token = pasted;
        return pasted;
    }
    const response = await fetch(new URL('api/ws/token', here), {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ userId: user }),
    });
    if (response.status === 401) ask();
    if (!response.ok) throw new Error(`${response.status} ${(await response.json().catch(() => ({}))).message ?? ''}`);
    const issued = await response.json();
    token = issued.token;
    return issued;
}

/** Asks the reader for a token, because this gateway does not issue one to the page. */
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

/** Returns the market ids in a text, or null if it has anything else in it. */
function idsIn(text) {
    const ids = text.split(/[\s,，、]+/).filter(Boolean).map((word) => (/^[1-9]\d*$/.test(word) ? Number(word) : NaN));
    return ids.length && ids.every(Number.isSafeInteger) ? [...new Set(ids)] : null;
}

/** Adds markets that are new at the gateway, as long as the reader has chosen none. */
async function listMarkets() {
    if (chosen || document.hidden || !token || state.state !== 'open' || client.stale) return;
    try {
        const { status, text } = await link.host.get(new URL(`api/markets?limit=${MAX_MARKETS}`, here));
        if (status === 200 && !chosen) {
            // A market that is no longer listed stays: the list may be incomplete for a while.
            JSON.parse(text).markets.filter((id) => !cards.has(id)).slice(0, MAX_MARKETS - cards.size).forEach(show);
            find('empty').hidden = cards.size > 0;
        }
    } catch { /* the state of the connection shows it */ }
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

/** Shows these markets and no others, and puts them into the page's address. Null: all markets. */
function choose(ids) {
    chosen = ids;
    const address = new URL(location.href);
    address.search = ids ? `?markets=${ids.join(',')}` : '';
    history.replaceState(null, '', address);
    [...cards.keys()].filter((id) => !ids?.includes(id)).forEach(hide);
    ids?.forEach(show);
    find('all').hidden = !chosen;
    listMarkets();
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

// ---- changes ----

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

/** Fetches the updates before the market came to the board, for its chart. */
async function lookBack(card, { marketId, epoch, seq, lines }) {
    if (!seq) return;
    try {
        const url = new URL(`api/markets/${marketId}/odds/updates?since_seq=${Math.max(0, seq - SAMPLES)}&limit=${SAMPLES}`, here);
        const { status, text } = await link.host.get(url);
        const page = status === 200 ? parse(text) : {};
        if (Number(page.epoch) === epoch) card.lookBack(page.updates.filter((update) => Number(update.seq) <= seq), lines);
    } catch { /* the chart begins with the first update here */ }
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
        listMarkets();
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

/** Asks whether a failed handshake was a 401, which a browser does not say: a plain GET of the same path does. */
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

// ---- buttons that break the connection ----

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

/** Adds an entry: the `name` and values of a text, in whichever language, and a `detail` that needs no translation. */
function note(kind, name, values = {}, detail = '') {
    const text = el('span.what');
    text.dataset.name = name;
    text.dataset.values = JSON.stringify(values);
    const entry = el(kind ? `li.${kind}` : 'li', {}, el('time.mono.faint', {}, new Date().toTimeString().slice(0, 8)), text);
    if (detail) entry.append(el('span.detail.faint', {}, detail));
    find('journal').prepend(entry);
    while (find('journal').children.length > JOURNAL_LENGTH) find('journal').lastChild.remove();
    translate(text);
}

function translate(entry) {
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
setInterval(listMarkets, LIST_MARKETS_MS);

// ---- texts ----

function translateAll() {
    document.title = texts.of('title');
    find('journal').querySelectorAll('.what').forEach(translate);
    cards.forEach((card) => card.label());
    drawSoon(...cards.keys());
}

find('language').addEventListener('click', () => texts.choose(texts.language === 'zh' ? 'en' : 'zh'));
texts.onChange(translateAll);
translateAll();

if (CONSOLE) {
    find('console').href = new URL(CONSOLE, here);
    find('console').hidden = false;
}
find('all').hidden = !chosen;
chosen?.forEach(show);
client.start();
