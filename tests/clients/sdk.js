// Runs the client of sdk/ as a child process. Its first line on standard input is {"url":…,"markets":[…]}. It prints the line
// `token` to ask for a token, and reads {"token":…}. It prints its state as JSON after each change.
'use strict';
const { createInterface } = require('node:readline');
const WebSocket = globalThis.WebSocket || require('ws');

async function main() {
  const { Client, web } = await import('../../sdk/src/index.js');
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const line = async () => JSON.parse((await lines.next()).value);
  const { url, markets } = await line();
  const rejected = {};
  const saw = new Set();
  const token = async () => {
    console.log('token');
    return (await line()).token;
  };
  // A short backoff.
  const host = { ...web({ WebSocket }), random: () => 0.02 };
  const client = new Client({ url, token, host });
  const printState = () => {
    const known = markets.map((id) => {
      const { epoch, seq, lines: all, fresh } = client.market(id) || { epoch: 0, seq: null, lines: {}, fresh: false };
      return [id, { epoch, seq, lines: all, fresh, rejected: rejected[id] || null }];
    });
    console.log(JSON.stringify({ markets: Object.fromEntries(known), saw: [...saw] }));
  };
  client.on('change', ({ reset, conflated }) => {
    if (reset) saw.add('reset');
    if (conflated) saw.add('conflated');
    printState();
  });
  client.on('fresh', printState);
  client.on('rejected', ({ marketId, code }) => {
    rejected[marketId] = code;
    printState();
  });
  client.on('state', ({ code }) => {
    if (code) saw.add(String(code));
    printState();
  });
  client.subscribe(markets);
  client.start();
  process.stdin.on('end', () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
