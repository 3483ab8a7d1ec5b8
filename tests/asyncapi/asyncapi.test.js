// Checks docs/asyncapi.yaml: it is valid AsyncAPI; a real gateway accepts every example of a client's message; and every
// message of that gateway has exactly the members that the document describes.

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

/** Returns a validator per schema. `closed`: members that the schema does not name are errors. */
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

/** Returns the name that the document has for a message of the gateway. */
const nameOf = ({ type }) => ({ odds_update: 'oddsUpdate' }[type] || type);

const described = validators({ closed: true });

/** A client that keeps every message of the gateway. */
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

    send(message) { this.socket.send(JSON.stringify(message)); }

    /** Returns the first message for which `is(message, index)` is true, and waits for it if it has not come yet. */
    async receive(is) {
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

/** Checks every message that the gateway sent. Returns the names of the messages. */
function check(client) {
    return client.messages.map((message) => {
        const name = nameOf(message);
        assert.ok(FROM_THE_GATEWAY.includes(name), `${message.type} is not described`);
        const validate = described[name];
        assert.ok(validate(message), `${JSON.stringify(message)}: ${JSON.stringify(validate.errors)}`);
        return name;
    });
}

test('the document is valid AsyncAPI 3, and its messages are all used', () => {
    const validate = new Ajv({ strict: false, validateFormats: false, logger: false }).compile(specification);
    assert.ok(validate(description), JSON.stringify(validate.errors, null, 1));
    assert.equal(description.info.version, /^version = "(.*)"$/m.exec(readFileSync(new URL('../../Cargo.toml', import.meta.url), 'utf8'))[1]);
    const used = Object.values(description.operations).flatMap((operation) => [...operation.messages, ...(operation.reply?.messages || [])]);
    const names = new Set(used.map(({ $ref }) => $ref.split('/').at(-1)));
    assert.deepEqual([...names].sort(), Object.keys(messages).sort());
    assert.deepEqual(Object.keys(description.channels.odds.messages).sort(), Object.keys(messages).sort());
});

test('every example matches its schema and has no other members', () => {
    for (const [name, { examples, payload }] of Object.entries(messages)) {
        assert.equal(payload.$ref, `#/components/schemas/${name}`);
        for (const { payload: example } of examples) {
            assert.ok(described[name](example), `${name}: ${JSON.stringify(example)}: ${JSON.stringify(described[name].errors)}`);
        }
    }
});

test('a gateway accepts every example of a client\'s message', { timeout: 60_000 }, async (t) => {
    const gateway = await embedded(t);
    const examples = FROM_CLIENTS.flatMap((name) => messages[name].examples.map(({ payload }) => ({ name, payload })));
    assert.ok(examples.length >= FROM_CLIENTS.length);
    for (const { name, payload } of examples) {
        const { client, token } = await connect(t, gateway);
        const sent = JSON.parse(JSON.stringify(payload).replace('<jwt>', token));
        client.send(sent);
        client.send({ type: 'ping', ts: 4711 }); // its pong comes after everything that the example causes
        await client.receive(({ type, ts }) => type === 'pong' && ts === 4711);
        const replies = client.messages.filter(({ type }) => type === 'ack' || type === 'error' || type === 'pong');
        const expected = { clientPing: ['pong', 'pong'], clientPong: ['pong'] }[name] || ['ack', 'pong'];
        assert.deepEqual(replies.map(({ type }) => type), expected, JSON.stringify(sent));
        assert.equal(replies[0].id, sent.id);
        check(client);
        client.close();
    }
});

test('a gateway refuses every message that the schemas refuse', { timeout: 60_000 }, async (t) => {
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
        assert.ok(!open[name](message), `the schema accepts ${JSON.stringify(message)}`);
        const before = client.messages.length;
        client.send(message);
        await client.receive((reply, index) => index >= before && reply.type === 'error' && reply.code === 'BAD_MESSAGE');
    }
    assert.deepEqual([...new Set(check(client))], ['error']);
});

test('every message of a gateway is described', { timeout: 120_000 }, async (t) => {
    const { redis, publisher, gateways: [gateway] } = await system(t, [{ HEARTBEAT_INTERVAL: '1s', STALE_AFTER: '1s', MAX_MARKETS_PER_CONNECTION: '2' }]);
    const { client } = await connect(t, gateway, { scopeMarkets: [1001, 1002, 1003] });
    await publisher.publish(1001, '{"moneyline":{"home":1.85,"away":2.10},"total":{"over":1.9,"under":1.9}}');
    client.send({ type: 'subscribe', markets: ['1001', '1002', '1003', '1004'], snapshot: true, id: 'first' });
    const { rejected } = await client.receive(({ type }) => type === 'ack');
    assert.deepEqual(new Set(rejected.map(({ code }) => code)), new Set(['FORBIDDEN', 'LIMIT_EXCEEDED']));
    await client.receive(({ type, marketId }) => type === 'snapshot' && marketId === 1001);
    await publisher.publish(1001, '{"total":null}');
    await client.receive(({ type, seq }) => type === 'odds_update' && seq === 2);
    client.send({ type: 'resume', offsets: { 1001: { epoch: 1, seq: 1 } } });
    await client.receive(({ reset }) => reset);
    client.send({ type: 'resume', offsets: { 1001: 1 }, id: 2 });
    await client.receive(({ positions }) => positions?.[1001]?.recovered);
    client.send({ type: 'unsubscribe', markets: [1001] });
    await client.receive(({ unsubscribed }) => unsubscribed);
    client.send({ type: 'ping', ts: 1.5 });
    await client.receive(({ type }) => type === 'pong');
    client.send({ type: 'nonsense' });
    await client.receive(({ type }) => type === 'error');
    await client.receive(({ type }) => type === 'ping');
    redis.freeze();
    await client.receive(({ type, stale }) => type === 'status' && stale);
    redis.goOn();
    await client.receive(({ type, stale }) => type === 'status' && !stale);
    gateway.process.kill('SIGTERM');
    await client.receive(({ type }) => type === 'bye');
    assert.deepEqual([...new Set(check(client))].sort(), [...FROM_THE_GATEWAY].sort());
});
