// The publisher's admin API (docs/protocol.md#admin-api): requests, and their responses as plain objects.

import { parse } from './json.js';

/** A read fails after this, so that the page soon shows that its prices are old. */
const READ_TIMEOUT_MS = 5000;
/** Longer than the publisher's own limit for an append. */
const WRITE_TIMEOUT_MS = 15_000;
/** To suspend or open all markets is one append per market. */
const STATUS_TIMEOUT_MS = 60_000;

/** Any response but a success. Status 0: there was no response, or it was not the publisher's. */
export class ApiError extends Error {
    constructor(status, code, message) {
        super(message);
        Object.assign(this, { status, code });
    }

    /** Whether the request may have taken effect. Only the same request, with the same key, is safe to repeat then. */
    get isUnknown() { return this.status === 0 || this.status >= 500; }
}

export class Api {
    #session;

    constructor(session) { this.#session = session; }

    /** A page of markets: `{markets: [market], hasMore, now}`. */
    markets(query) {
        return this.#read('/admin/markets', query, (page) => (
            { markets: page.get('markets').map(market), hasMore: page.get('hasMore'), now: number(page.get('now')) }));
    }

    /** A page of the audit, newest first: `{entries: [entry], hasMore, before}`. */
    audit(query) {
        return this.#read('/admin/audit', query, (page) => (
            { entries: page.get('entries').map(entry), hasMore: page.get('hasMore'), before: page.get('before') ?? null }));
    }

    /** The same as CSV: `{text, before}`. */
    async auditCsv(query) {
        const { text, headers } = await this.#request('GET', `/admin/audit?${new URLSearchParams({ ...query, format: 'csv' })}`, READ_TIMEOUT_MS);
        return { text, before: headers.get('x-next-before') };
    }

    /** Appends an override: `{seq, ts, auditId}`. The same `key` with the same `body` is appended only once. */
    async override(body, key) {
        const { text } = await this.#request('POST', '/admin/odds/override', WRITE_TIMEOUT_MS, body, { 'idempotency-key': key });
        return decode(() => JSON.parse(text));
    }

    /** `verb`: `suspend` or `open`; `which`: `{marketIds}` or `{all: true}`. Returns a result per market, in order. */
    async setStatus(verb, which, reason) {
        const { text } = await this.#request('POST', `/admin/markets/${verb}`, STATUS_TIMEOUT_MS, JSON.stringify({ ...which, reason }));
        return decode(() => JSON.parse(text));
    }

    async #read(path, query, shape) {
        const set = Object.entries(query).filter(([, value]) => value !== '' && value !== null && value !== undefined);
        const { text } = await this.#request('GET', `${path}?${new URLSearchParams(set)}`, READ_TIMEOUT_MS);
        return decode(() => shape(parse(text)));
    }

    async #request(method, url, timeout, body, headers = {}) {
        let response, text;
        try {
            response = await fetch(url, {
                method, body, cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(timeout),
                headers: { ...headers, ...(body && { 'content-type': 'application/json' }), authorization: `Bearer ${this.#session.token}` },
            });
            text = await response.text();
        } catch (error) {
            throw new ApiError(0, 'NO_RESPONSE', error.message);
        }
        if (response.ok) return { text, headers: response.headers };
        const { code, message } = errorIn(text);
        throw new ApiError(response.status, code ?? 'INTERNAL', message ?? `${response.status} ${response.statusText}`);
    }
}

/** Returns what `parsed` makes of a response. A proxy's page, or any other text that cannot be read, counts as no response. */
function decode(parsed) {
    try { return parsed(); } catch (error) { throw new ApiError(0, 'NO_RESPONSE', error.message); }
}

function errorIn(text) {
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

/** Returns the market's status: `open`, `suspended`, `closed`, another text, or `null`. */
export function statusOf(lines) {
    const state = lines.get('status')?.get('state');
    return typeof state === 'string' ? state : null;
}
