// Runs the example of the SDK's README in a page.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { after, test } from 'node:test';
import { close, open } from './browser.js';
import { later } from './later.js';
import { embedded } from './system.js';

after(close);

const sdk = new URL('../../sdk/', import.meta.url);
const read = (name) => readFileSync(new URL(name, sdk), 'utf8');
const example = /```js\n([^]*?)```/.exec(read('README.md'))[1];
const page = `<!doctype html><link rel="icon" href="data:,">
    <script type="importmap">{"imports":{"@kmarket/client":"/src/index.js"}}</script>
    <script type="module" src="/log.js"></script><script type="module" src="/example.js"></script>`;
const log = 'window.logged = []; console.log = (...words) => logged.push(words);';

test('the example of the SDK\'s README shows prices in a page of another origin', async (t) => {
    const files = { '/': page, '/log.js': log };
    const server = createServer(({ url }, response) => {
        response.setHeader('content-type', url === '/' ? 'text/html' : 'text/javascript');
        response.end(files[url] ?? read(url.slice(1)));
    });
    await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
    later(t, () => server.close());
    const origin = `http://127.0.0.1:${server.address().port}`;
    const gateway = await embedded(t, { CORS_ORIGINS: origin, ALLOWED_ORIGINS: origin });
    await gateway.publish(1001, '{"moneyline":{"home":1.85,"away":2.10}}');
    files['/example.js'] = example.replaceAll('127.0.0.1:8080', gateway.address);
    const tab = await open(t, `${origin}/`, { expected: /another host/ });
    await tab.waitForFunction(() => window.logged?.some(([market, seq, line, prices]) => (
        market === 1001 && seq === 1 && line === 'moneyline' && prices.home === '1.85' && prices.away === '2.10'
    )));
});
