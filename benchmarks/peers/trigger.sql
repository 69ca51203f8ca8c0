-- The usual trigger: NOTIFY with each change of a run, as the message of docs/reference/protocol.md.
CREATE OR REPLACE FUNCTION notify_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('runs', json_strip_nulls(json_build_object(
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
            clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))::text);
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER notify_run AFTER INSERT OR UPDATE ON runs
    FOR EACH ROW EXECUTE FUNCTION notify_run();
