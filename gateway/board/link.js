// What the board's connection runs over: the SDK's host for browsers, with a plug that can be pulled, an ear for how the
// gateway takes a resume up, and the token in a header where there may be one.

import { web } from './sdk/index.js';

export class Link {
    #end = () => {};
    #watched = null;

    /** `resumed` hears the positions of each ack that answers a resume, before the client does. */
    constructor({ authorization, resumed }) {
        const plain = web();
        this.host = {
            ...plain,
            open: (url, protocols, on) => {
                let over = false;
                const tell = (run) => (...args) => { if (!over) run(...args); };
                const socket = plain.open(url, protocols, {
                    open: tell(on.open),
                    message: tell((text) => {
                        if (text.includes('"recovered"')) this.#hear(text, resumed);
                        on.message(text);
                    }),
                    close: tell(on.close),
                });
                this.#end = (reason) => {
                    if (over) return;
                    over = true;
                    socket.close(1000);
                    on.close(1006, reason);
                };
                return socket;
            },
            get: async (url) => {
                const answer = await fetch(url, { cache: 'no-store', headers: authorization() });
                return { status: answer.status, text: await answer.text() };
            },
            watch: (on) => {
                this.#watched = on;
                return plain.watch(on);
            },
        };
    }

    /** As when a network fails: the gateway learns of it, the client had no say. */
    cut(reason) { this.#end(reason); }

    /** No connection, and no attempt at one, until `goOnline`. */
    goOffline(reason) {
        this.#watched?.offline();
        this.cut(reason);
    }

    goOnline() { this.#watched?.online(); }

    #hear(text, resumed) {
        const { type, positions = {} } = JSON.parse(text);
        if (type !== 'ack') return; // a name in a payload
        const answers = Object.entries(positions).filter(([, position]) => 'recovered' in position);
        if (answers.length) resumed(answers.map(([id, { seq, recovered }]) => ({ id: Number(id), seq, recovered })));
    }
}
