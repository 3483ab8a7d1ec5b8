// Tests browser.js itself: a page that misbehaves fails its test.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, test } from 'node:test';
import { close, open } from './browser.js';
import { later } from './later.js';

after(close);

/** Opens a page with this script. Returns the problems for which `open` would fail the test. */
async function problems(t, script, options) {
    const server = createServer((request, response) => {
        response.setHeader('content-security-policy', "default-src 'none'; script-src 'self'; style-src 'self'; img-src * data:");
        const js = request.url === '/page.js';
        response.setHeader('content-type', js ? 'text/javascript' : 'text/html');
        response.end(js ? `${script}\ndocument.title = 'done';` : '<!doctype html><link rel="icon" href="data:,"><script src="/page.js"></script>');
    });
    await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
    later(t, () => server.close());
    const checks = [];
    const page = await open({ after: (check) => checks.push(check) }, `http://127.0.0.1:${server.address().port}/`, options);
    await page.waitForFunction(() => document.title === 'done');
    return Promise.all(checks.map((check) => check())).then(() => '', (error) => error.message);
}

test('a page without problems passes', async (t) => {
    assert.equal(await problems(t, 'console.warn("fine");'), '');
});

for (const [what, script, problem] of [
    ['throws', 'document.title = "done"; throw new Error("oops");', /error: .*oops/],
    ['logs an error', 'console.error("oops");', /console: oops/],
    ['violates its policy', 'document.documentElement.setAttribute("style", "color: red");', /policy: style-src/],
    ['sends a request to another host', 'new Image().src = "http://127.0.0.2:9/x";', /another host: http:\/\/127\.0\.0\.2/],
]) {
    test(`a page that ${what} fails its test, unless the problem is expected`, async (t) => {
        assert.match(await problems(t, script), problem);
        assert.equal(await problems(t, script, { expected: /./ }), '');
    });
}
