// What time it is in the database, which is what a run's times are compared with.

const SLEPT = 2000; // ms by which the two clocks of the machine differ after it slept or was set
const WINDOW = 60_000; // ms for which the best estimate of the database's clock counts

/** The database's clock, as far as its messages tell. The clock of this machine may be wrong. */
export class DatabaseClock {
  /** Ms to add to `performance.now()`. @type {number | undefined} */ #offset;
  #best = -Infinity;
  #earlier = -Infinity;
  #begun = 0;
  #wall = Date.now() - performance.now();

  /** @param {string | null} date The Date of an answer: whole seconds. */
  set(date) {
    const time = date === null ? NaN : Date.parse(date);
    if (Number.isNaN(time)) return;
    this.#wall = Date.now() - performance.now();
    this.#offset = time + 500 - performance.now();
    this.#best = this.#earlier = -Infinity;
  }

  /** @param {string} timestamp Of a change that was committed just now: it is never early. */
  hear(timestamp) {
    const now = performance.now();
    const offset = Date.parse(timestamp) - now;
    if (now - this.#begun > WINDOW) {
      this.#begun = now;
      this.#earlier = this.#best;
      this.#best = -Infinity;
    }
    // The message that took the least time says it best.
    this.#best = Math.max(this.#best, offset);
    this.#offset = Math.max(this.#best, this.#earlier);
  }

  now() {
    return performance.now() + (this.#offset ?? Date.now() - performance.now());
  }

  /** Whether the machine slept or its clock was set, so that the estimate may be wrong. */
  get doubtful() {
    return Math.abs(Date.now() - performance.now() - this.#wall) > SLEPT;
  }
}
