// A client made with Node's `ws`: node ws.js ws://HOST:PORT/ws/odds TOKEN MARKET. The caller publishes the market while
// this runs. Exits with 0 if the gateway behaves as docs/protocol.md says.
'use strict';
const assert = require('node:assert');
const WebSocket = require('ws');

const [url, token, market] = process.argv.slice(2);

// Opens a connection. Its events are kept in order until a test waits for them.
async function connect(address, protocols, options) {
  const socket = new WebSocket(address, protocols, { perMessageDeflate: true, ...options });
  const events = [];
  let wake = () => {};
  const on = (name, pick) =>
    socket.on(name, (...args) => {
      events.push([name, pick(...args)]);
      wake();
    });
  on('open', () => undefined);
  on('message', (data, isBinary) => (assert(!isBinary), JSON.parse(data)));
  on('ping', (data) => data.toString());
  on('pong', (data) => data.toString());
  on('close', (code, reason) => [code, reason.toString()]);
  socket.on('error', (error) => { throw error; });
  // Returns the value of the next event for which `wanted(name, value)` is true, and drops those before it.
  const next = async (wanted) => {
    for (;;) {
      while (events.length > 0) {
        const [name, value] = events.shift();
        if (wanted(name, value)) return value;
        assert.notStrictEqual(name, 'close', `closed: ${value}`);
      }
      await new Promise((resolve) => { wake = resolve; });
    }
  };
  const message = (type) => next((name, value) => name === 'message' && value.type === type);
  await next((name) => name === 'open');
  assert.strictEqual(socket.extensions, '', 'the gateway must not accept permessage-deflate');
  return { socket, next, message, send: (value) => socket.send(JSON.stringify(value)) };
}

async function follows(client) {
  client.send({ type: 'subscribe', markets: [market] });
  const ack = await client.message('ack');
  assert.deepStrictEqual([ack.ok, ack.subscribed], [true, [Number(market)]]);
  for (let seq = ack.positions[market].seq + 1, end = seq + 3; seq < end; seq++) {
    assert.strictEqual((await client.message('odds_update')).seq, seq);
  }
  client.send({ type: 'unsubscribe', markets: [market] });
  assert.deepStrictEqual((await client.message('ack')).unsubscribed, [Number(market)]);
}

async function main() {
  const inQuery = await connect(`${url}?token=${token}`);
  const inHeader = await connect(url, [], { headers: { Authorization: `Bearer ${token}` } });
  const inProtocol = await connect(url, ['kmarket.v1', `token.${token}`]);
  assert.deepStrictEqual([inQuery, inHeader, inProtocol].map(({ socket }) => socket.protocol), ['', '', 'kmarket.v1']);
  for (const client of [inQuery, inHeader, inProtocol]) await follows(client);

  const [head, tail] = ['{"type":"ping","ts":7,"note":"caf\u00e9', '\u20ac"}'];
  inQuery.socket.send(head, { fin: false });
  inQuery.socket.ping('between fragments');
  inQuery.socket.send('', { fin: false });
  inQuery.socket.send(tail, { fin: true });
  assert.strictEqual(await inQuery.next((name) => name === 'pong'), 'between fragments');
  assert.strictEqual((await inQuery.message('pong')).ts, 7);

  // The library answers ping frames. Nothing else is sent for longer than HEARTBEAT_TIMEOUT.
  for (let heartbeats = 0; heartbeats < 8; heartbeats++) {
    await inHeader.next((name) => name === 'ping');
    await inHeader.message('ping');
  }

  const closed = (client) => client.next((name) => name === 'close');
  inQuery.socket.close(1000, 'done');
  assert.deepStrictEqual(await closed(inQuery), [1000, '']);
  inHeader.socket.close(4001);
  assert.deepStrictEqual(await closed(inHeader), [4001, '']);
  inProtocol.socket.send(Buffer.from([1, 2, 3]));
  assert.strictEqual((await inProtocol.message('bye')).code, 1003);
  assert.deepStrictEqual(await closed(inProtocol), [1003, 'TEXT_FRAMES_ONLY']);
  const silent = await connect(`${url}?token=${token}`);
  silent.socket.close();
  assert.strictEqual((await closed(silent))[0], 1005, 'a close frame without a code gets one without a code');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
