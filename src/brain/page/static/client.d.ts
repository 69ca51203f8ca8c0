/** A run as Brain sends it. A field that is NULL in the row is left out. */
interface RunFields {
  id: string;
  /** Percent, 0 to 100. */
  progress?: number;
  task_id?: string;
  agent?: string;
  /** ISO 8601, UTC, 'Z'. */
  started_at?: string;
  completed_at?: string;
  error?: string;
}

export type Status = 'queued' | 'running' | 'completed' | 'failed';

/** `type` tells the status: after `if (message.type === 'run_failed')` it is `'failed'`. */
export type WSMessage =
  | { type: 'run_update'; data: RunFields & { status: 'queued' | 'running' }; timestamp: string }
  | { type: 'run_complete'; data: RunFields & { status: 'completed' }; timestamp: string }
  | { type: 'run_failed'; data: RunFields & { status: 'failed' }; timestamp: string };

export type Run = WSMessage['data'];

/** What Brain follows the table with, and how far behind the table it may be. */
export interface Source {
  source: 'replication' | 'poll' | 'none';
  code?: string;
  detail?: string;
  /** null until Brain has read the table. */
  lag_seconds: number | null;
}

export interface RunDeleted {
  type: 'run_deleted';
  data: { id: string };
  timestamp: string;
}
export interface Ready {
  type: 'ready';
  timestamp: string;
}
export interface SourceMessage {
  type: 'source';
  data: Source;
  timestamp: string;
}

/** What a connection may receive that asks for it with `include=deleted,ready,source`. */
export type AnyMessage = WSMessage | RunDeleted | Ready | SourceMessage;

// watch

export interface Handlers {
  /** The state of a run: replace what you hold of it. A message may arrive twice. */
  message(message: WSMessage): void;
  /**
   * Once per successful connection. `reset`: discard your local data, because Brain cannot say what
   * changed; the current state follows. Otherwise, what changed while you were away follows.
   */
  connected?(reset: boolean): void;
  /** The connection is lost, or an attempt failed: what you show may be old. */
  away?(): void;
  /** Brain would refuse every further attempt. `code`: a close code, or a status of HTTP. */
  ended?(code: number, reason: string): void;
  /** With `include=deleted`: the run's row is gone. */
  deleted?(message: RunDeleted): void;
  /** With `include=ready`: what `snapshot` or `since` asked for has been sent. */
  ready?(message: Ready): void;
  /** With `include=source`: at once, at each change, and every 5 s. */
  source?(message: SourceMessage): void;
}

export interface WatchOptions {
  /** Milliseconds of silence after which a connection counts as lost; 40 000. */
  deadline?: number;
  /**
   * Called for each connection, which sends what it returns as the first message. The watch ends
   * with 4401 if no token was ever valid, or if four in a row are not.
   */
  token?: () => string | Promise<string>;
  /**
   * Called before the first connection, and after each gap: loads the current state, and returns
   * the `timestamp` to receive changes from. Without it, Brain sends a snapshot after a gap.
   */
  begin?: () => Promise<string>;
}

/** Watch `/ws` over every drop. `url` may be relative. Returns a function that ends the watch. */
export function watch(url: string | URL, on: Handlers, options?: WatchOptions): () => void;

// Runs

/** A run in a store, with what the store knows about its age, by the database's clock. */
export type LiveRun = Run & {
  /** When the run last changed, if Brain knows it. */
  changed_at?: string;
  /** Otherwise: the run has not changed since then. */
  loaded_at?: string;
};

export interface Change {
  id: string;
  /** Absent if the run is gone. */
  run?: LiveRun;
  /** What the store held before. */
  previous?: LiveRun;
  /** The change is news, and not a part of what the store loads or receives again. */
  news: boolean;
}

/**
 * - `connecting`: not all runs have been received yet
 * - `live`: every change committed up to now, but for a few seconds, is there
 * - `polled`: as `live`; Brain polls the database because it cannot stream
 * - `behind`: connected, but Brain has no proof that it has the latest changes
 * - `away`: disconnected, and trying again
 * - `ended`: Brain refuses; 401 and 4401 ask for a token
 */
export type FreshnessState = 'connecting' | 'live' | 'polled' | 'behind' | 'away' | 'ended';

export interface Freshness {
  state: FreshnessState;
  /** Until when the runs are surely complete, in ms since 1970 by the database's clock. */
  at?: number;
  /** Milliseconds since then. */
  age: number;
  /** What the server said about it. */
  code?: number | string;
  reason?: string;
}

export interface RunsOptions {
  /** Only these runs, by at most 96 values in all. Write the values as Brain sends them. */
  run_id?: string | readonly string[];
  task_id?: string | readonly string[];
  agent?: string | readonly string[];
  status?: Status | readonly Status[];
  /** Finished runs to keep at most; 10 000. */
  finished?: number;
  /** Returns a token, if Brain asks for tokens. */
  token?: () => string | Promise<string>;
  /** Milliseconds of silence after which a connection counts as lost; 10 000. */
  deadline?: number;
}

/** All runs of a Brain, kept current: the list, and each change without a gap. */
export class Runs {
  /** `url`: where Brain is, by default the server of the page. Begins at once. */
  constructor(url?: string | URL, options?: RunsOptions);
  get(id: string): LiveRun | undefined;
  /** The runs, in no order. The same array until something changes. */
  readonly all: readonly LiveRun[];
  /** A new object each time: in React, take its `state`. */
  readonly freshness: Freshness;
  /** Every finished run is there; otherwise only the `finished` latest that the store knows. */
  readonly complete: boolean;
  /** Ms since 1970 by the database's clock, to compare with `started_at`. */
  now(): number;
  /**
   * Calls back after changes of runs, several at a time, and of `freshness.state`. Returns a
   * function that ends it. Bound: `useSyncExternalStore(runs.subscribe, () => runs.all)` works.
   */
  subscribe: (listener: (changes: readonly Change[]) => void) => () => void;
  /** Try again at once, also after the end. */
  restart(): void;
  /** Close the connection, and end for good. */
  stop(): void;
}
