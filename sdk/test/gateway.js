// Starts real gateways for tests, and a host whose connections a test can break.

import { spawn } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { web } from '../src/index.js';

const require = createRequire(import.meta.url);
/** The global WebSocket. On Node 20, which has none, the class of the package ws from npm (NODE_PATH) or Debian. */
export const WebSocket = globalThis.WebSocket || need('ws');

function need(name) {
    try { return require(name); } catch { return require(`/usr/share/nodejs/${name}`); }
}

/** Returns the path of the newest build of a program. */
export function binary(program) {
    const target = process.env.CARGO_TARGET_DIR ? `${process.env.CARGO_TARGET_DIR}/` : fileURLToPath(new URL('../../target/', import.meta.url));
    const dirs = process.env.KMARKET_BIN_DIR ? [process.env.KMARKET_BIN_DIR] : [`${target}release`, `${target}debug`];
    const found = dirs.map((dir) => `${dir}/${program}`).filter(existsSync);
    if (!found.length) throw new Error(`no ${program} in ${dirs.join(' or ')}: cargo build, or set KMARKET_BIN_DIR`);
    return found.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)[0];
}

/** A process that a test starts and ends. `log` has its lines. */
export class Program {
    log = [];

    /** Starts the process and waits until `isUp(line)` is true. Fails with the log if the process ends before. */
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

/** A gateway or publisher on free ports. An embedded gateway also has `admin`, a token for the admin API. */
export class Service extends Program {
    async serve(program, settings) {
        const env = { LISTEN: '127.0.0.1:0', OPS_LISTEN: '127.0.0.1:0', LOG_FORMAT: 'json', ...settings };
        const isEmbedded = program === 'gateway' && !settings.REDIS_URL; // it logs its admin token last
        return this.run(binary(program), [], env, (line) => {
            const { fields = {} } = line[0] === '{' ? JSON.parse(line) : {};
            if (fields.message === 'listening' && fields.listener === 'api') this.address = fields.address;
            if (fields.adminToken) this.admin = fields.adminToken;
            return this.address && (this.admin || !isEmbedded);
        });
    }

    get url() { return `http://${this.address}`; }

    /** Publishes an override. `payload` is JSON text, so that its numbers keep their digits. */
    async publish(marketId, payload) {
        const response = await fetch(`${this.url}/admin/odds/override`, {
            method: 'POST',
            headers: { authorization: `Bearer ${this.admin}`, 'content-type': 'application/json' },
            body: `{"marketId":${marketId},"payload":${payload}}`,
        });
        if (response.status !== 200) throw new Error(await response.text());
        return response.json();
    }
}

export class Gateway extends Service {
    /** Starts a gateway and waits until it listens at `address`. */
    static start(settings = {}) {
        return new Gateway().serve('gateway', {
            HANDSHAKE_RATE_LIMIT: '0', TOKEN_RATE_LIMIT: '0', JWT_SECRET: 'a secret of at least thirty-two bytes', ...settings,
        });
    }

    /** Asks the gateway for a client token. */
    async token(body = {}) {
        const response = await fetch(`${this.url}/api/ws/token`, { method: 'POST', body: JSON.stringify({ userId: 1, ...body }) });
        return response.json();
    }
}

/**
 * A host over real sockets. `cut()` breaks the newest socket; messages for which `lose(text)` is true are dropped. `app`
 * hides and shows the app.
 */
export function breakable() {
    const sockets = [];
    const host = {
        ...web({ WebSocket }),
        random: () => 0.02, // short backoff
        sockets,
        lose: () => false,
        cut: () => sockets.at(-1).cut(),
        watch: (on) => { host.app = on; return () => {}; },
    };
    const { open } = host;
    host.open = (url, protocols, on) => {
        let isCut = false;
        const unlessCut = (run) => (...args) => { if (!isCut) run(...args); };
        const socket = open(url, protocols, {
            open: unlessCut(on.open),
            message: unlessCut((text) => { if (!host.lose(text)) on.message(text); }),
            close: unlessCut(on.close),
        });
        const cut = () => {
            if (isCut) return;
            isCut = true;
            socket.close(1000);
            on.close(1006, 'cut');
        };
        sockets.push({ cut });
        return socket;
    };
    return host;
}
