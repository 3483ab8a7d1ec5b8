// Starts real systems for the pages: one embedded gateway, or Redis, a publisher and gateways.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gateway, Program, Service, binary } from '../../sdk/test/gateway.js';
import { later } from './later.js';

export { Gateway };

const ADMIN_JWT_SECRET = 'another secret of thirty-two bytes';
/** Ports that neither outgoing connections nor the servers of other tests use. */
const PORTS = { from: 30_000, to: 32_000 };
const ATTEMPTS = 10;

/** Starts the whole system in one process. */
export async function embedded(t, settings = {}) {
    const gateway = await Gateway.start(settings);
    later(t, () => gateway.end());
    return gateway;
}

/** Starts Redis, a publisher, and one gateway per item of `settings`. */
export async function system(t, settings = [{}, {}]) {
    const redis = await Redis.start();
    later(t, () => redis.end());
    const REDIS_URL = redis.url;
    const publisher = await new Service().serve('publisher', { REDIS_URL, ADMIN_JWT_SECRET });
    later(t, () => publisher.end());
    publisher.admin = adminToken('desk-1', 'admin');
    const gateways = await Promise.all(settings.map(async (more) => {
        const gateway = await Gateway.start({ REDIS_URL, BOARD: 'true', ...more });
        later(t, () => gateway.end());
        return gateway;
    }));
    return { redis, publisher, gateways };
}

/** Returns an admin token for the publisher of a `system`. */
export function adminToken(sub, role) {
    const args = ['token', '--sub', sub, '--role', role, '--ttl', '1h'];
    return execFileSync(binary('publisher'), args, { env: { ADMIN_JWT_SECRET }, encoding: 'utf8' }).trim();
}

class Redis extends Program {
    static async start() {
        const dir = mkdtempSync(join(tmpdir(), 'kmarket-browser-'));
        for (let attempt = 1; ; attempt += 1) {
            const redis = new Redis();
            redis.dir = dir;
            redis.port = PORTS.from + Math.floor(Math.random() * (PORTS.to - PORTS.from));
            const args = ['--port', redis.port, '--bind', '127.0.0.1', '--save', '', '--dir', dir].map(String);
            try {
                return await redis.run('redis-server', args, {}, (line) => line.includes('Ready to accept connections'));
            } catch (error) {
                if (attempt === ATTEMPTS || error.code === 'ENOENT') throw error; // else another process took the port
            }
        }
    }

    get url() { return `redis://127.0.0.1:${this.port}`; }

    /** Stops responding until `goOn`, like a machine without a network. */
    freeze() { this.process.kill('SIGSTOP'); }

    goOn() { this.process.kill('SIGCONT'); }

    async end() {
        await super.end();
        rmSync(this.dir, { recursive: true, force: true });
    }
}
