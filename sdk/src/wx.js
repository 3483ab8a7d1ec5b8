// The host for WeChat mini-programs and for the frameworks that have the same API: pass `wx`, `uni` or `Taro`.

import { clock, statusIn } from './clock.js';

/** Returns a host over `api.connectSocket` and `api.request`. */
export function wx(api, { storage = wxStorage(api) } = {}) {
    return {
        tokenIn: 'query',
        pausesInBackground: true, // WeChat interrupts sockets that are opened in the background
        storage,
        ...clock,
        open(url, protocols, on) {
            let task = null;
            let over = false; // its close was reported, or the client closed it
            const end = (code, reason) => {
                if (over) return;
                over = true;
                on.close(code, reason, statusIn(code === 1006 ? reason : ''));
            };
            const attach = (given) => {
                if (!given || !given.onOpen) return end(1006, 'no SocketTask');
                task = given;
                if (over) return task.close({ code: 1000, fail() {} }); // or it would count towards the app's limit of 5
                task.onOpen(() => { if (!over) on.open(); });
                task.onMessage(({ data }) => { if (!over && typeof data === 'string') on.message(data); });
                // Not every version reports a close after an error.
                task.onError(({ errMsg } = {}) => end(1006, errMsg));
                task.onClose(({ code, reason } = {}) => end(code || 1006, reason));
            };
            const options = { url, success() {}, fail: ({ errMsg } = {}) => end(1006, errMsg) };
            if (protocols.length) options.protocols = protocols;
            const given = api.connectSocket(options);
            if (given && typeof given.then === 'function') {
                given.then(attach).then(null, (error) => end(1006, String((error && error.errMsg) || error)));
            } else {
                attach(given);
            }
            return {
                send: (text) => task.send({ data: text, fail() {} }),
                close(code) {
                    over = true;
                    if (task) task.close({ code, fail() {} });
                },
            };
        },
        get: (url) => request(api, url),
        check: (url, token) => request(api, url, { authorization: `Bearer ${token}` }).then(({ status }) => status),
        watch({ shown, hidden, online, offline }) {
            const network = ({ isConnected }) => (isConnected ? online() : offline());
            const pairs = [['AppShow', shown], ['AppHide', hidden], ['NetworkStatusChange', network]];
            const listeners = pairs.map(([name, run]) => [name, (event) => run(event || {})]);
            for (const [name, run] of listeners) if (api[`on${name}`]) api[`on${name}`](run);
            return () => {
                for (const [name, run] of listeners) if (api[`off${name}`]) api[`off${name}`](run);
            };
        },
    };
}

function request(api, url, header) {
    return new Promise((resolve, reject) => {
        const promise = api.request({
            url,
            header,
            dataType: 'text', // or WeChat would parse it, and prices would become floats
            success: ({ statusCode, data }) => resolve({ status: statusCode, text: data }),
            fail: ({ errMsg } = {}) => reject(new Error(errMsg)),
        });
        if (promise && typeof promise.then === 'function') promise.then(null, reject);
    });
}

function wxStorage(api) {
    return api.setStorage && {
        get: (key) => api.getStorageSync(key),
        set: (key, data) => new Promise((resolve, reject) => {
            const promise = api.setStorage({ key, data, success: resolve, fail: ({ errMsg } = {}) => reject(new Error(errMsg)) });
            if (promise && typeof promise.then === 'function') promise.then(resolve, reject);
        }),
    };
}
