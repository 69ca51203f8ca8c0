-- The table of runs that Brain follows, and the publication that lets it stream the changes.
-- Run it as often as you like: what is there stays as it is.
--
-- Brain may have a role of its own. With the publication that is made here, this is all that it needs:
--   CREATE ROLE brain LOGIN REPLICATION PASSWORD '…';      to stream; without REPLICATION it polls
--   GRANT USAGE ON SCHEMA {schema} TO brain;
--   GRANT SELECT ON {table} TO brain;                      to follow; on the whole table, not on columns
--   GRANT INSERT, UPDATE ON {table} TO brain;              for POST and PATCH /api/runs

DO $brain$
BEGIN
    -- Two who run this at once would both find nothing, and both make it.
    PERFORM pg_advisory_xact_lock(hashtext('brain init'));

    IF to_regclass({table_text}) IS NOT NULL THEN
        RAISE NOTICE '% is there already, and stays as it is', {table_text};
        RETURN;
    END IF;

    -- CREATE SCHEMA IF NOT EXISTS would ask for the right to make one even if it is there.
    IF to_regnamespace({schema_text}) IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;

    CREATE TABLE {table} (
        id           text PRIMARY KEY DEFAULT gen_random_uuid()::text CHECK (id <> ''),
        status       text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'completed', 'failed')),
        progress     double precision CHECK (progress BETWEEN 0 AND 100),  -- percent; NaN is above 100
        task_id      text,
        agent        text,
        started_at   timestamptz,
        completed_at timestamptz,
        error        text
    );

    -- What is under way, out of millions that are not: WHERE status IN ('queued', 'running') reads this alone.
    CREATE INDEX ON {table} (id) WHERE status IN ('queued', 'running');
END
$brain$;

DO $brain$
DECLARE
    target regclass := to_regclass({table_text});
    cannot text;
BEGIN
    -- A table that is published and whose rows cannot be told apart refuses its own application's UPDATEs (55000).
    -- A partitioned table's rows live in its partitions, each with a replica identity of its own.
    SELECT CASE
        WHEN c.relkind NOT IN ('r', 'p') THEN 'only a table can be published'
        WHEN c.relpersistence <> 'p' THEN 'an unlogged or temporary table cannot be published'
        WHEN c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
            THEN 'tables that inherit from it would be published with it, keys or not'
        WHEN EXISTS (
            SELECT FROM pg_class leaf
            WHERE leaf.relkind <> 'p' AND (leaf.oid = c.oid OR leaf.oid IN (SELECT relid FROM pg_partition_tree(c.oid)))
              AND leaf.relreplident <> 'f'
              AND NOT EXISTS (
                  SELECT FROM pg_index i
                  WHERE i.indrelid = leaf.oid AND i.indisvalid AND i.indimmediate
                    AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))
            THEN 'without a primary key a publication would make its UPDATEs fail'
        END INTO cannot
    FROM pg_class c WHERE c.oid = target;

    IF cannot IS NOT NULL THEN
        RAISE NOTICE 'no publication of %: %; Brain polls it instead', target, cannot;
    ELSIF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {publication_text}) THEN
        CREATE PUBLICATION {publication} FOR TABLE {table} WITH (publish_via_partition_root = true);
    ELSIF NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                      WHERE p.pubname = {publication_text} AND r.prrelid = target) THEN
        -- The table was dropped and made again: the publication has lost it.
        ALTER PUBLICATION {publication} ADD TABLE {table};
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no publication of %: %; run this as its owner, with CREATE on the database, or Brain polls it', target, SQLERRM;
END
$brain$;
