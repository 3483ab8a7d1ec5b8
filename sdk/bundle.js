// Makes the bundle for mini-programs with esbuild. Arguments are passed on: `npm run bundle -- --outfile=…`.
//
// Old engines have no private members. esbuild would keep each one in a WeakMap, which makes the bundle a seventh larger,
// and every access slower. So private names become ordinary ones first, with an underscore, and esbuild shortens these.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const src = fileURLToPath(new URL('src/', import.meta.url));
const temporary = mkdtempSync(join(tmpdir(), 'kmarket-client-'));
try {
    for (const name of readdirSync(src)) {
        const code = readFileSync(join(src, name), 'utf8').replace(/#(?=[a-z])/g, '_');
        writeFileSync(join(temporary, name), code);
    }
    execFileSync('npx', ['--yes', 'esbuild@0.28.2', join(temporary, 'index.js'), '--bundle', '--minify', '--format=cjs',
        '--target=es2018', '--mangle-props=^_[a-z]', ...process.argv.slice(2)], { stdio: 'inherit' });
} finally {
    rmSync(temporary, { recursive: true });
}
