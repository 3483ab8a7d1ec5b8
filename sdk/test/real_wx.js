// A mini-program's API that reaches real gateways.

import { WebSocket } from './gateway.js';

/** As much of wx as documentation uses, over real sockets. `cut` is what a phone does to them. */
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
                .then(async (answer) => {
                    const text = await answer.text();
                    success({ statusCode: answer.status, data: dataType === 'text' || !text ? text : JSON.parse(text) });
                })
                .catch((error) => fail({ errMsg: String(error) }));
        },
    };
}
