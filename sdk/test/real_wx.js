// The API of a mini-program over real sockets and HTTP, for tests with real gateways.

import { WebSocket } from './gateway.js';

/** Returns the part of `wx` that the documentation uses. `cut()` closes its sockets, as a phone does. */
export function realWx() {
    const sockets = [];
    return {
        cut: () => sockets.splice(0).forEach((socket) => socket.close()),
        connectSocket({ url }) {
            const socket = new WebSocket(url);
            sockets.push(socket);
            return {
                onOpen: (run) => { socket.onopen = run; },
                onMessage: (run) => { socket.onmessage = run; },
                onError: (run) => { socket.onerror = () => run({ errMsg: 'error' }); },
                onClose: (run) => { socket.onclose = ({ code, reason }) => run({ code, reason }); },
                send: ({ data }) => socket.send(data),
                close: ({ code }) => socket.close(code),
            };
        },
        request({ url, method, header, dataType, success, fail }) {
            fetch(url, { method, headers: header })
                .then(async (response) => {
                    const text = await response.text();
                    success({ statusCode: response.status, data: dataType === 'text' || !text ? text : JSON.parse(text) });
                })
                .catch((error) => fail({ errMsg: String(error) }));
        },
    };
}
