// Plays the tables of cases on client.js: the same that test_clock.py and test_freshness.py play.
// node cases.mjs STATIC. Prints each step that goes wrong, and ends with 1 if there is one.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const from = (name) => import(pathToFileURL(`${process.argv[2]}/client/${name}`).href);
const { DatabaseClock } = await from('database_clock.js');
const { Evidence } = await from('freshness.js');

const table = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url)));
const iso = (ms) => new Date(ms).toISOString();
let played = 0;

for (const name of ['clock.json', 'freshness.json']) {
  for (const { fact, steps } of table(name)) {
    let [at, wall] = [0, 0];
    const clock = new DatabaseClock(() => at, () => wall);
    const evidence = new Evidence(clock, () => at);
    for (const step of steps) {
      at = step.at;
      wall = step.wall ?? at;
      if ('ask' in step) clock.ask(new Date(step.ask).toUTCString());
      if ('hear' in step) clock.hear(iso(step.hear), false);
      if ('push' in step) clock.hear(iso(step.push), true);
      if ('report' in step) {
        const [source, lag_seconds, code, detail] = step.report;
        evidence.report({ source, lag_seconds, code, detail });
      }
      if ('ready' in step) evidence.ready();
      if ('leave' in step) evidence.leave(step.leave);
      if ('end' in step) evidence.end(...step.end);
      const { state, at: until = null, age, code = null, reason = '' } = evidence.freshness;
      const found = { now: clock.now(), doubtful: clock.isDoubtful, state, until, age, code, reason };
      for (const [key, value] of Object.entries(step)) {
        if (key in found && found[key] !== value) {
          console.log(`${name}: ${fact}: ${JSON.stringify(step)}: ${key} is ${found[key]}`);
          process.exitCode = 1;
        }
      }
      played++;
    }
  }
}
console.log(`${played} steps`);
