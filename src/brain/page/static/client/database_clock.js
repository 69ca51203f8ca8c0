// What time it is in the database, which is what a run's times are compared with.
//
// The rule is stated in docs/how-to/client.md, "The database's clock". brain/client/clock.py has it
// for Python, and one table of cases holds both: tests/unit/client/clock.json.

const SLEPT = 2000; // ms by which the two clocks of the machine differ after it slept or was set
const WINDOW = 60_000; // ms for which the best estimate of the database's clock counts

/** The database's clock, as far as its messages tell. The clock of this machine may be wrong. */
export class DatabaseClock {
  /** By the Date of an answer: ms to add to the monotonic clock. @type {number | undefined} */
  #guess;
  #bound = -Infinity; // by the messages of this window
  #earlier = -Infinity; // by those of the one before
  #begun = -Infinity;
  #tight = false; // a change has been pushed: its message took no time to speak of
  #wall; // how far the two clocks of the machine are apart
  #monotonic;
  #date;

  /** @param {() => number} monotonic @param {() => number} date Both in ms. */
  constructor(monotonic = () => performance.now(), date = () => Date.now()) {
    this.#monotonic = monotonic;
    this.#date = date;
    this.#wall = this.#apart;
  }

  /** @param {string | null} date The Date of an answer: whole seconds. */
  ask(date) {
    const time = date === null ? NaN : Date.parse(date);
    if (Number.isNaN(time)) return;
    if (this.isDoubtful) {
      this.#bound = this.#earlier = this.#begun = -Infinity;
      this.#tight = false;
      this.#wall = this.#apart;
    }
    this.#guess = time + 500 - this.#monotonic();
  }

  /**
   * @param {string} timestamp Of a message: the database's clock is there, or later.
   * @param {boolean} pushed It is about a change that was made just now.
   */
  hear(timestamp, pushed) {
    const now = this.#monotonic();
    if (now - this.#begun > WINDOW) {
      this.#begun = now;
      this.#earlier = this.#bound;
      this.#bound = -Infinity;
    }
    // The message that took the least time says it best.
    this.#bound = Math.max(this.#bound, Date.parse(timestamp) - now);
    this.#tight ||= pushed;
  }

  now() {
    return this.at(this.#monotonic());
  }

  /** @param {number} monotonic A time of this machine's monotonic clock. */
  at(monotonic) {
    const bound = Math.max(this.#bound, this.#earlier);
    if (this.#tight) return monotonic + bound;
    return monotonic + Math.max(bound, this.#guess ?? this.#apart);
  }

  /** Whether the machine slept or its clock was set, so that the estimate may be wrong. */
  get isDoubtful() {
    return Math.abs(this.#apart - this.#wall) > SLEPT;
  }

  get #apart() {
    return this.#date() - this.#monotonic();
  }
}
