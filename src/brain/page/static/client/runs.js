// A store of runs: the list, kept current by a watch, without a gap between the two.

import { DatabaseClock } from './database_clock.js';
import { Evidence } from './freshness.js';
import { List, isFinished, query } from './list.js';
import { watch } from './watch.js';

/**
 * @typedef {import('../client.js').Change} Change
 * @typedef {import('../client.js').Freshness} Freshness
 * @typedef {import('../client.js').LiveRun} LiveRun
 * @typedef {import('../client.js').Run} Run
 * @typedef {import('../client.js').RunsOptions} RunsOptions
 * @typedef {import('../client.js').Runs} RunsType
 * @typedef {import('../client.js').WSMessage} WSMessage
 * @typedef {import('./list.js').Listed} Listed
 */

const BATCH = 16; // ms of changes that subscribers receive together

/** @template T @param {T | readonly T[] | undefined} value @returns {T[] | undefined} */
const list = (value) =>
  value === undefined ? undefined : Array.isArray(value) ? [...value] : [/** @type {T} */ (value)];

/** @implements {RunsType} */
export class Runs {
  #base;
  #options;
  #most;
  /** @type {Record<'run_id' | 'task_id' | 'agent' | 'status', string[] | undefined>} */ #wanted;

  /** @type {Map<string, LiveRun>} */ #runs = new Map();
  /** @type {Set<string>} The ids of the finished ones, in the order in which the store met them. */
  #finished = new Set();
  /** @type {Set<string>} As #finished; when these ended is not known, so they go first. */
  #others = new Set();
  /** @type {readonly LiveRun[] | undefined} */ #all;
  /** @type {Set<(changes: readonly Change[]) => void>} */ #listeners = new Set();
  /** @type {Change[]} Not told yet. */ #changes = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #telling;
  /** @type {ReturnType<typeof setInterval>} */ #ticking;
  /** @type {() => void} */ #unwatch;
  #clock = new DatabaseClock();
  #complete = true;
  #evidence = new Evidence(this.#clock);
  /** @type {import('../client.js').FreshnessState} The last one told. */ #told = 'connecting';

  /** @param {string | URL} [url] @param {RunsOptions} [options] */
  constructor(url = '/', options = {}) {
    this.#base = new URL(url, globalThis.location?.href);
    this.#options = options;
    this.#most = options.finished ?? 10_000;
    this.#wanted = {
      run_id: list(options.run_id),
      task_id: list(options.task_id),
      agent: list(options.agent),
      status: list(options.status),
    };
    this.#unwatch = this.#watch();
    // What is current becomes old by itself.
    this.#ticking = setInterval(() => this.#tick(), 500);
  }

  // What a page asks

  /** @param {string} id */
  get(id) {
    return this.#runs.get(id);
  }

  get all() {
    this.#all ??= [...this.#runs.values()];
    return this.#all;
  }

  get complete() {
    return this.#complete;
  }

  now() {
    return this.#clock.now();
  }

  /** @returns {Freshness} */
  get freshness() {
    return this.#evidence.freshness;
  }

  /** @param {(changes: readonly Change[]) => void} listener */
  subscribe = (listener) => {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  };

  restart() {
    this.#unwatch();
    this.#evidence.leave();
    this.#unwatch = this.#watch();
    this.#tell();
  }

  stop() {
    this.#unwatch();
    clearInterval(this.#ticking);
    clearTimeout(this.#telling);
    this.#listeners.clear();
  }

  // What Brain says

  #watch() {
    const url = new URL('ws', this.#base);
    url.search = query(this.#wanted);
    url.searchParams.set('include', 'deleted,ready,source');
    const evidence = this.#evidence;
    const telling = (/** @type {() => void} */ act) => {
      act();
      this.#tell();
    };
    return watch(
      url,
      {
        message: (message) => this.#receive(message),
        deleted: ({ data }) => this.#put(data.id, undefined),
        connected: () => void (this.#clock.isDoubtful && this.#askTime()),
        ready: () => telling(() => evidence.ready()),
        source: ({ data }) => telling(() => evidence.report(data)),
        away: () => telling(() => evidence.leave()),
        ended: (code, reason) => telling(() => evidence.end(code, reason)),
      },
      {
        deadline: this.#options.deadline ?? 10_000,
        token: this.#options.token,
        begin: () => this.#load(),
      },
    );
  }

  /** @param {WSMessage} message */
  #receive({ data, timestamp }) {
    const run = /** @type {LiveRun} */ (data);
    const held = this.#runs.get(run.id);
    const { isReady } = this.#evidence;
    this.#clock.hear(timestamp, isReady);
    const again = !isReady && held !== undefined && same(held, run);
    if (again && held.changed_at) return;
    run.changed_at = timestamp;
    const news = isReady || (held !== undefined && !again);
    this.#put(run.id, this.#matches(run) ? run : undefined, news);
  }

  /** A filter passes the message by which a run leaves it, too. @param {Run} run */
  #matches(run) {
    const { run_id, task_id, agent, status } = this.#wanted;
    return (
      (!run_id || run_id.includes(run.id)) &&
      (!status || status.includes(run.status)) &&
      (!agent || agent.includes(run.agent ?? '')) &&
      (!task_id || task_id.includes(run.task_id ?? ''))
    );
  }

  /** @param {string} id @param {LiveRun | undefined} run @param {boolean} isOther See #others. */
  #put(id, run, news = this.#evidence.isReady, isOther = false) {
    const previous = this.#runs.get(id);
    if (!run && !previous) return;
    this.#finished.delete(id);
    this.#others.delete(id);
    if (run && isFinished(run)) (isOther ? this.#others : this.#finished).add(id);
    if (run) this.#runs.set(id, run);
    else this.#runs.delete(id);
    this.#note({ id, run, previous, news });
    if (this.#finished.size + this.#others.size > this.#most) {
      const [first] = this.#others.size ? this.#others : this.#finished;
      this.#put(first, undefined, false);
      this.#complete = false;
    }
  }

  // The list

  /** Load all runs, and return the time from which each change has to come. */
  async #load() {
    this.#evidence.leave(); // after a gap there was no outage
    const list = new List(this.#base, this.#options, this.#clock);
    const wanted = this.#wanted;
    const before = this.all.filter((run) => !isFinished(run)).map(({ id }) => id);
    /** @type {Set<string>} */ const met = new Set();
    const take = (/** @type {Listed[]} */ found, areOthers = false) => {
      for (const { run, ...times } of found) {
        met.add(run.id);
        const held = this.#runs.get(run.id);
        if (held !== undefined && same(held, run)) continue;
        const isOther = areOthers && !times.changed_at;
        this.#put(run.id, { ...run, ...times }, held !== undefined, isOther);
      }
    };
    take(await list.active(wanted));
    const missed = before.filter((id) => !met.has(id));
    if (missed.length) take(await list.these(wanted, missed));
    for (const id of missed) if (!met.has(id)) this.#put(id, undefined);
    const { found, complete } = await list.finished(wanted, this.#most);
    // Those that ended last come last, so that they stay the longest.
    take(found.reverse(), true);
    const held = [...this.#finished, ...this.#others];
    if (complete) for (const id of held) if (!met.has(id)) this.#put(id, undefined);
    this.#complete = complete;
    return list.since;
  }

  /** The machine slept: ask somebody what time it is. */
  async #askTime() {
    try {
      const answer = await fetch(new URL('healthz', this.#base), { cache: 'no-store' });
      this.#clock.ask(answer.headers.get('date'));
    } catch {
      // The connection breaks as well, and its successor asks again.
    }
  }

  // What subscribers receive

  /** @param {Change} change */
  #note(change) {
    this.#all = undefined;
    this.#changes.push(change);
    this.#tell();
  }

  #tell() {
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined;
      const changes = this.#changes;
      this.#changes = [];
      this.#told = this.freshness.state;
      for (const listener of [...this.#listeners]) listener(changes);
    }, BATCH);
  }

  #tick() {
    if (this.#evidence.isReady && this.#clock.isDoubtful) this.#askTime();
    if (this.freshness.state !== this.#told) this.#tell();
  }
}

/** @param {Run} one @param {Run} other */
function same(one, other) {
  return (
    one.status === other.status &&
    one.progress === other.progress &&
    one.task_id === other.task_id &&
    one.agent === other.agent &&
    one.started_at === other.started_at &&
    one.completed_at === other.completed_at &&
    one.error === other.error
  );
}
