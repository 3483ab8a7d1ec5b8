// docs/asyncapi.yaml: it is AsyncAPI, a real gateway understands every example of what a client says, and what that
// gateway says is as described, member by member.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import Ajv from 'ajv';
import { parse } from 'yaml';
import { WebSocket } from '../../sdk/test/gateway.js';
import { embedded, system } from '../browser/system.js';

const specification = createRequire(import.meta.url)('@asyncapi/specs/schemas/3.0.0-without-$id.json');
const description = parse(readFileSync(new URL('../../docs/asyncapi.yaml', import.meta.url), 'utf8'));
const { messages, schemas } = description.components;
const FROM_CLIENTS = ['subscribe', 'unsubscribe', 'resume', 'refresh', 'clientPing', 'clientPong'];
const FROM_THE_GATEWAY = Object.keys(messages).filter((name) => !FROM_CLIENTS.includes(name));

/** The schemas as they are, or with nothing allowed that they do not name. */
function validators({ closed }) {
    const ajv = new Ajv({ allowUnionTypes: true, keywords: ['components'] });
    ajv.addSchema({ $id: 'doc', components: { schemas: closed ? close(schemas) : schemas } });
    return Object.fromEntries(Object.keys(schemas).map((name) => [name, ajv.getSchema(`doc#/components/schemas/${name}`)]));
}

function close(schema) {
    if (Array.isArray(schema)) return schema.map(close);
    if (!schema || typeof schema !== 'object') return schema;
    const inner = Object.fromEntries(Object.entries(schema).map(([name, value]) => [name, close(value)]));
    return inner.type === 'object' && inner.properties ? { additionalProperties: false, ...inner } : inner;
}

/** What the gateway's `type` is called here. */
const nameOf = ({ type }) => ({ odds_update: 'oddsUpdate' }[type] || type);

const described = validators({ closed: true });

/** A socket whose every message is held against the description; `heard` has the names. */
class Client {
    messages = [];
    waiting = [];

    constructor(gateway, token) {
        this.socket = new WebSocket(`ws://${gateway.address}/ws/odds?token=${token}`);
        this.socket.onmessage = ({ data }) => {
            this.messages.push(JSON.parse(data));
            this.waiting.splice(0).forEach((look) => look());
        };
        this.opened = new Promise((resolve, reject) => { this.socket.onopen = resolve; this.socket.onerror = reject; });
    }

    say(message) { this.socket.send(JSON.stringify(message)); }

    /** The first message that `is` so, said already or not. */
    async hear(is) {
        for (;;) {
            const found = this.messages.find(is);
            if (found) return found;
            await new Promise((resolve) => { this.waiting.push(resolve); });
        }
    }

    close() { this.socket.close(); }
}

async function connect(t, gateway, claims) {
    const { token } = await gateway.token(claims);
    const client = new Client(gateway, token);
    t.after(() => client.close());
    await client.opened;
    return { client, token };
}

/** Holds all that was said against the description; answers with the names. */
function hold(client) {
    return client.messages.map((message) => {
        const name = nameOf(message);
        assert.ok(FROM_THE_GATEWAY.includes(name), `${message.type} is not described`);
        const validate = described[name];
        assert.ok(validate(message), `${JSON.stringify(message)}: ${JSON.stringify(validate.errors)}`);
        return name;
    });
}

test('it is AsyncAPI 3', () => {
    const validate = new Ajv({ strict: false, validateFormats: false, logger: false }).compile(specification);
    assert.ok(validate(description), JSON.stringify(validate.errors, null, 1));
    assert.equal(description.info.version, /^version = "(.*)"$/m.exec(readFileSync(new URL('../../Cargo.toml', import.meta.url), 'utf8'))[1]);
    const used = Object.values(description.operations).flatMap((operation) => [...operation.messages, ...(operation.reply?.messages || [])]);
    const names = new Set(used.map(({ $ref }) => $ref.split('/').at(-1)));
    assert.deepEqual([...names].sort(), Object.keys(messages).sort());
    assert.deepEqual(Object.keys(description.channels.odds.messages).sort(), Object.keys(messages).sort());
});

test('every example is as its schema says, and has no member that the schema does not name', () => {
    for (const [name, { examples, payload }] of Object.entries(messages)) {
        assert.equal(payload.$ref, `#/components/schemas/${name}`);
        for (const { payload: example } of examples) {
            assert.ok(described[name](example), `${name}: ${JSON.stringify(example)}: ${JSON.stringify(described[name].errors)}`);
        }
    }
});

test('a gateway understands every example of what a client says', { timeout: 60_000 }, async (t) => {
    const gateway = await embedded(t);
    const examples = FROM_CLIENTS.flatMap((name) => messages[name].examples.map(({ payload }) => ({ name, payload })));
    assert.ok(examples.length >= FROM_CLIENTS.length);
    for (const { name, payload } of examples) {
        const { client, token } = await connect(t, gateway);
        const said = JSON.parse(JSON.stringify(payload).replace('<jwt>', token));
        client.say(said);
        client.say({ type: 'ping', ts: 4711 }); // answered after it, in order
        await client.hear(({ type, ts }) => type === 'pong' && ts === 4711);
        const answers = client.messages.filter(({ type }) => type === 'ack' || type === 'error' || type === 'pong');
        const expected = { clientPing: ['pong', 'pong'], clientPong: ['pong'] }[name] || ['ack', 'pong'];
        assert.deepEqual(answers.map(({ type }) => type), expected, JSON.stringify(said));
        assert.equal(answers[0].id, said.id);
        hold(client);
        client.close();
    }
});

test('a gateway refuses what the schemas refuse', { timeout: 60_000 }, async (t) => {
    const gateway = await embedded(t, { MESSAGE_BURST: '1000' });
    const { client } = await connect(t, gateway);
    const open = validators({ closed: false });
    const wrong = [
        ['subscribe', { type: 'subscribe' }], ['subscribe', { type: 'subscribe', markets: [0] }],
        ['subscribe', { type: 'subscribe', markets: ['01'] }], ['subscribe', { type: 'subscribe', markets: 1001 }],
        ['subscribe', { type: 'subscribe', markets: [1], snapshot: 1 }], ['subscribe', { type: 'subscribe', markets: [1], id: 1.5 }],
        ['subscribe', { type: 'subscribe', markets: [1], id: 'x'.repeat(65) }], ['unsubscribe', { type: 'unsubscribe', markets: [-1] }],
        ['resume', { type: 'resume' }], ['resume', { type: 'resume', offsets: { a: 1 } }], ['resume', { type: 'resume', offsets: { 1: -1 } }],
        ['resume', { type: 'resume', offsets: { 1: { epoch: 1 } } }], ['clientPing', { type: 'ping', ts: '1' }],
        ['refresh', { type: 'refresh' }], ['refresh', { type: 'refresh', token: 1 }],
    ];
    for (const [name, message] of wrong) {
        assert.ok(!open[name](message), `the schema takes ${JSON.stringify(message)}`);
        const before = client.messages.length;
        client.say(message);
        await client.hear((answer, index) => index >= before && answer.type === 'error' && answer.code === 'BAD_MESSAGE');
    }
    assert.deepEqual([...new Set(hold(client))], ['error']);
});

test('all that a gateway says is described', { timeout: 120_000 }, async (t) => {
    const { redis, publisher, gateways: [gateway] } = await system(t, [{ HEARTBEAT_INTERVAL: '1s', STALE_AFTER: '1s', MAX_MARKETS_PER_CONNECTION: '2' }]);
    const { client } = await connect(t, gateway, { scopeMarkets: [1001, 1002, 1003] });
    await publisher.publish(1001, '{"moneyline":{"home":1.85,"away":2.10},"total":{"over":1.9,"under":1.9}}');
    client.say({ type: 'subscribe', markets: ['1001', '1002', '1003', '1004'], snapshot: true, id: 'first' });
    const { rejected } = await client.hear(({ type }) => type === 'ack');
    assert.deepEqual(new Set(rejected.map(({ code }) => code)), new Set(['FORBIDDEN', 'LIMIT_EXCEEDED']));
    await client.hear(({ type, marketId }) => type === 'snapshot' && marketId === 1001);
    await publisher.publish(1001, '{"total":null}');
    await client.hear(({ type, seq }) => type === 'odds_update' && seq === 2);
    client.say({ type: 'resume', offsets: { 1001: { epoch: 1, seq: 1 } } });
    await client.hear(({ reset }) => reset);
    client.say({ type: 'resume', offsets: { 1001: 1 }, id: 2 });
    await client.hear(({ positions }) => positions?.[1001]?.recovered);
    client.say({ type: 'unsubscribe', markets: [1001] });
    await client.hear(({ unsubscribed }) => unsubscribed);
    client.say({ type: 'ping', ts: 1.5 });
    await client.hear(({ type }) => type === 'pong');
    client.say({ type: 'nonsense' });
    await client.hear(({ type }) => type === 'error');
    await client.hear(({ type }) => type === 'ping');
    redis.freeze();
    await client.hear(({ type, stale }) => type === 'status' && stale);
    redis.goOn();
    await client.hear(({ type, stale }) => type === 'status' && !stale);
    gateway.process.kill('SIGTERM');
    await client.hear(({ type }) => type === 'bye');
    assert.deepEqual([...new Set(hold(client))].sort(), [...FROM_THE_GATEWAY].sort());
});
