// How fresh the runs of a store are: what the connection has proved, and how long ago.
//
// The rule is stated in docs/how-to/client.md, "Freshness". brain/client/freshness.py has it for
// Python, and one table of cases holds both: tests/unit/client/freshness.json.

/**
 * @typedef {import('../client.js').Freshness} Freshness
 * @typedef {import('../client.js').Source} Source
 * @typedef {import('./database_clock.js').DatabaseClock} DatabaseClock
 */

// Brain reports its source every 5 s, and at once when the database has been silent for 5 s.
const REPORTED = 8000; // ms since the last report, after which its successor is missing
const SILENT = 5; // s
const PROOF = 10_000; // ms: an older proof that all changes have come is none

export class Evidence {
  #clock;
  #monotonic;
  #isReady = false; // what was missed has come
  #ever = false; // … once
  /** @type {Source | undefined} The last report. */ #source;
  #reported = 0; // when it came
  /** When all runs were surely complete. @type {number | undefined} */ #proof;
  /** Why there is no connection. @type {{ code?: number, reason?: string }} */ #loss = {};
  #ended = false;

  /** @param {DatabaseClock} clock @param {() => number} monotonic In ms. */
  constructor(clock, monotonic = () => performance.now()) {
    this.#clock = clock;
    this.#monotonic = monotonic;
  }

  /** What comes from here on is news. */
  get isReady() {
    return this.#isReady;
  }

  ready() {
    this.#isReady = this.#ever = true;
  }

  /**
   * All changes up to `lag_seconds` ago have come. A change proves nothing: it may be one of many
   * that come late, and the estimate of the database's clock is made of them.
   *
   * @param {Source} source
   */
  report(source) {
    const now = this.#monotonic();
    this.#source = source;
    this.#reported = now;
    if (source.lag_seconds === null) return;
    const proof = now - Math.max(0, source.lag_seconds * 1000);
    this.#proof = Math.max(this.#proof ?? proof, proof);
  }

  /** The connection is lost. @param {string} [reason] */
  leave(reason) {
    this.#isReady = this.#ended = false;
    this.#source = undefined;
    this.#loss = { reason };
  }

  /** Brain refuses. @param {number} code @param {string} reason */
  end(code, reason) {
    this.leave();
    this.#ended = true;
    this.#loss = { code, reason };
  }

  /** @returns {Freshness} */
  get freshness() {
    const now = this.#monotonic();
    const proof = this.#proof;
    const common = {
      at: proof === undefined ? undefined : this.#clock.at(proof),
      age: proof === undefined ? 0 : Math.max(0, now - proof),
    };
    if (this.#ended) return { ...common, ...this.#loss, state: 'ended' };
    if (!this.#isReady || !this.#source) {
      return { ...common, ...this.#loss, state: this.#ever ? 'away' : 'connecting' };
    }
    const { source, code, detail, lag_seconds } = this.#source;
    // The worse of the two hops: from the database to Brain, and from Brain to here.
    const silent = lag_seconds === null || lag_seconds > SILENT || source === 'none';
    const late = now - this.#reported > REPORTED || common.age > PROOF || this.#clock.isDoubtful;
    const state = silent || late ? 'behind' : source === 'poll' ? 'polled' : 'live';
    return { ...common, state, code, reason: detail };
  }
}
