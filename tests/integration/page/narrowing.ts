// What client.d.ts promises: the type of a message tells the status of its run. Compiled, not run.

import { Runs, watch, type Run, type WSMessage } from './client.js';

type Status<Type> = Extract<WSMessage, { type: Type }>['data']['status'];
const failed: Status<'run_failed'> = 'failed';
const completed: Status<'run_complete'> = 'completed';
// @ts-expect-error: a run that has failed is not running
const wrong: Status<'run_failed'> = 'running';

const shown = new Map<string, Run>();
const stop = watch('/ws?snapshot=true', {
  message(message) {
    if (message.type === 'run_failed') {
      const status: 'failed' = message.data.status;
      console.log(status, message.data.error);
    }
    shown.set(message.data.id, message.data);
  },
  connected(reset) {
    if (reset) shown.clear();
  },
});

const runs = new Runs('http://localhost:5221', { agent: 'me', token: async () => 'token' });
const unsubscribe = runs.subscribe((changes) => {
  for (const { id, run, previous } of changes) console.log(id, run?.status, previous?.status);
  if (runs.freshness.state !== 'live') console.log(runs.freshness.age);
});
// @ts-expect-error: there is no such state
if (runs.freshness.state === 'fresh') unsubscribe();

export { completed, failed, stop, wrong };
