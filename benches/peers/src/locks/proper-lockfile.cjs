// proper-lockfile, told on standard input what to do: see talk.rs.
'use strict';

const fs = require('fs');
const path = require('path');
const readline = require('readline');
const lockfile = require('proper-lockfile');

const [directory, stale] = process.argv.slice(1);
// Its waits have no default: this is how often filelock looks.
const retries = { forever: true, factor: 1, minTimeout: 50, maxTimeout: 50 };
const options = { stale: Number(stale), retries };
const held = new Map();
const now = () => process.hrtime.bigint();

// What is locked has to be there.
function target(name) {
    const file = path.join(directory, name);
    if (!fs.existsSync(file)) fs.writeFileSync(file, '');
    return file;
}

const verbs = {
    async version() {
        return JSON.stringify(require('proper-lockfile/package.json').version);
    },
    async cycle(name, times) {
        const file = target(name);
        const took = [];
        for (let time = 0; time < Number(times); time++) {
            const start = now();
            const release = await lockfile.lock(file, options);
            await release();
            took.push(now() - start);
        }
        return `[${took.join()}]`;
    },
    async take(name) {
        held.set(name, await lockfile.lock(target(name), options));
        return now();
    },
    async free(name) {
        const start = now();
        await held.get(name)();
        return start;
    },
};

(async () => {
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const [verb, ...rest] = line.split(' ');
        process.stdout.write(`${await verbs[verb](...rest)}\n`);
    }
    process.exit();
})();
