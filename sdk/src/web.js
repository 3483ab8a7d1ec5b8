// The host for browsers and for Node 20 and later.

import { clock, statusIn } from './clock.js';

/** Returns a host over `WebSocket` and `fetch`. Node 20 has no global WebSocket: pass a class, such as that of the package ws. */
export function web({ WebSocket = globalThis.WebSocket, fetch = globalThis.fetch, storage } = {}) {
    if (!WebSocket) throw new TypeError('this platform has no WebSocket: pass {WebSocket}');
    return {
        tokenIn: 'protocol', // keeps the token out of the logs of proxies
        pausesInBackground: false,
        storage,
        ...clock,
        open(url, protocols, on) {
            const socket = new WebSocket(url, protocols);
            socket.onopen = () => on.open();
            socket.onmessage = ({ data }) => { if (typeof data === 'string') on.message(data); };
            let status; // only the package ws tells it
            socket.onerror = ({ message } = {}) => { status = statusIn(message); }; // a close event follows
            socket.onclose = ({ code, reason }) => on.close(code, reason, status);
            return { send: (text) => socket.send(text), close: (code) => socket.close(code) };
        },
        check: async (url, token) => (await fetch(url, { cache: 'no-store', headers: { authorization: `Bearer ${token}` } })).status,
        async get(url) {
            const response = await fetch(url, { cache: 'no-store' });
            return { status: response.status, text: await response.text() };
        },
        watch({ shown, hidden, online, offline }) {
            const removals = [];
            const listen = (target, type, run) => {
                if (!target || !target.addEventListener) return;
                target.addEventListener(type, run);
                removals.push(() => target.removeEventListener(type, run));
            };
            const page = globalThis.document;
            listen(page, 'visibilitychange', () => (page.visibilityState === 'hidden' ? hidden() : shown()));
            if (page && page.visibilityState === 'hidden') hidden(); // a page may be opened in the background
            listen(globalThis, 'pageshow', ({ persisted }) => { if (persisted) shown(); });
            listen(globalThis, 'online', online);
            listen(globalThis, 'offline', offline);
            return () => removals.forEach((remove) => remove());
        },
    };
}

/** Returns a `Storage` over a browser's localStorage. */
export function localStorageOf(storage = globalThis.localStorage) {
    return { get: (key) => storage.getItem(key), set: (key, text) => storage.setItem(key, text) };
}
