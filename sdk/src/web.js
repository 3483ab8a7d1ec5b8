// Browsers, and Node from 20 on.

import { clock } from './clock.js';

/** The host for `WebSocket` and `fetch`. Node 20 has no global WebSocket: pass a class, such as that of the package ws. */
export function web({ WebSocket = globalThis.WebSocket, fetch = globalThis.fetch, storage } = {}) {
    if (!WebSocket) throw new TypeError('no WebSocket here: pass {WebSocket}');
    return {
        tokenIn: 'protocol', // keeps it out of proxies' logs
        pausesInBackground: false,
        storage,
        ...clock,
        open(url, protocols, on) {
            const socket = new WebSocket(url, protocols);
            socket.onopen = () => on.open();
            socket.onmessage = ({ data }) => { if (typeof data === 'string') on.message(data); };
            socket.onerror = () => {}; // its close follows
            socket.onclose = ({ code, reason }) => on.close(code, reason);
            return { send: (text) => socket.send(text), close: (code) => socket.close(code) };
        },
        async get(url) {
            const answer = await fetch(url, { cache: 'no-store' });
            return { status: answer.status, text: await answer.text() };
        },
        watch({ shown, hidden, online, offline }) {
            const ends = [];
            const listen = (target, type, run) => {
                if (!target || !target.addEventListener) return;
                target.addEventListener(type, run);
                ends.push(() => target.removeEventListener(type, run));
            };
            const page = globalThis.document;
            listen(page, 'visibilitychange', () => (page.visibilityState === 'hidden' ? hidden() : shown()));
            listen(globalThis, 'pageshow', ({ persisted }) => { if (persisted) shown(); });
            listen(globalThis, 'online', online);
            listen(globalThis, 'offline', offline);
            return () => ends.forEach((end) => end());
        },
    };
}

/** Storage in a browser's localStorage. */
export function localStorageOf(storage = globalThis.localStorage) {
    return { get: (key) => storage.getItem(key), set: (key, text) => storage.setItem(key, text) };
}
