// What the page's URL says: every filter, and the open run. A link shows others the same.

import { STATUSES } from './store.js';

/**
 * @typedef {import('../client.js').Status} Status
 * @typedef {import('./store.js').Filter} Filter
 * @typedef {object} Address
 * @property {Filter} filter
 * @property {string | undefined} run The open one.
 */

const PATIENCE = 300; // s

/** @param {string} search @returns {Address} */
export function parse(search) {
  const query = new URLSearchParams(search);
  const statuses = query.getAll('status').flatMap((each) => each.split(','));
  const known = STATUSES.filter((status) => statuses.includes(status));
  const filter = {
    // `status=` names none of the four, and none is shown; without it, no status is filtered.
    statuses: query.has('status') ? new Set(known) : undefined,
    text: query.get('q') ?? '',
    quiet: query.get('only') === 'quiet',
  };
  return { filter, run: query.get('run') ?? undefined };
}

/** The query, with whatever else it said. @param {Address} address @param {string} search */
export function format({ filter, run }, search) {
  const query = new URLSearchParams(search);
  set(
    query,
    'status',
    filter.statuses && STATUSES.filter((each) => filter.statuses?.has(each)).join(),
  );
  set(query, 'q', filter.text || undefined);
  set(query, 'only', filter.quiet ? 'quiet' : undefined);
  set(query, 'run', run);
  const text = String(query).replaceAll('%2C', ',');
  return text ? `?${text}` : '';
}

/** After how many ms a running run counts as quiet: `?quiet=` seconds. @param {string} search */
export function patience(search) {
  const seconds = Number(new URLSearchParams(search).get('quiet') || PATIENCE);
  return (seconds > 0 ? seconds : PATIENCE) * 1000;
}

/** @param {URLSearchParams} query @param {string} name @param {string | undefined} value */
function set(query, name, value) {
  if (value === undefined) query.delete(name);
  else query.set(name, value);
}
