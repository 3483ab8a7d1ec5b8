// Real processes, and what a test does to them.

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

/** The newest one that was built. */
export function binary(program) {
    const target = process.env.CARGO_TARGET_DIR ? `${process.env.CARGO_TARGET_DIR}/` : fileURLToPath(new URL('../../target/', import.meta.url));
    const dirs = process.env.KMARKET_BIN_DIR ? [process.env.KMARKET_BIN_DIR] : [`${target}release`, `${target}debug`];
    const found = dirs.map((dir) => `${dir}/${program}`).filter(existsSync);
    if (!found.length) throw new Error(`no ${program} in ${dirs.join(' or ')}: cargo build, or set KMARKET_BIN_DIR`);
    return found.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
}

/** A process that ends with the test that started it. */
export class Program {
    log = [];

    /** Runs until `isUp` has said so of a line that it wrote; fails with what it wrote when it ends before. */
    async run(path, args, env, isUp) {
        this.process = spawn(path, args, { env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
        this.ended = new Promise((resolve) => { this.process.once('exit', resolve); });
        await new Promise((resolve, reject) => {
            for (const input of [this.process.stdout, this.process.stderr]) {
                createInterface({ input }).on('line', (line) => {
                    this.log.push(line);
                    if (isUp(line)) resolve();
                });
            }
            this.process.once('error', reject);
            this.ended.then(() => reject(new Error(this.log.join('\n'))));
        });
        return this;
    }

    async end(signal = 'SIGKILL') {
        this.process.kill(signal);
        await this.ended;
    }
}

/** A gateway or a publisher on ports of its own: `address` and, when it embeds all, `admin`, a token for the admin API. */
export class Service extends Program {
    async serve(program, settings) {
        const env = { LISTEN: '127.0.0.1:0', OPS_LISTEN: '127.0.0.1:0', LOG_FORMAT: 'json', ...settings };
        const waits = program === 'gateway' && !settings.REDIS_URL; // for the token, which comes last
        return this.run(binary(program), [], env, (line) => {
            const { fields = {} } = line[0] === '{' ? JSON.parse(line) : {};
            if (fields.message === 'listening' && fields.listener === 'api') this.address = fields.address;
            if (fields.adminToken) this.admin = fields.adminToken;
            return this.address && (this.admin || !waits);
        });
    }

    get url() { return `http://${this.address}`; }

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
}

export class Gateway extends Service {
    /** Started, and listening at `address`. */
    static start(settings = {}) {
        return new Gateway().serve('gateway', {
            HANDSHAKE_RATE_LIMIT: '0', TOKEN_RATE_LIMIT: '0', JWT_SECRET: 'a secret of at least thirty-two bytes', ...settings,
        });
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
