// The list with which a store begins: all active runs, and the finished ones that ended last.

import { Refused } from './watch.js';

// brain/client/pages.py does the same for Python.

/**
 * @typedef {import('../client.js').Run} Run
 * @typedef {import('../client.js').RunsOptions} RunsOptions
 * @typedef {import('./database_clock.js').DatabaseClock} DatabaseClock
 *
 * @typedef {object} Listed A run, and when it changed last.
 * @property {Run} run
 * @property {string} [changed_at]
 * @property {string} [loaded_at] Instead: it has not changed since then.
 *
 * @typedef {object} Page
 * @property {Run[]} runs
 * @property {string[]} [changed_at]
 * @property {string} [exact_after]
 * @property {string | null} next_cursor
 * @property {string | null} timestamp
 *
 * @typedef {'run_id' | 'task_id' | 'agent' | 'status'} Field
 * @typedef {Record<Field, readonly string[] | undefined>} Wanted
 */

const ACTIVE = ['queued', 'running'];
const FINISHED = ['completed', 'failed'];
const PAGE = 1000; // runs
const MAX_VALUES = 100; // of all filters of a request
const MAX_QUERY = 6000; // characters of ids: a URL has at most 8 KiB

/** @param {Run} run */
export const isFinished = ({ status }) => status === 'completed' || status === 'failed';

export class List {
  #base;
  #options;
  #clock;
  /** Of the first answer: /ws brings every change from then on. @type {string | undefined} */
  #since;

  /** @param {URL} base @param {RunsOptions} options @param {DatabaseClock} clock */
  constructor(base, options, clock) {
    this.#base = base;
    this.#options = options;
    this.#clock = clock;
  }

  /**
   * All active runs, as Brain remembers them.
   *
   * @param {Wanted} wanted
   */
  async active(wanted) {
    const { found } = await this.#read({ ...wanted, status: among(ACTIVE, wanted) }, 'changed');
    return found;
  }

  /**
   * What these runs are now, which were active once: they may be beyond the finished ones below.
   *
   * @param {Wanted} wanted @param {readonly string[]} ids
   */
  async these(wanted, ids) {
    const others = Object.values({ ...wanted, run_id: [] }).flatMap((each) => each ?? []);
    /** @type {Listed[]} */ const all = [];
    for (const run_id of portions(ids, Math.max(1, MAX_VALUES - others.length))) {
      all.push(...(await this.#read({ ...wanted, run_id }, 'id')).found);
    }
    return all;
  }

  /**
   * At most `most` finished runs: those that ended last, the latest first, as far as Brain
   * remembers; others after them. `complete`: there are no more.
   *
   * @param {Wanted} wanted @param {number} most
   */
  async finished(wanted, most) {
    const asked = { ...wanted, status: among(FINISHED, wanted) };
    // One more than is wanted tells that there are more.
    const latest = (await this.#read(asked, 'changed', most + 1)).found;
    if (latest.length > most) return { found: latest.slice(0, most), complete: false };
    const met = new Set(latest.map(({ run }) => run.id));
    /** @type {Set<string>} */ const there = new Set();
    const rest = await this.#read(asked, 'id', most + 1 - latest.length, ({ id }) => {
      there.add(id);
      return !met.has(id);
    });
    // While Brain polls, it does not notice that a finished run was deleted: the table does.
    const found = latest.filter(({ run }) => !rest.complete || there.has(run.id));
    found.push(...rest.found);
    return { found: found.slice(0, most), complete: rest.complete && found.length <= most };
  }

  /** The time from which each change has to come. */
  get since() {
    if (this.#since === undefined) throw new Error('Brain has not read the table yet');
    return this.#since;
  }

  /**
   * Read pages until there are no more, or `most` runs. `complete`: that was all.
   *
   * @param {Wanted} wanted @param {'id' | 'changed'} order
   * @param {(run: Run) => boolean} passes
   */
  async #read(wanted, order, most = Infinity, passes = () => true) {
    /** @type {Listed[]} */ const found = [];
    if (Object.values(wanted).some((values) => values?.length === 0)) {
      return { found, complete: true };
    }
    /** @type {string | null} */ let cursor = null;
    do {
      if (found.length >= most) return { found, complete: false };
      const url = new URL('api/runs', this.#base);
      url.search = query(wanted);
      url.searchParams.set('order', order);
      const limit = order === 'id' ? PAGE : Math.min(PAGE, most - found.length);
      url.searchParams.set('limit', String(limit));
      if (cursor !== null) url.searchParams.set('cursor', cursor);
      const page = /** @type {Page} */ (await this.#fetch(url));
      this.#since ??= page.timestamp ?? undefined;
      page.runs.forEach((run, i) => passes(run) && found.push({ run, ...dated(page, i) }));
      cursor = page.next_cursor;
    } while (cursor !== null);
    return { found, complete: true };
  }

  /** @param {URL} url */
  async #fetch(url) {
    const { token, deadline = 10_000 } = this.#options;
    /** @type {HeadersInit} */
    const headers = token ? { Authorization: `Bearer ${await token()}` } : {};
    const signal = AbortSignal.timeout(deadline);
    const answer = await fetch(url, { headers, signal, cache: 'no-store' });
    this.#clock.ask(answer.headers.get('date'));
    if (answer.ok) return answer.json();
    const problem = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, problem.detail ?? answer.statusText);
  }
}

/** @param {Wanted} wanted */
export const query = (wanted) =>
  String(
    new URLSearchParams(
      Object.entries(wanted).flatMap(([name, values]) =>
        (values ?? []).map((value) => [name, value]),
      ),
    ),
  );

/** @param {readonly string[]} statuses @param {Wanted} wanted */
const among = (statuses, { status }) => statuses.filter((each) => !status || status.includes(each));

/** @param {Page} page @param {number} i */
function dated({ changed_at: times = [], exact_after = '', timestamp }, i) {
  const time = times[i];
  if (time === undefined) return { loaded_at: timestamp ?? undefined };
  // Both are written with the same digits, so they compare as texts.
  return time > exact_after ? { changed_at: time } : { loaded_at: time };
}

/**
 * Ids in portions that fit into one request.
 *
 * @param {readonly string[]} ids @param {number} most
 */
function* portions(ids, most) {
  /** @type {string[]} */ let portion = [];
  let size = 0;
  for (const id of ids) {
    const more = encodeURIComponent(id).length + '&run_id='.length;
    if (portion.length === most || (portion.length && size + more > MAX_QUERY)) {
      yield portion;
      [portion, size] = [[], 0];
    }
    portion.push(id);
    size += more;
  }
  if (portion.length) yield portion;
}
