import type { WSMessage } from './wsmessage';

/** What a client of /ws?include=deleted,ready,source receives. Each word adds one type. */
export type WSIncludeMessage = WSMessage | DeletedMessage | ReadyMessage | SourceMessage;

/** include=deleted: the row was deleted, or has become one that the contract cannot carry. */
export interface DeletedMessage {
  type: 'run_deleted';
  data: { id: string };
  timestamp: string;        // when the change was committed
}

/** include=ready: what `snapshot` or `since` asked for has been sent. Once per connection. */
export interface ReadyMessage {
  type: 'ready';
  timestamp: string;        // that of the last message: `since` takes it
}

/** include=source: at once, at each change, and every 5 s. */
export interface SourceMessage {
  type: 'source';
  data: {
    source: 'replication' | 'poll' | 'none';
    code?: string;          // why it is not 'replication', as a word
    detail?: string;        // the same as a sentence
    lag_seconds: number | null; // how far behind the database Brain may be; null: it has not read the table yet
  };
  timestamp: string;        // that of the last message: `since` takes it
}
