// Runs the vectors of docs/vectors/messages: docs/vectors/README.md says what each step means.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { World } from './world.js';

/** The `needs` that this client supports: all of them. */
const SUPPORTED = ['fold', 'patch', 'pace', 'ts'];
/** Members with which a request asks for more than the field's messages, and the need that a vector names to compare them. */
const OPTIONAL = { fold: 'fold', patch: 'patch', conflateMs: 'pace' };
const DIR = new URL('../../docs/vectors/messages/', import.meta.url);

for (const file of readdirSync(DIR)) {
    const { title, needs = [], markets, steps } = JSON.parse(readFileSync(new URL(file, DIR), 'utf8'));
    test(`${file}: ${title}`, async () => {
        for (const need of needs) assert.ok(SUPPORTED.includes(need), need);
        const run = new Run(needs);
        run.world.client.subscribe(markets);
        for (const [number, step] of steps.entries()) {
            try {
                await run.step(step);
            } catch (error) {
                error.message = `step ${number + 1}, ${JSON.stringify(step).slice(0, 300)}\n${error.message}`;
                throw error;
            }
        }
    });
}

class Run {
    requests = [];
    rejected = new Map();

    constructor(needs) {
        this.needs = needs;
        this.world = new World({ storage: null }, {
            random: () => 0, // no backoff beyond the wait that the gateway asks for
            get: (url) => new Promise((resolve) => { this.requests.push({ url: new URL(url), resolve }); }),
        });
        this.world.client.on('rejected', ({ marketId, code }) => this.rejected.set(marketId, code));
    }

    async step(step) {
        const { world } = this;
        const { client } = world;
        if (step.open) {
            if (client.state === 'idle' || client.state === 'stopped') client.start();
            if (client.state === 'waiting') await world.pass(world.of('state').at(-1).retryInMs);
            await world.settle();
            assert.equal(client.state, 'connecting');
            if (this.newToken !== undefined) assert.equal(world.tokens > this.newToken.before, this.newToken.expected, 'a new token');
            world.socket.on.open();
            assert.deepEqual(sorted(this.#sent(0)), sorted(step.open));
        } else if (step.say !== undefined) {
            const from = world.socket.sent.length;
            world.receive(step.say.replace(/"id":\$(\w+),?/, (_, type) => `"id":${world.sent(type).at(-1).id},`));
            await world.pass(0);
            if (step.sends) assert.deepEqual(sorted(this.#sent(from)), sorted(step.sends));
        } else if (step.app) {
            const from = world.socket.sent.length;
            world.on[step.app]();
            assert.deepEqual(sorted(this.#sent(from)), sorted(step.sends));
        } else if (step.get) {
            const at = this.requests.findIndex(({ url }) => url.pathname + query(url) === step.get);
            assert.notEqual(at, -1, `requested: ${this.requests.map(({ url }) => url.href)}`);
            const [{ resolve }] = this.requests.splice(at, 1);
            resolve({ status: 200, text: step.answer });
            await world.settle();
            await world.pass(0);
        } else if (step.close) {
            const { reconnect, leastWaitMs, newToken } = step.then;
            world.close(step.close);
            const { state, retryInMs } = world.of('state').at(-1);
            assert.equal(state, reconnect ? 'waiting' : 'stopped');
            if (reconnect) {
                assert.equal(retryInMs, leastWaitMs);
                this.newToken = { before: world.tokens, expected: newToken };
            } else this.newToken = undefined;
        } else {
            assert.ok(step.expect, 'unknown step');
            for (const [id, expected] of Object.entries(step.expect)) {
                const { marketId, ...market } = client.market(id) || {};
                const known = { fresh: false, rejected: this.rejected.get(Number(id)) || null, ...market };
                if (expected === null) assert.equal(marketId, undefined, `market ${id} is unknown`);
                else assert.deepEqual(Object.fromEntries(Object.keys(expected).map((name) => [name, known[name]])), expected);
            }
            if (step.stale !== undefined) assert.equal(client.stale !== null, step.stale);
        }
    }

    /**
     * Returns the client's messages on this connection, from number `from` on, without pings and ids, and without the
     * optional members that the vector does not need.
     */
    #sent(from) {
        const sent = this.world.socket.sent.slice(from).filter(({ type }) => type !== 'ping');
        return sent.map(({ id, ...message }) => {
            for (const [member, need] of Object.entries(OPTIONAL)) if (!this.needs.includes(need)) delete message[member];
            for (const offset of Object.values(message.offsets || {})) if (!this.needs.includes('ts')) delete offset.ts;
            return message;
        });
    }
}

/** Returns the query of a request without `limit`, which each client may choose. */
function query({ searchParams }) {
    return searchParams.has('since_seq') ? `?since_seq=${searchParams.get('since_seq')}` : '';
}

function sorted(messages) {
    return messages.map((message) => JSON.stringify(message)).sort().map((text) => JSON.parse(text));
}
