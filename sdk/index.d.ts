/** A value as it was published. Every number is text, such as "2.10": show it as it is, and calculate with decimals. */
export type Value = string | boolean | null | Value[] | { [name: string]: Value };
/** Selection → price. */
export type Line = { [selection: string]: Value };
/** Line → its selections. Do not modify it. */
export type Lines = { readonly [line: string]: Line };
export type MarketId = number | string;

export interface Market {
    marketId: number;
    epoch: number;
    seq: number;
    /** When the last update was accepted, in Unix ms of the server's clock; 0 before the first update. */
    ts: number;
    lines: Lines;
    /**
     * True while updates arrive in time, none is missing, and the gateway's prices are not stale. False after a freeze
     * of the app until the gateway answers a ping, while an answer takes more than 5 s, and when the last update came
     * more than 5 s late.
     */
    fresh: boolean;
    /** The age of the last update, corrected for the difference of the clocks; null before the first update. */
    ageMs: number | null;
    /** Why the gateway refused the market, else null. */
    rejected: Rejection | null;
    /** The gateway sends at most one message in so many ms; 0: every update at once. */
    conflateMs: number;
}

export type Rejection = 'FORBIDDEN' | 'LIMIT_EXCEEDED' | (string & {});

export interface Change extends Market {
    /** `stored`: the state came from storage, before the gateway delivered any. */
    cause: 'update' | 'snapshot' | 'stored';
    /** Names of the lines that were set or removed, or some of whose selections were. */
    changed: string[];
    /** True if history was lost, or more was missed than the gateway replays. */
    reset: boolean;
    /** True if this device was too slow, so that the snapshot replaces the updates before it. */
    conflated: boolean;
    /** Why one message stands for several updates, else null. See `Fold`. */
    fold: Fold | null;
}

/**
 * `resumed`: updates were missed while this device was away. `paced`: the client asked for a slower pace. `slow`: this
 * device, or its network, took the updates too slowly.
 */
export type Fold = 'resumed' | 'paced' | 'slow';

/** `paused`: the app is in the background. `stopped`: a close code said that reconnecting is pointless; call `start`. */
export type State = 'idle' | 'connecting' | 'open' | 'waiting' | 'paused' | 'stopped' | 'closed';

export interface StateEvent {
    state: State;
    /** The close code and reason that led to this state. */
    code?: number;
    reason?: string;
    /** The time until the next attempt, for `waiting`. */
    retryInMs?: number;
}

export interface ErrorEvent {
    /** `token`: the token provider failed, or the gateway refused the token. */
    kind: 'token' | 'socket' | 'message' | 'refused' | 'http' | 'storage' | 'listener';
    /** The code of the gateway's error message, for `refused`. */
    code?: string;
    error: unknown;
}

export interface Events {
    change: Change;
    state: StateEvent;
    stale: { reason: string; since: number } | null;
    /** Market.fresh has changed. */
    fresh: { marketId: number; fresh: boolean };
    rejected: { marketId: number; code: Rejection };
    /** For your logs: the client has handled the error already. */
    error: ErrorEvent;
}

export interface Storage {
    get(key: string): string | null | undefined | Promise<string | null | undefined>;
    set(key: string, text: string): unknown;
}

/** The platform under the client: clock, sockets, HTTP. `web` and `wx` return one. */
export interface Host {
    /** Where the handshake carries the token, unless the options say otherwise. `query` by default. */
    tokenIn?: 'query' | 'protocol';
    /** True if the client must not connect while the app is hidden. */
    pausesInBackground?: boolean;
    storage?: Storage;
    /** The device's clock, in Unix ms. */
    now(): number;
    /**
     * Ms since any moment, by a clock that cannot be set. It may stand still while the device sleeps. Without it, a change
     * of the device's clock looks like a freeze of the app.
     */
    monotonic?(): number;
    /** 0 ≤ x < 1 */
    random(): number;
    setTimeout(run: () => void, ms: number): unknown;
    clearTimeout(timer: unknown): void;
    /** Opens a WebSocket. Pass text messages only. After `on.close`, or a call of `close`, no callback is needed. */
    open(url: string, protocols: string[], on: {
        open(): void;
        message(text: string): void;
        /** `status`: the HTTP status with which the handshake was refused, if the platform tells. */
        close(code: number, reason?: string, status?: number): void;
    }): { send(text: string): void; close(code: number): void };
    get(url: string): Promise<{ status: number; text: string }>;
    /**
     * Returns the HTTP status of a GET with `Authorization: Bearer <token>`. Without it, the client cannot find out whether
     * a handshake failed because of the token, where the platform does not say why.
     */
    check?(url: string, token: string): Promise<number>;
    /** Reports changes of the app and the network until the returned function is called. */
    watch?(on: { shown(): void; hidden(): void; online(): void; offline(): void }): () => void;
}

export interface Options {
    /** http(s):// or ws(s)://, with the path before /ws/odds and /api if there is one. */
    url: string;
    /**
     * Asks your server for a token: for the first connection, before a token expires, after the gateway refused one, and
     * at most every 3 minutes when handshakes fail without a reason.
     */
    token: () => Token | Promise<Token>;
    host: Host;
    /** Keeps the markets' states between runs of the app. The host's storage by default. */
    storage?: Storage;
    /** `kmarket` by default. */
    storageKey?: string;
    /** True if the gateway has READ_AUTH=token. */
    readAuth?: boolean;
    tokenIn?: 'query' | 'protocol';
}

/** What to ask the gateway for. A gateway that does not know a member ignores it. */
export interface SubscribeOptions {
    /** At most one message in so many ms, with all changes in between: 0 (the default) to 60000. The gateway may round up. */
    conflateMs?: number;
    /** The same while the page or mini-program is hidden: 1000 by default. The slower of the two counts. */
    hiddenConflateMs?: number;
    /** False for every single update, without a pace. Only for markets that are not subscribed yet. */
    fold?: boolean;
    /** False for whole lines. Only for markets that are not subscribed yet. */
    patch?: boolean;
}

export type Token = string | { token: string; /** Unix ms */ expiresAt?: number };

export class Client {
    constructor(options: Options);
    readonly state: State;
    /** Why and since when (Unix ms) the gateway's prices are stale, else null. */
    readonly stale: { reason: string; since: number } | null;
    /** The server's clock minus this device's, and the round trip; each is null until it is known. */
    readonly clock: { offsetMs: number | null; rttMs: number | null };
    /** Adds a listener. Returns a function that removes it. */
    on<T extends keyof Events>(type: T, listener: (event: Events[T]) => unknown): () => void;
    /** Connects. Does nothing while the client is connected or reconnecting. */
    start(): void;
    /** Saves the markets and disconnects. `start` connects again. */
    close(): void;
    /**
     * Throws a TypeError for anything that is not a market id. With options for a subscribed market, changes its paces.
     */
    subscribe(markets: MarketId | readonly MarketId[], options?: SubscribeOptions): void;
    unsubscribe(markets: MarketId | readonly MarketId[]): void;
    /** Returns a subscribed market, or undefined until a state of it is known. */
    market(id: MarketId): Market | undefined;
}

export interface WebOptions {
    /** Needed on Node 20, which has no global WebSocket: pass that of the package ws. */
    WebSocket?: unknown;
    fetch?: unknown;
    storage?: Storage;
}
export function web(options?: WebOptions): Host;
export function localStorageOf(storage?: { getItem(key: string): string | null; setItem(key: string, text: string): void }): Storage;
/** `api`: wx, uni or Taro. Keeps the markets' states in its storage; `storage: null` keeps none. */
export function wx(api: object, options?: { storage?: Storage | null }): Host;
