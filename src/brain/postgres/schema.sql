-- The table of runs that Brain follows, and its publication.
-- It can run any number of times: a table that exists stays as it is.
--
-- Brain may have a role of its own. If the publication exists, the role needs no more than this:
--   CREATE ROLE brain LOGIN REPLICATION PASSWORD '...';      to stream; without REPLICATION Brain polls
--   GRANT USAGE ON SCHEMA {schema} TO brain;
--   GRANT SELECT ON {table} TO brain;                      to follow; on the whole table, not on columns
--   GRANT INSERT, UPDATE ON {table} TO brain;              for POST and PATCH /api/runs

DO $brain$
DECLARE
    publication text := {publication_text};
BEGIN
    -- Without the lock, two sessions could both find no table, and both create it.
    PERFORM pg_advisory_xact_lock(hashtext('brain init'));

    IF to_regclass({table_text}) IS NOT NULL THEN
        RAISE NOTICE '% exists, and stays as it is', {table_text};
        RETURN;
    END IF;

    -- CREATE SCHEMA IF NOT EXISTS requires CREATE on the database even if the schema exists.
    IF to_regnamespace({schema_text}) IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;

    CREATE TABLE {table} (
        {id}           text PRIMARY KEY DEFAULT gen_random_uuid()::text CHECK ({id} <> ''),
        {status}       text NOT NULL DEFAULT 'queued'
                     CHECK ({status} IN ('queued', 'running', 'completed', 'failed')),
        {progress}     double precision CHECK ({progress} BETWEEN 0 AND 100),  -- percent; NaN is above 100
        {task_id}      text,
        {agent}        text,
        {started_at}   timestamptz,
        {completed_at} timestamptz,
        {error}        text
    );

    -- Few runs among millions are unfinished: WHERE status IN ('queued', 'running') reads this alone.
    CREATE INDEX ON {table} ({id}) WHERE {status} IN ('queued', 'running');

    -- A table created here is logged and has a primary key, so a publication cannot harm it. Whether
    -- a table that existed may be published needs a look at it: `brain init-db` and `brain serve`
    -- take that look, and this script does not touch its publication.
    BEGIN
        IF EXISTS (SELECT FROM pg_publication_tables
                    WHERE pubname = publication
                      AND (schemaname <> {schema_name} OR tablename <> {table_name})
                      AND concat('brain_', schemaname, '_', tablename)::name = publication) THEN
            -- It is that of another table: the names of a_b.c and a.b_c would be equal.
            publication := {other_publication_text};
        END IF;
        IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = publication) THEN
            EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s'
                           ' WITH (publish_via_partition_root = true)', publication, {table_text});
        ELSIF NOT EXISTS (SELECT FROM pg_publication_tables
                          WHERE pubname = publication
                            AND schemaname = {schema_name} AND tablename = {table_name}) THEN
            -- The table was dropped: the publication has lost it.
            EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s', publication, {table_text});
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE NOTICE 'no publication of %: %; run this as a role with CREATE on the database,'
                ' or Brain polls the table', {table_text}, SQLERRM;
    END;
END
$brain$;
