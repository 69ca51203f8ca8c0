// Follow the runs of a Brain from a web page, Node or Deno:
//
//   import { watch, Runs } from 'http://localhost:5221/client.js';
//
// `watch` passes on each message of /ws, over every drop. `Runs` is a store on top of it: the list
// of runs, kept current. To have a copy, take the folder `client` too. Types: /client.d.ts.

export { Runs } from './client/runs.js';
export { watch } from './client/watch.js';
