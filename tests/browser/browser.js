// Opens pages in a real Chromium. A test fails if its page throws, logs an error, violates its content security policy
// or sends a request to another host.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { later } from './later.js';

/** How long a test waits for anything. */
export const DEADLINE_MS = 20_000;

const SHOTS = fileURLToPath(new URL('../../target/screenshots/', import.meta.url));
const ARGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'];

let launched = null;

/** Returns the browser that all tests of a file share. It has a temporary profile. */
async function browser() {
    launched ??= chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ARGS });
    return launched;
}

/** Ends the browser. Call it after the last test of a file: `after(close)`. */
export async function close() {
    if (launched) await (await launched).close();
    launched = null;
}

/**
 * Opens a page at `url` that shares no storage with other pages. `expected` matches problems that do not fail the test,
 * such as the error of a socket that it breaks. The other options are Playwright's for a context: `locale`, `viewport` …
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
    const check = (address) => {
        const { protocol, host: other } = new URL(address);
        if (protocol !== 'data:' && other !== host) note(`another host: ${address}`);
    };
    context.on('request', (request) => check(request.url()));
    // The browser reports some violations only as warnings.
    await context.addInitScript(() => document.addEventListener('securitypolicyviolation', (event) => {
        console.error(`policy: ${event.effectiveDirective} ${event.blockedURI}`);
    }));
    const page = await context.newPage();
    page.on('websocket', (socket) => check(socket.url()));
    later(t, async () => {
        await context.close();
        assert.deepEqual(problems, []);
    });
    await page.goto(url);
    return page;
}

/** Saves target/screenshots/NAME.png. */
export async function shot(page, name, options = {}) {
    mkdirSync(SHOTS, { recursive: true });
    await page.screenshot({ path: `${SHOTS}${name}.png`, ...options });
}
