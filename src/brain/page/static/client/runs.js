// A store of runs: the list, kept current by a watch, without a gap between the two.

import { DatabaseClock } from './database_clock.js';
import { Refused, watch } from './watch.js';

/**
 * @typedef {import('../client.js').Change} Change
 * @typedef {import('../client.js').Freshness} Freshness
 * @typedef {import('../client.js').LiveRun} LiveRun
 * @typedef {import('../client.js').Run} Run
 * @typedef {import('../client.js').RunsOptions} RunsOptions
 * @typedef {import('../client.js').Runs} RunsType
 * @typedef {import('../client.js').Source} Source
 * @typedef {import('../client.js').WSMessage} WSMessage
 */

const ACTIVE = /** @type {const} */ (['queued', 'running']);
const FINISHED = /** @type {const} */ (['completed', 'failed']);
// Brain reports its source every 5 s, and at once when the database has been silent for 5 s.
const REPORTED = 8000; // ms since the last report, after which its successor is missing
const SILENT = 5; // s
const PROOF = 10_000; // ms: an older proof that all changes have come is none
const PAGE = 1000; // runs
const MAX_VALUES = 100; // of all filters of a request
const MAX_QUERY = 6000; // characters of ids: a URL has at most 8 KiB
const BATCH = 16; // ms of changes that subscribers receive together

/** @param {Run} run */
const finished = ({ status }) => status === 'completed' || status === 'failed';

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
  /** @type {readonly LiveRun[] | undefined} */ #all;
  /** @type {Set<(changes: readonly Change[]) => void>} */ #listeners = new Set();
  /** @type {Change[]} Not told yet. */ #changes = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #telling;
  /** @type {ReturnType<typeof setInterval>} */ #ticking;
  /** @type {() => void} */ #unwatch;
  #clock = new DatabaseClock();
  #complete = true;

  #ready = false; // what `since` asked for has come
  #ever = false; // … once
  /** @type {Source | undefined} The last report. */ #source;
  #reported = 0; // when it came
  /** When all runs were surely complete, by `performance.now()`. @type {number | undefined} */
  #proof;
  /** @type {number | undefined} As #proof, by the database's clock. */ #at;
  /** @type {{ code: number, reason: string } | undefined} */ #end;
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
    const now = performance.now();
    const age = this.#proof === undefined ? 0 : Math.max(0, now - this.#proof);
    const common = { at: this.#at, age };
    if (this.#end) return { ...common, ...this.#end, state: 'ended' };
    if (!this.#ready || !this.#source) {
      return { ...common, state: this.#ever ? 'away' : 'connecting' };
    }
    const { source, code, detail, lag_seconds } = this.#source;
    // The worse of the two hops: from the database to Brain, and from Brain to here.
    const silent = lag_seconds === null || lag_seconds > SILENT || source === 'none';
    const late = now - this.#reported > REPORTED || age > PROOF || this.#clock.doubtful;
    const state = silent || late ? 'behind' : source === 'poll' ? 'polled' : 'live';
    return { ...common, state, code, reason: detail };
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
    this.#end = undefined;
    this.#ready = false;
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
    url.search = this.#query(this.#wanted);
    url.searchParams.set('include', 'deleted,ready,source');
    const leave = () => {
      this.#ready = false;
      this.#source = undefined;
      this.#tell();
    };
    return watch(
      url,
      {
        message: (message) => this.#receive(message),
        deleted: ({ data }) => this.#put(data.id, undefined),
        connected: () => void (this.#clock.doubtful && this.#askTime()),
        ready: () => {
          this.#ready = this.#ever = true;
          this.#tell();
        },
        source: ({ data }) => {
          this.#source = data;
          this.#reported = performance.now();
          if (data.lag_seconds !== null) this.#prove(data.lag_seconds * 1000);
          this.#tell();
        },
        away: leave,
        ended: (code, reason) => {
          leave();
          this.#end = { code, reason };
          this.#tell();
        },
      },
      {
        deadline: this.#options.deadline ?? 10_000,
        token: this.#options.token,
        begin: () => this.#load(),
      },
    );
  }

  /**
   * All changes of up to `lag` ms ago have come. A change proves nothing: it may be one of many
   * that come late, and the estimate of the database's clock is made of them.
   *
   * @param {number} lag
   */
  #prove(lag) {
    const proof = performance.now() - Math.max(0, lag);
    this.#proof = Math.max(this.#proof ?? proof, proof);
    this.#at = Math.max(this.#at ?? 0, this.#clock.now() - (performance.now() - this.#proof));
  }

  /** @param {WSMessage} message */
  #receive({ data, timestamp }) {
    const run = /** @type {LiveRun} */ (data);
    const held = this.#runs.get(run.id);
    const again = !this.#ready && held !== undefined && same(held, run);
    if (again && held.changed_at) return;
    if (this.#ready) this.#clock.hear(timestamp);
    run.changed_at = timestamp;
    const news = this.#ready || (held !== undefined && !again);
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

  /** @param {string} id @param {LiveRun | undefined} run */
  #put(id, run, news = this.#ready) {
    const previous = this.#runs.get(id);
    if (!run && !previous) return;
    if (!run || !finished(run)) this.#finished.delete(id);
    else this.#finished.add(id);
    if (run) this.#runs.set(id, run);
    else this.#runs.delete(id);
    this.#note({ id, run, previous, news });
    if (this.#finished.size > this.#most) {
      const [oldest] = this.#finished;
      if (oldest !== undefined) this.#put(oldest, undefined, false);
      this.#complete = false;
    }
  }

  // The list

  /** Load all runs, and return the time from which each change has to come. */
  async #load() {
    const { status } = this.#wanted;
    const wanted = (/** @type {readonly string[]} */ statuses) =>
      statuses.filter((each) => !status || status.includes(each));
    const before = [...this.#runs.keys()].filter((id) => !finished(this.#get(id)));
    /** @type {Set<string>} */ const met = new Set();
    /** @type {string | undefined} */ let since;
    const take = (/** @type {Page} */ { runs, timestamp }, displacing = false) => {
      since ??= timestamp ?? undefined;
      for (const run of runs) {
        met.add(run.id);
        const held = this.#runs.get(run.id);
        // Pages in the order of ids must not displace what just ended.
        const full = finished(run) && this.#finished.size >= this.#most;
        if (!held && full && !displacing) continue;
        const unchanged = held !== undefined && same(held, run);
        if (!unchanged) this.#put(run.id, { ...run, loaded_at: timestamp ?? undefined }, !!held);
      }
    };
    await this.#pages({ ...this.#wanted, status: wanted(ACTIVE) }, take);
    // Runs that ended while nobody told us are among the finished, of which not all may be loaded.
    const others = Object.values({ ...this.#wanted, run_id: [] }).flatMap((each) => each ?? []);
    const room = Math.max(1, MAX_VALUES - others.length);
    for (const ids of portions(
      before.filter((id) => !met.has(id)),
      room,
    )) {
      await this.#pages({ ...this.#wanted, run_id: ids }, take);
      for (const id of ids) if (!met.has(id)) this.#put(id, undefined);
    }
    this.#complete = await this.#pages(
      { ...this.#wanted, status: wanted(FINISHED) },
      take,
      this.#most,
    );
    if (!this.#complete) {
      const latest = { ...this.#wanted, status: wanted(FINISHED), order: ['changed'] };
      const oldestFirst = (/** @type {Page} */ page) =>
        take({ ...page, runs: page.runs.reverse() }, true);
      await this.#pages(latest, oldestFirst, Math.min(PAGE, this.#most));
    } else {
      for (const id of [...this.#finished]) if (!met.has(id)) this.#put(id, undefined);
    }
    if (since === undefined) throw new Error('Brain has not read the table yet');
    return since;
  }

  #get(/** @type {string} */ id) {
    return /** @type {LiveRun} */ (this.#runs.get(id));
  }

  /**
   * Read pages until there are no more, or `most` runs. Returns whether that was all.
   *
   * @typedef {{ runs: Run[], next_cursor: string | null, timestamp: string | null }} Page
   * @param {Record<string, string[] | undefined>} wanted
   * @param {(page: Page) => void} take
   */
  async #pages(wanted, take, most = Infinity) {
    if (Object.values(wanted).some((values) => values?.length === 0)) return true;
    let left = most;
    /** @type {string | null} */ let cursor = null;
    do {
      if (left <= 0) return false;
      const url = new URL('api/runs', this.#base);
      url.search = this.#query(wanted);
      url.searchParams.set('limit', String(Math.min(PAGE, left)));
      if (cursor !== null) url.searchParams.set('cursor', cursor);
      const page = /** @type {Page} */ (await this.#fetch(url));
      left -= page.runs.length;
      cursor = page.next_cursor;
      take(page);
    } while (cursor !== null);
    return true;
  }

  /** @param {Record<string, string[] | undefined>} wanted */
  #query(wanted) {
    const pairs = Object.entries(wanted).flatMap(([name, values]) =>
      (values ?? []).map((value) => [name, value]),
    );
    return String(new URLSearchParams(pairs));
  }

  /** @param {URL} url @param {RequestInit} [init] */
  async #fetch(url, init = {}) {
    const { token } = this.#options;
    /** @type {HeadersInit} */
    const headers = token ? { Authorization: `Bearer ${await token()}` } : {};
    const signal = AbortSignal.timeout(this.#options.deadline ?? 10_000);
    const answer = await fetch(url, { headers, signal, cache: 'no-store', ...init });
    this.#clock.set(answer.headers.get('date'));
    if (answer.ok) return answer.json();
    const problem = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, problem.detail ?? answer.statusText);
  }

  /** The machine slept: ask somebody what time it is. */
  async #askTime() {
    try {
      const answer = await fetch(new URL('healthz', this.#base), { cache: 'no-store' });
      this.#clock.set(answer.headers.get('date'));
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
    if (this.#ready && this.#clock.doubtful) this.#askTime();
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

/** Ids in portions that fit into one request. @param {string[]} ids @param {number} most */
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
