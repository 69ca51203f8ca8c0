/** The one message that a client of /ws receives. A field that is NULL in the row is left out. */
export interface WSMessage {
  type: 'run_update' | 'run_complete' | 'run_failed';
  data: {
    id: string;
    status: 'queued' | 'running' | 'completed' | 'failed';
    progress?: number;      // 0..100
    task_id?: string;
    agent?: string;
    started_at?: string;    // ISO 8601, UTC, 'Z'
    completed_at?: string;
    error?: string;
  };
  timestamp: string;        // when the change was committed
}
