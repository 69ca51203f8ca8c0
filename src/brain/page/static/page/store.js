// What the page shows of the runs: in which order, which of them, and how many.
//
// The order is newest start first. A run keeps its place: only runs that come or go move others.

/**
 * @typedef {import('../client.js').Change} Change
 * @typedef {import('../client.js').LiveRun} LiveRun
 * @typedef {import('../client.js').Status} Status
 *
 * @typedef {object} Filter
 * @property {ReadonlySet<Status> | undefined} statuses undefined: no filter
 * @property {string} text
 * @property {boolean} quiet only quiet runs
 *
 * @typedef {object} Entry
 * @property {string} id
 * @property {LiveRun} run
 * @property {number} place ms; larger is newer
 * @property {number} number of its arrival
 * @property {number | undefined} started ms
 * @property {number | undefined} completed ms
 * @property {number} changed ms: when it last changed
 * @property {boolean} exact `changed` is known; otherwise it may be earlier
 * @property {boolean} quiet
 * @property {boolean} shown the filter passes it
 * @property {number} index in the list, or -1
 * @property {string | undefined} words what the search looks at
 */

/** @type {readonly Status[]} */
export const STATUSES = ['queued', 'running', 'completed', 'failed'];

/** @type {Filter} */
export const EVERYTHING = { statuses: undefined, text: '', quiet: false };

export class Store {
  /** @type {Map<string, Entry>} */ #entries = new Map();
  /** @type {Entry[]} Oldest first: what comes is mostly the newest. */ #order = [];
  /** @type {Entry[]} Not in #order yet. */ #arrived = [];
  /** @type {Entry[]} What the filter passes, newest first. */ #list = [];
  #stale = false; // #list is not what it should be
  #gone = false; // #order contains entries that are not there any more
  #arrivals = 0;
  #filter = EVERYTHING;
  /** @type {string[]} */ #searched = [];
  #counts = zero();
  #quiet = 0;
  /** @type {Picture | undefined} What is drawn while paused. */ #paused;
  #waiting = 0;

  /** @param {number} patience Ms without a change after which a running run is quiet. */
  constructor(patience) {
    this.patience = patience;
  }

  // What is drawn

  get list() {
    return this.#paused ? this.#paused.list : this.#current;
  }

  get counts() {
    return this.#paused ? this.#paused.counts : this.#counts;
  }

  get quiet() {
    return this.#paused ? this.#paused.quiet : this.#quiet;
  }

  get total() {
    return STATUSES.reduce((sum, status) => sum + this.counts[status], 0);
  }

  /** @param {string} id */
  get(id) {
    return (this.#paused?.entries ?? this.#entries).get(id);
  }

  /** Where the run is in the list, or -1. @param {string} id */
  indexOf(id) {
    if (!this.#paused) void this.#current;
    return this.get(id)?.index ?? -1;
  }

  get isPaused() {
    return this.#paused !== undefined;
  }

  /** Changes since the display was paused. */
  get waiting() {
    return this.#waiting;
  }

  pause() {
    const entries = new Map(this.#current.map((entry) => [entry.id, { ...entry }]));
    const counts = { ...this.#counts };
    this.#paused = { entries, list: [...entries.values()], counts, quiet: this.#quiet };
    this.#waiting = 0;
  }

  resume() {
    this.#paused = undefined;
  }

  // What changes

  /**
   * Returns whether more has to be drawn again than the rows of these runs.
   *
   * @param {readonly Change[]} changes
   */
  apply(changes) {
    if (this.#paused) this.#waiting += changes.length;
    let counted = false;
    for (const { id, run, previous } of changes) {
      counted ||= run?.status !== previous?.status;
      const entry = this.#entries.get(id);
      if (!run) {
        if (entry) this.#remove(entry);
      } else if (entry) {
        this.#count(entry, -1);
        this.#update(entry, run);
        this.#count(entry, 1);
        this.#judge(entry);
      } else {
        this.#add(run);
      }
    }
    return counted || this.#stale || this.isPaused;
  }

  get filter() {
    return this.#filter;
  }

  /** @param {Filter} filter */
  set filter(filter) {
    this.#filter = filter;
    this.#searched = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const entry of this.#entries.values()) this.#judge(entry);
    if (this.#paused) this.pause();
  }

  /** Time has passed: which runs are quiet? @param {number} now By the database's clock. */
  tick(now) {
    this.#quiet = 0;
    for (const entry of this.#entries.values()) {
      const quiet = entry.run.status === 'running' && now - entry.changed >= this.patience;
      if (quiet) this.#quiet++;
      if (quiet !== entry.quiet) {
        entry.quiet = quiet;
        this.#judge(entry);
      }
    }
  }

  /** @param {LiveRun} run */
  #add(run) {
    /** @type {Entry} */
    const entry = {
      id: run.id,
      run,
      place: 0,
      number: ++this.#arrivals,
      started: undefined,
      completed: undefined,
      changed: 0,
      exact: false,
      quiet: false,
      shown: false,
      index: -1,
      words: undefined,
    };
    this.#update(entry, run);
    // What has not started yet is newer than what has. It keeps that place when it starts.
    const { started, completed, changed } = entry;
    const ended = run.status === 'completed' || run.status === 'failed';
    entry.place = started ?? (ended ? (completed ?? 0) : changed);
    this.#entries.set(run.id, entry);
    this.#count(entry, 1);
    this.#arrived.push(entry);
    entry.shown = this.#passes(entry);
    this.#stale ||= entry.shown;
  }

  /** @param {Entry} entry */
  #remove(entry) {
    this.#entries.delete(entry.id);
    this.#count(entry, -1);
    entry.index = -1;
    this.#gone = this.#stale = true;
  }

  /** @param {Entry} entry @param {LiveRun} run */
  #update(entry, run) {
    const old = entry.run;
    entry.run = run;
    entry.words = undefined;
    if (run === old || run.started_at !== old.started_at) entry.started = time(run.started_at);
    if (run === old || run.completed_at !== old.completed_at) {
      entry.completed = time(run.completed_at);
    }
    const told = time(run.changed_at);
    entry.exact = told !== undefined || entry.completed !== undefined;
    entry.changed = told ?? entry.completed ?? time(run.loaded_at) ?? 0;
    if (run.status !== 'running' || told !== undefined) entry.quiet = false;
  }

  /** @param {Entry} entry @param {1 | -1} by */
  #count(entry, by) {
    this.#counts[entry.run.status] += by;
    if (entry.quiet) this.#quiet += by;
  }

  // Which are shown

  /** @param {Entry} entry */
  #judge(entry) {
    const shown = this.#passes(entry);
    if (shown === entry.shown) return;
    entry.shown = shown;
    this.#stale = true;
  }

  /** @param {Entry} entry */
  #passes(entry) {
    const { statuses, quiet } = this.#filter;
    if (statuses && !statuses.has(entry.run.status)) return false;
    if (quiet && !entry.quiet) return false;
    if (!this.#searched.length) return true;
    const { id, task_id, agent, error } = entry.run;
    const words = (entry.words ??= [id, task_id, agent, error].join('\n').toLowerCase());
    return this.#searched.every((word) => words.includes(word));
  }

  get #current() {
    if (!this.#stale) return this.#list;
    this.#stale = false;
    if (this.#gone) {
      this.#gone = false;
      const is = (/** @type {Entry} */ entry) => this.#entries.get(entry.id) === entry;
      this.#order = this.#order.filter(is);
      this.#arrived = this.#arrived.filter(is);
    }
    if (this.#arrived.length) {
      this.#order = merged(this.#order, this.#arrived.sort(older));
      this.#arrived = [];
    }
    /** @type {Entry[]} */ const list = [];
    for (let i = this.#order.length - 1; i >= 0; i--) {
      const entry = this.#order[i];
      entry.index = entry.shown ? list.push(entry) - 1 : -1;
    }
    this.#list = list;
    return list;
  }
}

/**
 * @typedef {Record<Status, number>} Counts
 * @typedef {{ entries: Map<string, Entry>, list: Entry[], counts: Counts, quiet: number }} Picture
 */

/** @returns {Counts} */
const zero = () => ({ queued: 0, running: 0, completed: 0, failed: 0 });

const time = (/** @type {string | undefined} */ text) =>
  text === undefined ? undefined : Date.parse(text);

/** @param {Entry} one @param {Entry} other */
const older = (one, other) => one.place - other.place || one.number - other.number;

/**
 * Both in order. What comes is mostly newer than all that is there.
 *
 * @param {Entry[]} there @param {Entry[]} more
 */
function merged(there, more) {
  let end = there.length;
  while (end && older(there[end - 1], more[0]) > 0) end--;
  if (end === there.length) {
    there.push(...more);
    return there;
  }
  const tail = [...there.splice(end), ...more].sort(older);
  for (const entry of tail) there.push(entry);
  return there;
}
