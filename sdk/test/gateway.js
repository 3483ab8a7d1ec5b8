// A real gateway, alone with its memory, and what a test does to it.

import { spawn } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { web } from '../src/index.js';

const require = createRequire(import.meta.url);
/** Node 20 has none: the package ws, of npm (NODE_PATH) or Debian. */
export const WebSocket = globalThis.WebSocket || need('ws');

function need(name) {
    try { return require(name); } catch { return require(`/usr/share/nodejs/${name}`); }
}

function binary() {
    const target = process.env.CARGO_TARGET_DIR ? `${process.env.CARGO_TARGET_DIR}/` : fileURLToPath(new URL('../../target/', import.meta.url));
    const dirs = process.env.KMARKET_BIN_DIR ? [process.env.KMARKET_BIN_DIR] : [`${target}release`, `${target}debug`];
    const found = dirs.map((dir) => `${dir}/gateway`).filter(existsSync);
    if (!found.length) throw new Error(`no gateway in ${dirs.join(' or ')}: cargo build, or set KMARKET_BIN_DIR`);
    return found.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
}

export class Gateway {
    /** Started, and listening at `address`. */
    static async start(settings = {}) {
        const gateway = new Gateway();
        gateway.process = spawn(binary(), [], {
            env: {
                PATH: process.env.PATH, LISTEN: '127.0.0.1:0', OPS_LISTEN: '127.0.0.1:0', HANDSHAKE_RATE_LIMIT: '0',
                TOKEN_RATE_LIMIT: '0', LOG_FORMAT: 'json', JWT_SECRET: 'a secret of at least thirty-two bytes', ...settings,
            },
            stdio: ['ignore', 'ignore', 'pipe'],
        });
        gateway.ended = new Promise((resolve) => { gateway.process.once('exit', resolve); });
        const log = [];
        await new Promise((resolve, reject) => {
            createInterface({ input: gateway.process.stderr }).on('line', (line) => {
                log.push(line);
                const { fields = {} } = line[0] === '{' ? JSON.parse(line) : {};
                if (fields.message === 'listening' && fields.listener === 'api') gateway.address = fields.address;
                if (fields.adminToken) gateway.admin = fields.adminToken;
                if (gateway.address && gateway.admin) resolve();
            });
            gateway.ended.then(() => reject(new Error(log.join('\n'))));
        });
        return gateway;
    }

    get url() { return `http://${this.address}`; }

    async end(signal = 'SIGKILL') {
        this.process.kill(signal);
        await this.ended;
    }

    /** `payload` is JSON text, or its numbers would be JavaScript's. */
    async publish(marketId, payload) {
        const answer = await fetch(`${this.url}/admin/odds/override`, {
            method: 'POST',
            headers: { authorization: `Bearer ${this.admin}`, 'content-type': 'application/json' },
            body: `{"marketId":${marketId},"payload":${payload}}`,
        });
        if (answer.status !== 200) throw new Error(await answer.text());
        return answer.json();
    }

    async token(body = {}) {
        const answer = await fetch(`${this.url}/api/ws/token`, { method: 'POST', body: JSON.stringify({ userId: 1, ...body }) });
        return answer.json();
    }
}

/** A host over real sockets that a test can break: `cut` ends the newest one, `lose` drops what it says. */
export function breakable() {
    const sockets = [];
    const host = {
        ...web({ WebSocket }),
        random: () => 0.02, // of the backoff
        sockets,
        lose: () => false,
        cut: () => sockets.at(-1).cut(),
    };
    const { open } = host;
    host.open = (url, protocols, on) => {
        let over = false;
        const tell = (run) => (...args) => { if (!over) run(...args); };
        const socket = open(url, protocols, {
            open: tell(on.open),
            message: tell((text) => { if (!host.lose(text)) on.message(text); }),
            close: tell(on.close),
        });
        const cut = () => {
            if (over) return;
            over = true;
            socket.close(1000);
            on.close(1006, 'cut');
        };
        sockets.push({ cut });
        return socket;
    };
    return host;
}
