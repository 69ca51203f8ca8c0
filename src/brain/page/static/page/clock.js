// How long runs have taken, and for how long they have not changed, by the database's clock.

/**
 * @typedef {import('../client.js').Freshness} Freshness
 * @typedef {import('../client.js').Runs} Runs
 * @typedef {import('./store.js').Entry} Entry
 * @typedef {{ ms: number, atLeast: boolean }} Span
 */

/** What time it is for one drawing. */
export class Moment {
  /** @param {Runs} runs */
  constructor(runs) {
    this.freshness = runs.freshness;
    const { state, at } = this.freshness;
    this.isCurrent = state === 'live' || state === 'polled';
    this.now = runs.now();
    /** Until when the runs are known: a run may have ended since. */
    this.known = this.isCurrent ? this.now : (at ?? this.now);
  }

  /** @param {Entry} entry @returns {Span | undefined} */
  elapsed({ run, started, completed }) {
    if (started === undefined) return undefined;
    if (run.status === 'completed' || run.status === 'failed') {
      return completed === undefined ? undefined : span(completed - started, false);
    }
    return run.status === 'queued' ? undefined : span(this.known - started, !this.isCurrent);
  }

  /** Since the last change. Exact only if the page has been told of it. @param {Entry} entry */
  idle({ changed, exact }) {
    return span(this.known - changed, !exact || !this.isCurrent);
  }
}

/** Never negative: two clocks differ by a little, and a row may say anything. */
function span(/** @type {number} */ ms, /** @type {boolean} */ atLeast) {
  return { ms: Math.max(0, ms), atLeast };
}
