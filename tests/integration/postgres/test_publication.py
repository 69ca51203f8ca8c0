"""A publication is created once, only where it cannot harm; a reason against it has a hint."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from psycopg import conninfo
from structlog.testing import capture_logs

from brain.postgres.connection import Conn, connect
from brain.postgres.inspection import Inspection, inspect
from brain.postgres.publication import ensure_publication, initialize, removal
from brain.postgres.table import Table
from brain.postgres.timing import TIMING
from brain.postgres.unavailable import StreamUnavailable
from tests.support.following import QUICK, RUNS, Following, connected
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE, TEMPLATE


@asynccontextmanager
async def ordinary(url: str) -> AsyncIterator[Conn]:
    conn = await connect(url, "brain")
    async with conn:
        yield conn


async def ensured(url: str, table: Table = RUNS) -> Inspection:
    async with ordinary(url) as conn:
        return await ensure_publication(conn, table, "brain")


async def refused(url: str) -> StreamUnavailable:
    with pytest.raises(StreamUnavailable) as caught:
        await ensured(url)
    return caught.value


async def init_db(url: str) -> StreamUnavailable | None:
    async with ordinary(url) as conn:
        return await initialize(conn, RUNS, "brain")


def publications(url: str) -> list[tuple[str | None, ...]]:
    return execute(
        url,
        "SELECT p.pubname, t.tablename FROM pg_publication p"
        " LEFT JOIN pg_publication_tables t USING (pubname) ORDER BY 1, 2",
    )


NAME = RUNS.publication


# It is created once.


@pytest.mark.parametrize("before", ["DROP PUBLICATION {}", "ALTER PUBLICATION {} DROP TABLE runs"])
async def test_concurrent_callers_create_it_once(database: str, before: str) -> None:
    execute(database, before.format(NAME))
    made = await asyncio.gather(*(ensured(database) for _ in range(5)))
    assert publications(database) == [(NAME, "runs")]
    assert all(found == made[0] for found in made)
    assert await ensured(database) == made[0]


@pytest.mark.parametrize(
    ("before", "other"),
    [
        ("DROP PUBLICATION {}", "CREATE PUBLICATION {} FOR TABLE runs"),
        ("ALTER PUBLICATION {} DROP TABLE runs", "ALTER PUBLICATION {} ADD TABLE runs"),
    ],
)
async def test_it_waits_for_a_session_that_is_creating_it(
    database: str, before: str, other: str
) -> None:
    """The second caller waits for the first to commit, and then finds that the name is taken."""
    execute(database, before.format(NAME))
    async with connected(database) as conn:
        await conn.execute(other.format(NAME).encode())
        making = asyncio.create_task(ensured(database))
        await asyncio.sleep(0.2)
        assert not making.done()
        await conn.commit()
        assert (await making).publication


async def test_it_is_rolled_back_if_the_table_changes_while_it_waits(database: str) -> None:
    """CREATE PUBLICATION waits for ALTER TABLE, and then the table's UPDATEs would fail."""
    execute(database, f"DROP PUBLICATION {NAME}")
    async with connected(database) as conn:
        await conn.execute("ALTER TABLE runs ADD extra int")
        making = asyncio.create_task(ensured(database))
        await asyncio.sleep(0.2)
        await conn.execute("ALTER TABLE runs DROP CONSTRAINT runs_pkey")
        await conn.commit()
        with pytest.raises(StreamUnavailable, match="no replica identity"):
            await making
    assert publications(database) == []
    execute(database, "INSERT INTO runs (id) VALUES ('a'); UPDATE runs SET status = 'running'")


async def test_a_role_that_may_not_create_it_gets_the_sql(
    postgres: Postgres, database: str
) -> None:
    name = str(conninfo.conninfo_to_dict(database)["dbname"])
    role = f"reader_{name}"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT SELECT ON runs TO {role}",
        f"DROP PUBLICATION {NAME}",
    ):
        execute(postgres.url(name), statement)
    try:
        found = await refused(postgres.url(name, role))
        assert found.detail.startswith(f"the publication {NAME} is missing: permission denied")
        assert publications(database) == []
        execute(database, found.hint)
        await ensured(postgres.url(name, role))
    finally:
        execute(postgres.url(name), f"DROP OWNED BY {role}")
        execute(postgres.url(name), f"DROP ROLE {role}")


async def test_a_publication_of_all_tables_is_used(postgres: Postgres, database: str) -> None:
    name = str(conninfo.conninfo_to_dict(database)["dbname"])
    execute(postgres.url(name), f"DROP PUBLICATION {NAME}")
    execute(postgres.url(name), f"CREATE PUBLICATION {NAME} FOR ALL TABLES")
    assert (await ensured(database)).member


async def test_names_are_quoted(database: str) -> None:
    table = Table("my Schéma", "ru\"n's")
    for statement in (
        'CREATE SCHEMA "my Schéma"',
        'CREATE TABLE "my Schéma"."ru""n\'s" (id text, status text)',
    ):
        execute(database, statement)
    async with ordinary(database) as conn:
        with pytest.raises(StreamUnavailable) as caught:
            await ensure_publication(conn, table, "brain")
        execute(database, caught.value.hint)
        await ensure_publication(conn, table, "brain")
    async with Following(database, table=table) as f:
        await f.source("replication")
        await f.sql('INSERT INTO "my Schéma"."ru""n\'s" VALUES (\'a\', \'running\')')
        await f.pushed("a", "running")
        await f.until(lambda: f.changes() == [("insert", "a")])


# Kinds of tables.


async def test_a_partitioned_table_is_published_as_a_whole(any_database: str) -> None:
    execute(any_database, "DROP TABLE runs")
    execute(any_database, f"DROP PUBLICATION {NAME}")
    execute(
        any_database, "CREATE TABLE runs (id text PRIMARY KEY, status text) PARTITION BY HASH (id)"
    )
    execute(
        any_database, "CREATE TABLE leaf PARTITION OF runs FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
    )
    await ensured(any_database)
    assert publications(any_database) == [(NAME, "runs")]
    for made in ("FOR TABLE runs", "FOR TABLE leaf"):
        execute(any_database, f"DROP PUBLICATION {NAME}")
        execute(any_database, f"CREATE PUBLICATION {NAME} {made}")
        found = await refused(any_database)
        assert (
            found.detail
            == f"the publication {NAME} names partitions in its changes, not public.runs"
        )
        execute(any_database, found.hint.partition(";")[0])
        await ensured(any_database)


async def test_other_tables_of_the_publication_stay_in_it(database: str) -> None:
    execute(database, "DROP TABLE runs")
    execute(database, "CREATE TABLE runs (id text PRIMARY KEY, status text) PARTITION BY HASH (id)")
    execute(database, f"ALTER PUBLICATION {NAME} SET (publish_via_partition_root = true)")
    execute(database, "CREATE TABLE other (id int)")
    execute(database, f"ALTER PUBLICATION {NAME} ADD TABLE other")
    await ensured(database)
    assert publications(database) == [(NAME, "other"), (NAME, "runs")]


async def test_generated_columns_are_streamed_from_postgresql_18(
    any_database: str, any_postgres: Postgres
) -> None:
    execute(any_database, "DROP TABLE runs")
    execute(any_database, f"DROP PUBLICATION {NAME}")
    stored = "agent text GENERATED ALWAYS AS (upper(status)) STORED"
    execute(any_database, f"CREATE TABLE runs (id text PRIMARY KEY, status text, {stored})")
    if any_postgres.version < 18:
        found = await refused(any_database)
        assert "the column agent is generated" in found.detail
        assert publications(any_database) == []
        return
    async with Following(any_database) as f:
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.pushed("a", "running")
        assert f.run("a")[4] == "RUNNING"
        assert f.changes() == [("insert", "a")]


async def test_a_virtual_column_rules_out_a_stream(database: str) -> None:
    execute(database, "ALTER TABLE runs DROP COLUMN agent")
    execute(database, "ALTER TABLE runs ADD agent text GENERATED ALWAYS AS (upper(status)) VIRTUAL")
    found = await refused(database)
    assert found.detail == "the column agent is computed when it is read, and is in no log"
    async with Following(database, "auto") as f:
        await f.source("poll")
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.settled()


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        ("ALTER TABLE runs SET UNLOGGED", "UNLOGGED"),
        ("ALTER TABLE runs REPLICA IDENTITY NOTHING", "replica identity"),
        ("ALTER TABLE runs DROP CONSTRAINT runs_pkey", "replica identity"),
        (
            "ALTER TABLE runs DROP CONSTRAINT runs_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
            "replica identity",
        ),
        (
            "ALTER TABLE runs DROP CONSTRAINT runs_pkey, ADD n int PRIMARY KEY DEFAULT 1",
            "replica identity",
        ),
    ],
)
async def test_it_is_not_created_where_it_would_harm_and_the_hint_works(
    database: str, statement: str, detail: str
) -> None:
    execute(database, f"DROP PUBLICATION {NAME}")
    execute(database, statement)
    found = await refused(database)
    assert detail in found.detail
    assert publications(database) == []
    execute(database, found.hint)
    await ensured(database)


async def test_tables_that_inherit_are_not_published(any_database: str) -> None:
    """PostgreSQL would publish each child as a separate table; without a key its UPDATEs fail."""
    execute(any_database, f"DROP PUBLICATION {NAME}")
    execute(any_database, "CREATE TABLE runs_old () INHERITS (runs)")
    for key in ("", "ALTER TABLE runs_old ADD PRIMARY KEY (id)"):
        execute(any_database, key)
        found = await refused(any_database)
        assert (found.code, "other tables inherit from public.runs" in found.detail) == (
            "inheritance",
            True,
        )
        assert getattr(await init_db(any_database), "code", "") == "inheritance"
        assert publications(any_database) == []
        execute(
            any_database,
            "INSERT INTO runs_old (id) VALUES ('a'); UPDATE runs SET progress = 1;"
            " DELETE FROM runs",
        )
    execute(any_database, f"CREATE PUBLICATION {NAME}")
    assert (await refused(any_database)).code == "inheritance"
    assert getattr(await init_db(any_database), "code", "") == "inheritance"
    assert publications(any_database) == [(NAME, None)]
    execute(any_database, "ALTER TABLE runs_old NO INHERIT runs")
    await ensured(any_database)
    assert publications(any_database) == [(NAME, "runs")]


async def test_a_child_that_is_created_while_it_is_streamed_ends_the_stream(database: str) -> None:
    async with Following(database, "auto") as f:
        await f.source("replication")
        await f.sql(
            "CREATE TABLE runs_old (PRIMARY KEY (id)) INHERITS (runs)",
            "INSERT INTO runs_old VALUES ('a', 'running')",
        )
        await f.pushed("a", "running")
        await f.until(lambda: f.follow.state.code == "inheritance")
        await f.sql("UPDATE runs SET status = 'failed'", "INSERT INTO runs VALUES ('b', 'running')")
        await f.pushed("a", "failed")
        await f.settled()


# Where an existing publication harms.


@pytest.mark.parametrize(("kind", "ends"), [("STORED", "replication"), ("VIRTUAL", "poll")])
async def test_updates_work_again_soon_after_a_generated_column_enters_the_replica_identity(
    database: str, kind: str, ends: str
) -> None:
    """PostgreSQL 18 refuses UPDATEs where a publication lacks a part of the replica identity."""
    execute(database, "ALTER TABLE runs REPLICA IDENTITY FULL")
    async with Following(database, "auto") as f:
        await f.source("replication")
        await f.sql("INSERT INTO runs (id) VALUES ('a')")
        await f.pushed("a", "queued")
        await f.sql(f"ALTER TABLE runs ADD other text GENERATED ALWAYS AS (upper(id)) {kind}")
        await updates_work_again(f)
        await f.sql("UPDATE runs SET status = 'running'")
        await f.pushed("a", "running")
        await f.source(ends)
        await f.until(
            lambda: f.follow.state.code == ("replica_identity" if ends == "poll" else None)
        )


async def test_another_roles_publication_lacks_the_generated_column_until_the_hint_is_followed(
    database: str, superuser_url: str
) -> None:
    execute(superuser_url, f"DROP PUBLICATION {NAME}; CREATE PUBLICATION {NAME} FOR TABLE runs")
    execute(
        database,
        "ALTER TABLE runs ADD other text GENERATED ALWAYS AS (upper(id)) STORED,"
        " REPLICA IDENTITY FULL",
    )
    found = await refused(database)
    assert found.detail.endswith("and makes the application's own UPDATEs fail")
    execute(database, "INSERT INTO runs (id) VALUES ('a')")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        execute(database, "UPDATE runs SET progress = 1")
    execute(superuser_url, found.hint)
    await ensured(database)
    execute(database, "UPDATE runs SET progress = 1")


@pytest.mark.parametrize(
    ("harm", "repair"),
    [
        ("ALTER TABLE runs DROP CONSTRAINT runs_pkey", "ALTER TABLE runs ADD PRIMARY KEY (id)"),
        ("ALTER TABLE runs REPLICA IDENTITY NOTHING", "ALTER TABLE runs REPLICA IDENTITY DEFAULT"),
        (
            (
                "CREATE TABLE a () INHERITS (runs);"
                f" ALTER PUBLICATION {NAME} SET TABLE runs, other;"
                " CREATE TABLE b () INHERITS (runs)"
            ),
            "ALTER TABLE a NO INHERIT runs; ALTER TABLE b NO INHERIT runs",
        ),
    ],
)
async def test_the_table_is_taken_out_and_added_again_after_the_repair(
    any_database: str, harm: str, repair: str
) -> None:
    execute(any_database, "CREATE TABLE other (id text PRIMARY KEY)")
    execute(
        any_database,
        f"INSERT INTO runs (id) VALUES ('a'); ALTER PUBLICATION {NAME} ADD TABLE other",
    )
    for statement in harm.split("; "):
        execute(any_database, statement)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        execute(any_database, "UPDATE runs SET progress = 1")
    with capture_logs() as logs:
        found = await refused(any_database)
        again = await refused(any_database)
    assert [line["event"] for line in logs] == ["taken out of the publication"]
    assert (found.detail, found.hint) == (again.detail, again.hint)
    assert "makes" not in found.detail
    assert "DROP PUBLICATION" not in found.hint
    assert publications(any_database) == [(NAME, "other")]
    execute(any_database, "UPDATE runs SET progress = 1")
    execute(any_database, repair)
    await ensured(any_database)
    assert publications(any_database) == [(NAME, "other"), (NAME, "runs")]


@pytest.mark.parametrize("made", ["FOR TABLE runs", "FOR ALL TABLES"])
@pytest.mark.parametrize(
    ("harm", "repair"),
    [
        ("ALTER TABLE runs DROP CONSTRAINT runs_pkey", ""),
        ("CREATE TABLE a () INHERITS (runs)", "ALTER TABLE a NO INHERIT runs"),
    ],
)
async def test_another_roles_publication_is_left_and_the_hint_drops_it(
    database: str, superuser_url: str, made: str, harm: str, repair: str
) -> None:
    execute(superuser_url, f"DROP PUBLICATION {NAME}")
    execute(database, harm)
    execute(superuser_url, f"CREATE PUBLICATION {NAME} {made}")
    execute(database, "INSERT INTO runs (id) VALUES ('a')")
    with capture_logs() as logs:
        found = await refused(database)
    assert logs == []
    assert (NAME, "runs") in publications(database)
    assert f"the publication {NAME} makes the application's own UPDATEs fail" in found.detail
    stop, _, rest = found.hint.partition(";")
    assert stop == f'DROP PUBLICATION "{NAME}"'
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        execute(
            database,
            f"UPDATE {'a' if repair else 'runs'} SET progress = 1; UPDATE runs SET progress = 1",
        )
    execute(superuser_url, stop)
    execute(database, "UPDATE runs SET progress = 1")
    execute(superuser_url, repair or rest)
    await ensured(database)


async def test_publications_with_other_names_are_left(database: str) -> None:
    execute(database, f"ALTER PUBLICATION {NAME} RENAME TO theirs")
    execute(database, "ALTER TABLE runs DROP CONSTRAINT runs_pkey")
    await refused(database)
    assert publications(database) == [("theirs", "runs")]


async def test_a_key_that_is_dropped_and_added_ends_and_restarts_the_stream(database: str) -> None:
    async with Following(database, "auto") as f:
        await f.source("replication")
        await f.sql(
            "INSERT INTO runs VALUES ('a', 'running')", "ALTER TABLE runs DROP CONSTRAINT runs_pkey"
        )
        await f.until(lambda: f.follow.state.code == "replica_identity")
        await f.sql("UPDATE runs SET status = 'failed'")
        await f.pushed("a", "failed")
        await f.sql("ALTER TABLE runs ADD PRIMARY KEY (id)")
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('b', 'running')")
        await f.until(lambda: ("insert", "b") in f.changes())
        await f.settled()


async def updates_work_again(f: Following) -> None:
    """Without any change in the log that could tell Brain to look."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await f.sql("UPDATE runs SET progress = 1")
        except (
            psycopg.errors.ObjectNotInPrerequisiteState,
            psycopg.errors.InvalidColumnReference,
        ):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        else:
            return


WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'"
    " AND datname = current_database() AND wait_event_type = 'Lock'"
)

SELDOM = replace(QUICK, watch_every=3600, promote_every=3600)


@pytest.mark.parametrize("while_", ["streaming", "polling", "waiting"])
async def test_updates_work_again_soon_after_the_key_is_dropped(
    any_postgres: Postgres, any_database: str, while_: str
) -> None:
    """The fingerprint shows it, long before the next thorough look or try to open a stream."""
    url = any_database
    execute(any_database, "CREATE TABLE other (); INSERT INTO runs (id) VALUES ('a')")
    if while_ == "polling":
        execute(any_postgres.url(), f"ALTER ROLE {ROLE} NOREPLICATION")
    async with connected(any_database) as writer:
        try:
            if while_ == "waiting":
                await writer.execute("INSERT INTO other DEFAULT VALUES")
            async with Following(url, "auto", timing=SELDOM) as f:
                wanted = {"streaming": None, "polling": "role", "waiting": "preparing"}[while_]
                await f.until(lambda: f.board.begun and f.follow.state.code == wanted)
                if while_ == "waiting":
                    await f.until(lambda: bool(execute(any_database, WAITING)))
                elif (
                    while_ == "streaming"
                ):  # until the first look, which is a thorough one, is over
                    progress = f.follow._progress
                    joined = progress.checkpoint
                    await f.until(lambda: progress.checkpoint is not joined)
                await f.sql("ALTER TABLE runs DROP CONSTRAINT runs_pkey")
                await updates_work_again(f)
                assert publications(any_database) == [(NAME, None)]
                await f.until(lambda: f.follow.state.code == "replica_identity")
                await writer.rollback()
        finally:
            execute(any_postgres.url(), f"ALTER ROLE {ROLE} REPLICATION")


async def test_a_brain_that_only_polls_takes_the_table_out_too(any_database: str) -> None:
    """And a lock that others hold does not stop its polls."""
    execute(any_database, "INSERT INTO runs (id) VALUES ('a')")
    async with (
        connected(any_database) as vacuum,
        Following(any_database, "poll", timing=SELDOM) as f,
    ):
        await f.source()
        await f.sql("ALTER TABLE runs DROP CONSTRAINT runs_pkey")
        await vacuum.execute("LOCK runs IN SHARE UPDATE EXCLUSIVE MODE")
        await f.sql("INSERT INTO runs (id) VALUES ('b')")
        await f.pushed("b", "queued")
        await vacuum.rollback()
        await updates_work_again(f)
        assert publications(any_database) == [(NAME, None)]
        assert f.follow.state.connects == 1


def test_a_dropped_key_is_noticed_within_two_seconds() -> None:
    assert TIMING.check_every + TIMING.rejoin_within < 2


@pytest.mark.parametrize("publish", ["insert", "update", "delete", "truncate"])
async def test_the_publication_must_have_every_operation(database: str, publish: str) -> None:
    others = ", ".join(op for op in ("insert", "update", "delete", "truncate") if op != publish)
    execute(database, f"ALTER PUBLICATION {NAME} SET (publish = '{others}')")
    found = await refused(database)
    assert found.detail == f"the publication {NAME} leaves out every {publish}"
    assert found.hint == f'DROP PUBLICATION "{NAME}"; -- Brain creates it again'


async def test_only_columns_of_the_contract_must_be_published(database: str) -> None:
    execute(database, "ALTER TABLE runs ADD secret text")
    columns = "id, status, progress, task_id, agent, started_at, completed_at"
    execute(database, f"ALTER PUBLICATION {NAME} SET TABLE runs ({columns}, error)")
    await ensured(database)
    execute(database, f"ALTER PUBLICATION {NAME} SET TABLE runs ({columns})")
    assert "leaves out columns" in (await refused(database)).detail


async def test_inspections_are_equal_until_something_changes(database: str) -> None:
    async with ordinary(database) as conn:
        before = await inspect(conn, RUNS)
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        assert await inspect(conn, RUNS) == before
        for statement in (
            "ALTER TABLE runs ADD x int",
            "ALTER TABLE runs REPLICA IDENTITY FULL",
            f"DROP PUBLICATION {NAME}",
            "DROP TABLE runs; CREATE TABLE runs (id text PRIMARY KEY, status text)",
        ):
            execute(database, statement)
            after = await inspect(conn, RUNS)
            assert after != before
            before = after


async def test_init_sql_and_ensure_publication_create_the_same(postgres: Postgres) -> None:
    """schema.sql creates the publication of a new table, ensure_publication any other."""
    name = postgres.create_database(TEMPLATE, ROLE)
    url = postgres.url(name, ROLE)
    by_schema = await ensured(url)
    execute(url, f"DROP PUBLICATION {NAME}")
    by_statement = await ensured(url)
    assert by_statement.member == by_schema.member
    assert by_schema.publication is not None
    assert by_statement.publication is not None
    assert by_statement.publication | {"oid": 0} == by_schema.publication | {"oid": 0}
    postgres.drop_database(name)


async def test_a_foreign_partition_rules_out_a_stream(
    any_postgres: Postgres, any_database: str
) -> None:
    """The publication could be created, and the stream would leave out the partition's rows."""
    execute(
        any_database,
        "DROP TABLE runs; CREATE TABLE runs (id text, status text) PARTITION BY LIST (id);"
        " ALTER TABLE runs REPLICA IDENTITY FULL",
    )
    execute(
        any_postgres.url(str(conninfo.conninfo_to_dict(any_database)["dbname"])),
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        " CREATE FOREIGN TABLE part PARTITION OF runs DEFAULT SERVER s",
    )
    found = await refused(any_database)
    assert (found.code, found.hint) == ("view", "")
    assert found.detail == "the partition part is a foreign table, whose changes are in no log"
    assert publications(any_database) == [(NAME, None)]


# Two tables with one usual name, and taking away what Brain has created.

TWINS = (Table("a_b", "c"), Table("a", "b_c"))
SCHEMAS = "CREATE SCHEMA a_b; CREATE SCHEMA a; "
TABLES = " ".join(f"CREATE TABLE {each} (id text PRIMARY KEY, status text);" for each in TWINS)


def listed(url: str) -> dict[str, list[str]]:
    """The tables of each publication of the twins."""
    rows = execute(
        url,
        "SELECT pubname, array_agg(concat(schemaname, '.', tablename) ORDER BY length(schemaname))"
        " FROM pg_publication_tables WHERE pubname <> 'brain_public_runs' GROUP BY 1 ORDER BY 1",
    )
    return dict(rows)


@pytest.mark.parametrize("by_init_db", [True, False])
async def test_two_tables_with_one_usual_name_have_two_publications(
    any_database: str, by_init_db: bool
) -> None:
    execute(any_database, SCHEMAS if by_init_db else SCHEMAS + TABLES)
    usual, other = TWINS[1].publications
    assert usual == TWINS[0].publication == "brain_a_b_c"
    assert other not in (usual, TWINS[0].publications[1])
    async with await connect(any_database, "brain") as conn:
        for table in TWINS if by_init_db else ():
            assert await initialize(conn, table, "brain") is None
    async with contextlib.AsyncExitStack() as stack:
        followings: list[Following] = []
        for table in TWINS:
            f = await stack.enter_async_context(Following(any_database, "auto", table=table))
            await f.source("replication")
            await f.sql(f"INSERT INTO {table} VALUES ('{table.name}', 'queued')")
            await f.pushed(table.name, "queued")
            followings.append(f)
        for f in followings:  # its end waits for every slot of the database
            await f.stop()
    assert listed(any_database) == {usual: ["a_b.c"], other: ["a.b_c"]}
    async with await connect(any_database, "brain") as conn:
        for table, left in zip(TWINS, ({other: ["a.b_c"]}, {}), strict=True):
            (statement,) = await removal(conn, table, drop_table=False)
            await conn.execute(statement)
            assert listed(any_database) == left


async def test_a_publication_that_earlier_versions_gave_to_both_stays_that_of_both(
    any_database: str,
) -> None:
    usual = TWINS[0].publication
    execute(
        any_database,
        f"{SCHEMAS} {TABLES} CREATE PUBLICATION {usual} FOR TABLE a_b.c, a.b_c"
        " WITH (publish_via_partition_root = true)",
    )
    async with await connect(any_database, "brain") as conn:
        for table in TWINS:
            assert (await ensure_publication(conn, table, "brain")).table.publication == usual
        assert listed(any_database) == {usual: ["a.b_c", "a_b.c"]}
        for table, left in zip(TWINS, ({usual: ["a.b_c"]}, {}), strict=True):
            for statement in await removal(conn, table, drop_table=True):
                await conn.execute(statement)
            assert listed(any_database) == left
    assert execute(any_database, "SELECT to_regclass('a.b_c'), to_regclass('a_b.c')") == [
        (None, None)
    ]


async def test_a_removal_touches_no_publication_that_somebody_else_has_made(
    any_database: str,
) -> None:
    execute(any_database, "CREATE PUBLICATION theirs FOR TABLE runs")
    execute(any_database, "ALTER PUBLICATION brain_public_runs RENAME TO renamed")
    execute(any_database, "CREATE TABLE other (id text PRIMARY KEY)")
    execute(any_database, "CREATE PUBLICATION brain_public_runs FOR TABLE other")
    async with await connect(any_database, "brain") as conn:
        assert await removal(conn, RUNS, drop_table=False) == []


async def test_a_removal_leaves_a_publication_of_a_schema_to_whoever_made_it(
    postgres: Postgres,
) -> None:
    """It contains the table, but others too. What somebody added to Brain's stays in it."""
    name = postgres.create_database(TEMPLATE, ROLE)
    superuser = postgres.url(name)
    execute(superuser, "CREATE SCHEMA others; CREATE TABLE others.one (id int PRIMARY KEY)")
    async with await connect(superuser, "brain") as conn:
        await conn.execute("DROP PUBLICATION brain_public_runs")
        await conn.execute("CREATE PUBLICATION brain_public_runs FOR TABLES IN SCHEMA public")
        assert await removal(conn, RUNS, drop_table=False) == []
        await conn.execute("DROP PUBLICATION brain_public_runs")
        await conn.execute(
            "CREATE PUBLICATION brain_public_runs FOR TABLE runs, TABLES IN SCHEMA others"
        )
        (statement,) = await removal(conn, RUNS, drop_table=False)
        await conn.execute(statement)
        left = execute(superuser, "SELECT schemaname, tablename FROM pg_publication_tables")
        assert left == [("others", "one")]
        assert await removal(conn, RUNS, drop_table=False) == []
