// Messages of /ws, over every drop. The rules of reconnecting: docs/reference/protocol.md,
// "Coming back".

/**
 * @typedef {import('../client.js').AnyMessage} AnyMessage
 * @typedef {import('../client.js').Handlers} Handlers
 * @typedef {import('../client.js').WatchOptions} WatchOptions
 */

const GAP = 4410; // Brain's memory does not reach back to `since`
const TOKEN = 4401;
const PERMANENT = new Set([1002, 1003, 1007, 1008, 1009, 1010]);

const FIRST_PAUSE = 100; // ms, before the second attempt; doubled for each further one
const LONGEST_PAUSE = 5000;
const STEADY = 5000; // ms that a connection lasts before the pauses begin from the first again
const MAX_REJECTED = 3; // tokens, after one that was valid

/** An answer of HTTP that says no. */
export class Refused extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** Whether the same request would be refused again (protocol.md, "Before the upgrade"). */
  get permanent() {
    return (this.status < 500 && ![408, 425, 429].includes(this.status)) || this.status === 501;
  }
}

/** One watch: at most one connection at a time, and the pause between two. */
class Watch {
  #url;
  #on;
  #options;
  #deadline;
  /** @type {WebSocket | undefined} */ #socket;
  /** @type {ReturnType<typeof setTimeout> | undefined} Ends the connection, or the pause. */
  #timer;
  /** @type {string | undefined} The last timestamp, from which the next connection resumes. */
  #resume;
  #served = false; // a connection has been open: it began with what the URL asks for
  #reset = true; // the present connection resumes nothing
  #rejected = 0; // tokens, one after the other
  #attempt = 0; // numbers the attempts, so that a late answer to an earlier one can be ignored
  #failures = 0;
  #opened = 0; // when the first bytes of the present connection arrived, or 0
  #heard = 0;
  #silence = false; // the timer is the one that waits for silence
  #ended = false;
  #asleep = false;

  /** @param {string | URL} url @param {Handlers} on @param {WatchOptions} options */
  constructor(url, on, options) {
    this.#url = url;
    this.#on = on;
    this.#options = options;
    this.#deadline = options.deadline ?? 40_000;
    this.#listen('addEventListener');
    this.#connect();
  }

  stop = () => {
    this.#finish();
    this.#drop(1000);
  };

  async #connect() {
    const attempt = ++this.#attempt;
    const { begin, token } = this.#options;
    this.#opened = 0;
    let since = this.#resume;
    if (begin && since === undefined) {
      try {
        since = await begin();
      } catch (error) {
        if (attempt === this.#attempt) this.#failed(error);
        return;
      }
      if (attempt !== this.#attempt) return;
    }
    const target = this.#target(since);
    this.#reset = begin ? this.#resume === undefined : !target.searchParams.has('since');
    const socket = new WebSocket(target);
    this.#socket = socket;
    this.#silence = false;
    this.#wait(this.#deadline, () => this.#lost(socket));
    socket.onopen = async () => {
      try {
        if (token) socket.send(await token());
        // The upgrade proves nothing: Brain refuses a `since` or a token after it.
        socket.send('ping');
      } catch {
        this.#lost(socket);
      }
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      this.#hear();
      if (!this.#opened) {
        this.#opened = Date.now();
        this.#served = true;
        this.#rejected = 0;
        this.#on.connected?.(this.#reset);
      }
      if (data !== 'pong') this.#receive(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => this.#lost(socket, code, reason);
    socket.onerror = () => this.#lost(socket);
  }

  /** @param {string | undefined} since */
  #target(since) {
    const target = new URL(this.#url, globalThis.location?.href);
    target.protocol = target.protocol.replace('http', 'ws');
    const query = target.searchParams;
    if (since !== undefined || this.#served) {
      query.delete('since');
      query.delete('snapshot');
      if (since !== undefined) query.set('since', since);
      else query.set('snapshot', 'true');
    }
    return target;
  }

  /** @param {AnyMessage} message */
  #receive(message) {
    switch (message.type) {
      case 'run_deleted':
        this.#on.deleted?.(message);
        break;
      case 'ready':
        this.#on.ready?.(message);
        break;
      case 'source':
        this.#on.source?.(message);
        break;
      default:
        this.#on.message(message);
    }
    // Behind the handler: what it could not take comes again.
    this.#resume = message.timestamp;
  }

  /** One timer for many messages: it looks when the last of them came. */
  #hear() {
    this.#heard = Date.now();
    if (this.#silence) return;
    this.#silence = true;
    this.#await(this.#deadline / 2);
  }

  /** @param {number} ms Until the connection may have been silent for too long. */
  #await(ms) {
    this.#wait(ms, () => {
      const left = this.#heard + this.#deadline / 2 - Date.now();
      // Half of the deadline at most: the clock may have been set back.
      if (left > 0) this.#await(Math.min(left, this.#deadline / 2));
      else this.#ask(this.#deadline / 2);
    });
  }

  /**
   * Whether the connection lives, answered within `patience` ms. A page sees no pings of the
   * protocol: it sends the text `ping`, and Brain answers `pong`.
   *
   * @param {number} patience
   */
  #ask(patience) {
    const socket = this.#socket;
    if (!socket) return;
    this.#silence = false;
    if (socket.readyState === WebSocket.OPEN) socket.send('ping');
    this.#wait(patience, () => this.#lost(socket));
  }

  /** @param {WebSocket} socket */
  #lost(socket, code = 1006, reason = '') {
    if (socket !== this.#socket) return; // an earlier connection, given up already
    this.#drop();
    // Brain has accepted a token before: this one has expired, and the next one may be new.
    const expired =
      code === TOKEN && this.#options.token && this.#served && ++this.#rejected <= MAX_REJECTED;
    const refused = code >= 4400 && code < 4500 && code !== GAP && !expired;
    if (PERMANENT.has(code) || refused) {
      this.#end(code, reason);
      return;
    }
    if (code === GAP) {
      this.#resume = undefined;
      this.#served = true;
      if (!this.#reset) {
        this.#connect();
        return;
      }
    }
    this.#retry();
  }

  /** @param {unknown} error Why `begin` failed. */
  #failed(error) {
    if (error instanceof Refused && error.permanent) this.#end(error.status, error.message);
    else this.#retry();
  }

  #retry() {
    const steady = this.#opened && Date.now() - this.#opened > STEADY;
    this.#failures = steady ? 1 : this.#failures + 1;
    this.#on.away?.();
    const most = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (this.#failures - 1));
    // Random over half of the pause, so that the clients of a restarted server spread.
    if (!this.#asleep) this.#wait(most * (1 + Math.random()) / 2, () => this.#connect());
  }

  /** @param {number} code @param {string} reason */
  #end(code, reason) {
    this.#finish();
    this.#on.ended?.(code, reason);
  }

  #finish() {
    this.#ended = true;
    this.#listen('removeEventListener');
  }

  #drop(code = 1000) {
    this.#attempt++;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.close(code);
  }

  /** @param {number} ms @param {() => void} then */
  #wait(ms, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, ms);
  }

  // The life of a page. None of these events exists in Node.

  /** @param {'addEventListener' | 'removeEventListener'} method */
  #listen(method) {
    const { document } = globalThis;
    if (!document) return;
    globalThis[method]('online', this.#look);
    document[method]('visibilitychange', this.#look);
    globalThis[method]('pagehide', this.#sleep);
    document[method]('freeze', this.#sleep);
    globalThis[method]('pageshow', this.#wake);
    document[method]('resume', this.#wake);
  }

  /** Somebody looks again, or the network is back: do not wait for the next deadline. */
  #look = () => {
    if (this.#ended || this.#asleep || document.visibilityState !== 'visible') return;
    if (this.#socket) {
      if (Date.now() - this.#heard > 1000) this.#ask(Math.min(this.#deadline / 2, 5000));
    } else if (this.#failures > 0) {
      this.#wait(0, () => this.#connect());
    }
  };

  /** The page stops running: an open connection would only fill up, and would seem alive. */
  #sleep = () => {
    if (this.#ended || this.#asleep) return;
    this.#asleep = true;
    this.#drop();
    this.#on.away?.();
  };

  #wake = () => {
    if (this.#ended || !this.#asleep) return;
    this.#asleep = false;
    this.#failures = 0;
    this.#connect();
  };
}

/** @type {typeof import('../client.js').watch} */
export function watch(url, on, options = {}) {
  return new Watch(url, on, options).stop;
}
