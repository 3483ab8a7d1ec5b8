/** A price as it was published, such as "2.10". Numbers come as text: show them, and calculate with decimals. */
export type Value = string | boolean | null | Value[] | { [name: string]: Value };
/** Selection → price. */
export type Line = { [selection: string]: Value };
/** Line → its selections. Not to be written to. */
export type Lines = { readonly [line: string]: Line };
export type MarketId = number | string;

export interface Market {
    marketId: number;
    epoch: number;
    seq: number;
    /** Unix ms at which the last update was accepted, by the server's clock; 0 before the first. */
    ts: number;
    lines: Lines;
    /** Live, without a gap, and the gateway vouches for it. */
    fresh: boolean;
    /** How old the last update is now, with the difference of the clocks allowed for; null before the first. */
    ageMs: number | null;
    rejected: Rejection | null;
}

export type Rejection = 'FORBIDDEN' | 'LIMIT_EXCEEDED' | (string & {});

export interface Change extends Market {
    /** `stored`: from storage, before a connection. */
    cause: 'update' | 'snapshot' | 'stored';
    /** The lines that the message carried, and those that it removed. */
    changed: string[];
    /** History was lost, or what was missed was too much. */
    reset: boolean;
    /** This device was too slow; older updates are folded into this. */
    conflated: boolean;
}

/** `paused`: in the background. `stopped`: a close code that means a bug or "not allowed"; only `start` goes on. */
export type State = 'idle' | 'connecting' | 'open' | 'waiting' | 'paused' | 'stopped' | 'closed';

export interface StateEvent {
    state: State;
    /** Close code and reason that led here. */
    code?: number;
    reason?: string;
    /** With `waiting`. */
    retryInMs?: number;
}

export interface ErrorEvent {
    kind: 'token' | 'socket' | 'message' | 'refused' | 'http' | 'storage' | 'listener';
    /** With `refused`: the code of the gateway's error. */
    code?: string;
    error: unknown;
}

export interface Events {
    change: Change;
    state: StateEvent;
    stale: { reason: string; since: number } | null;
    /** A market's prices are good from now on, or not; see Market.fresh. */
    fresh: { marketId: number; fresh: boolean };
    rejected: { marketId: number; code: Rejection };
    /** All are dealt with; this is for logs. */
    error: ErrorEvent;
}

export interface Storage {
    get(key: string): string | null | undefined | Promise<string | null | undefined>;
    set(key: string, text: string): unknown;
}

/** Everything from outside. `web` and `wx` make one. */
export interface Host {
    /** Where the token goes if the options do not say: `query` by default. */
    tokenIn?: 'query' | 'protocol';
    /** No connecting while hidden. */
    pausesInBackground?: boolean;
    storage?: Storage;
    /** Unix ms. */
    now(): number;
    /** 0 ≤ x < 1 */
    random(): number;
    setTimeout(run: () => void, ms: number): unknown;
    clearTimeout(timer: unknown): void;
    /** Text frames only. After `close` is told, or called, nothing more needs to be. */
    open(url: string, protocols: string[], on: {
        open(): void;
        message(text: string): void;
        close(code: number, reason?: string): void;
    }): { send(text: string): void; close(code: number): void };
    get(url: string): Promise<{ status: number; text: string }>;
    /** Tells of the app and the network until the answer is called. */
    watch?(on: { shown(): void; hidden(): void; online(): void; offline(): void }): () => void;
}

export interface Options {
    /** http(s):// or ws(s)://, with the path in front of /ws/odds and /api if there is one. */
    url: string;
    /** Asks your server for a token. Called for the first connection, before a token expires, and when one is refused. */
    token: () => Token | Promise<Token>;
    host: Host;
    /** Where markets are kept between runs of the app; by default the host's. */
    storage?: Storage;
    storageKey?: string;
    /** The gateway has READ_AUTH=token. */
    readAuth?: boolean;
    tokenIn?: 'query' | 'protocol';
}

export type Token = string | { token: string; /** Unix ms */ expiresAt?: number };

export class Client {
    constructor(options: Options);
    readonly state: State;
    readonly stale: { reason: string; since: number } | null;
    /** The server's clock minus ours, and the round trip. */
    readonly clock: { offsetMs: number | null; rttMs: number | null };
    on<T extends keyof Events>(type: T, listener: (event: Events[T]) => unknown): () => void;
    start(): void;
    /** Ends all; `start` begins again. */
    close(): void;
    /** Throws a TypeError for what is no market id. */
    subscribe(markets: MarketId | readonly MarketId[]): void;
    unsubscribe(markets: MarketId | readonly MarketId[]): void;
    market(id: MarketId): Market | undefined;
}

export interface WebOptions {
    /** Node 20 has none: pass that of the package ws. */
    WebSocket?: unknown;
    fetch?: unknown;
    storage?: Storage;
}
export function web(options?: WebOptions): Host;
export function localStorageOf(storage?: { getItem(key: string): string | null; setItem(key: string, text: string): void }): Storage;
/** `api`: wx, uni or Taro. Markets are kept in its storage unless told otherwise (`storage: null`). */
export function wx(api: object, options?: { storage?: Storage | null }): Host;
