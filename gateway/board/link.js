// The host under the board's client: the SDK's host for browsers. The board can also break its connection, sees the acks
// of resumes, and sends the token of HTTP requests in a header.

import { web } from './sdk/index.js';

export class Link {
    #cut = () => {};
    #watched = null;

    /** `authorization()` returns headers. `resumed` gets `[{id, seq, recovered}]` of each resume, before the client does. */
    constructor({ authorization, resumed }) {
        const plain = web();
        this.host = {
            ...plain,
            open: (url, protocols, on) => {
                let isCut = false;
                const unlessCut = (run) => (...args) => { if (!isCut) run(...args); };
                const socket = plain.open(url, protocols, {
                    open: unlessCut(on.open),
                    message: unlessCut((text) => {
                        if (text.includes('"recovered"')) this.#readAck(text, resumed);
                        on.message(text);
                    }),
                    close: unlessCut(on.close),
                });
                this.#cut = (reason) => {
                    if (isCut) return;
                    isCut = true;
                    socket.close(1000);
                    on.close(1006, reason);
                };
                return socket;
            },
            get: async (url) => {
                const response = await fetch(url, { cache: 'no-store', headers: authorization() });
                return { status: response.status, text: await response.text() };
            },
            watch: (on) => {
                this.#watched = on;
                return plain.watch(on);
            },
        };
    }

    /** Breaks the connection, as a failing network does: for the client it is a close with code 1006. */
    cut(reason) { this.#cut(reason); }

    /** Breaks the connection and keeps the client from reconnecting until `goOnline`. */
    goOffline(reason) {
        this.#watched?.offline();
        this.cut(reason);
    }

    goOnline() { this.#watched?.online(); }

    #readAck(text, resumed) {
        const { type, positions = {} } = JSON.parse(text);
        if (type !== 'ack') return; // a payload may have the name as well
        const recovered = Object.entries(positions).filter(([, position]) => 'recovered' in position);
        if (recovered.length) resumed(recovered.map(([id, { seq, recovered }]) => ({ id: Number(id), seq, recovered })));
    }
}
