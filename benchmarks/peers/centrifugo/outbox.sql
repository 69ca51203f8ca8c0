-- The outbox of Centrifugo's PostgreSQL consumer, as in its documentation ("Async consumers"). A
-- trigger fills it.
CREATE TABLE IF NOT EXISTS centrifugo_outbox (
    id bigserial PRIMARY KEY,
    method text NOT NULL,
    payload jsonb NOT NULL,
    partition bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE OR REPLACE FUNCTION notify_centrifugo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('centrifugo_partition_change', NEW.partition::text);
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER notify_centrifugo AFTER INSERT ON centrifugo_outbox
    FOR EACH ROW EXECUTE FUNCTION notify_centrifugo();
CREATE OR REPLACE FUNCTION notify_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO centrifugo_outbox (method, payload) VALUES ('publish',
        json_build_object('channel', 'runs', 'data',
        json_strip_nulls(json_build_object(
            'type', CASE NEW.status WHEN 'completed' THEN 'run_complete'
                WHEN 'failed' THEN 'run_failed' ELSE 'run_update' END,
            'data', json_build_object(
                'id', NEW.id, 'status', NEW.status, 'progress', NEW.progress,
                'task_id', NEW.task_id, 'agent', NEW.agent,
                'started_at', to_char(
                    NEW.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                'completed_at', to_char(
                    NEW.completed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                'error', NEW.error),
            'timestamp', to_char(
                clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))));
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER notify_run AFTER INSERT OR UPDATE ON runs
    FOR EACH ROW EXECUTE FUNCTION notify_run();
