// The admin API, and what its answers mean.

import { parse } from './json.js';

/** A read is given up after this, so that a page never waits for what does not come. */
const READ_TIMEOUT_MS = 5000;
/** The publisher itself gives up an append before. */
const WRITE_TIMEOUT_MS = 15_000;
/** All markets are many appends. */
const STATUS_TIMEOUT_MS = 60_000;

/** Any answer but 200, or (with status 0) none. */
export class Refused extends Error {
    constructor(status, code, message) {
        super(message);
        Object.assign(this, { status, code });
    }

    /** Whether it may have been done all the same, so that only the same request may be sent again. */
    get isUnknown() { return this.status === 0 || this.status >= 500; }
}

export class Api {
    #session;

    constructor(session) { this.#session = session; }

    /** `{markets: [market], hasMore, now}` */
    markets(query) {
        return this.#read('/admin/markets', query, (page) => (
            { markets: page.get('markets').map(market), hasMore: page.get('hasMore'), now: number(page.get('now')) }));
    }

    /** `{entries: [entry], hasMore, before}` */
    audit(query) {
        return this.#read('/admin/audit', query, (page) => (
            { entries: page.get('entries').map(entry), hasMore: page.get('hasMore'), before: page.get('before') ?? null }));
    }

    /** `{text, before}` */
    async auditCsv(query) {
        const { text, headers } = await this.#ask('GET', `/admin/audit?${new URLSearchParams({ ...query, format: 'csv' })}`, READ_TIMEOUT_MS);
        return { text, before: headers.get('x-next-before') };
    }

    /** `{seq, ts, auditId}`. The same `key` with the same `body` is done once. */
    async override(body, key) {
        const { text } = await this.#ask('POST', '/admin/odds/override', WRITE_TIMEOUT_MS, body, { 'idempotency-key': key });
        return understood(() => JSON.parse(text));
    }

    /** `verb`: `suspend` or `open`; `which`: `{marketIds}` or `{all: true}`. Results in order. */
    async setStatus(verb, which, reason) {
        const { text } = await this.#ask('POST', `/admin/markets/${verb}`, STATUS_TIMEOUT_MS, JSON.stringify({ ...which, reason }));
        return understood(() => JSON.parse(text));
    }

    async #read(path, query, shape) {
        const set = Object.entries(query).filter(([, value]) => value !== '' && value !== null && value !== undefined);
        const { text } = await this.#ask('GET', `${path}?${new URLSearchParams(set)}`, READ_TIMEOUT_MS);
        return understood(() => shape(parse(text)));
    }

    async #ask(method, url, timeout, body, headers = {}) {
        let answer, text;
        try {
            answer = await fetch(url, {
                method, body, cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(timeout),
                headers: { ...headers, ...(body && { 'content-type': 'application/json' }), authorization: `Bearer ${this.#session.token}` },
            });
            text = await answer.text();
        } catch (error) {
            throw new Refused(0, 'NO_ANSWER', error.message);
        }
        if (answer.ok) return { text, headers: answer.headers };
        const { code, message } = refusal(text);
        throw new Refused(answer.status, code ?? 'INTERNAL', message ?? `${answer.status} ${answer.statusText}`);
    }
}

/** What `read` makes of an answer. One that is not the publisher's, as from something on the way, is none. */
function understood(read) {
    try { return read(); } catch (error) { throw new Refused(0, 'NO_ANSWER', error.message); }
}

function refusal(text) {
    try { return JSON.parse(text) ?? {}; } catch { return {}; }
}

const number = (decimal) => Number(decimal.text);

function market(of) {
    return {
        id: of.get('marketId').text, epoch: number(of.get('epoch')), seq: number(of.get('seq')), ts: number(of.get('ts')),
        lines: of.get('payload'),
    };
}

function entry(of) {
    return {
        auditId: of.get('auditId'), epoch: number(of.get('epoch')), seq: number(of.get('seq')), ts: number(of.get('ts')),
        actor: of.get('actor'), reason: of.get('reason') ?? '', before: of.get('before'), after: of.get('after'),
        requestId: of.get('requestId') ?? '',
    };
}

/** `open`, `suspended`, `closed`, another text, or `null`. */
export function statusOf(lines) {
    const state = lines.get('status')?.get('state');
    return typeof state === 'string' ? state : null;
}
