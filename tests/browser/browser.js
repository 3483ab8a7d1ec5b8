// A real Chromium. What a page must never do fails the test that opened it: throw, log an error, break its own policy,
// or ask another host for anything.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { later } from './later.js';

/** For whatever a test waits for. */
export const DEADLINE_MS = 20_000;

const SHOTS = fileURLToPath(new URL('../../target/screenshots/', import.meta.url));
const ARGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'];

let launched = null;

/** One for all tests of a file, with a user directory that is new and goes with it. */
async function browser() {
    launched ??= chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ARGS });
    return launched;
}

/** When all of a file's tests are done: `after(close)`. */
export async function close() {
    if (launched) await (await launched).close();
    launched = null;
}

/**
 * A page at `url` that shares nothing with others. `expected` matches what it may log as an error, such as a socket
 * that a test breaks. Further options are Playwright's for a context: `locale`, `colorScheme`, `viewport`,
 * `reducedMotion`, `hasTouch` …
 */
export async function open(t, url, { expected, ...options } = {}) {
    const context = await (await browser()).newContext({
        locale: 'en-US', colorScheme: 'light', viewport: { width: 1280, height: 800 }, ...options,
    });
    context.setDefaultTimeout(DEADLINE_MS);
    const problems = [];
    const note = (problem) => { if (!expected?.test(problem)) problems.push(problem); };
    const { host } = new URL(url);
    context.on('weberror', (error) => note(`error: ${error.error().stack}`));
    context.on('console', (message) => { if (message.type() === 'error') note(`console: ${message.text()}`); });
    const look = (asked) => {
        const { protocol, host: other } = new URL(asked);
        if (protocol !== 'data:' && other !== host) note(`another host: ${asked}`);
    };
    context.on('request', (request) => look(request.url()));
    // At once, also where the browser's own report would only be a warning.
    await context.addInitScript(() => document.addEventListener('securitypolicyviolation', (event) => {
        console.error(`policy: ${event.effectiveDirective} ${event.blockedURI}`);
    }));
    const page = await context.newPage();
    page.on('websocket', (socket) => look(socket.url()));
    later(t, async () => {
        await context.close();
        assert.deepEqual(problems, []);
    });
    await page.goto(url);
    return page;
}

/** target/screenshots/NAME.png */
export async function shot(page, name, options = {}) {
    mkdirSync(SHOTS, { recursive: true });
    await page.screenshot({ path: `${SHOTS}${name}.png`, ...options });
}
