"""A publication is made where it cannot hurt, once, and what stands in the way is said with its cure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import conninfo
from structlog.testing import capture_logs

from brain.postgres.connection import Conn, connect
from brain.postgres.publication import (
    _REFUSALS,
    Inspection,
    SlotBlocked,
    StreamUnavailable,
    ensure_publication,
    from_error,
    inspect,
)
from brain.postgres.table import Table, init_sql
from tests.support.following import RUNS, Following, connected
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


def publications(url: str) -> list[tuple[str | None, ...]]:
    query = "SELECT p.pubname, t.tablename FROM pg_publication p LEFT JOIN pg_publication_tables t USING (pubname) ORDER BY 1, 2"
    return execute(url, query)


NAME = RUNS.publication


# Made, once.


@pytest.mark.parametrize("before", ["DROP PUBLICATION {}", "ALTER PUBLICATION {} DROP TABLE runs"])
async def test_it_is_made_once_by_many_at_once(database: str, before: str) -> None:
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
async def test_another_is_as_quick(database: str, before: str, other: str) -> None:
    """It has made it, and not committed yet: whoever comes second waits, and is told that the name is taken."""
    execute(database, before.format(NAME))
    async with connected(database) as conn:
        await conn.execute(other.format(NAME).encode())
        making = asyncio.create_task(ensured(database))
        await asyncio.sleep(0.2)
        assert not making.done()
        await conn.commit()
        assert (await making).publication


async def test_the_table_becomes_another_while_it_is_being_made(database: str) -> None:
    """Making it waits for who is changing the table, and finds one whose UPDATEs it would make fail."""
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


async def test_who_may_not_make_it_is_told_what_to_run(postgres: Postgres, database: str) -> None:
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


async def test_a_publication_of_all_tables_will_do(postgres: Postgres, database: str) -> None:
    name = str(conninfo.conninfo_to_dict(database)["dbname"])
    execute(postgres.url(name), f"DROP PUBLICATION {NAME}")
    execute(postgres.url(name), f"CREATE PUBLICATION {NAME} FOR ALL TABLES")
    assert (await ensured(database)).member


async def test_names_that_must_be_quoted(database: str) -> None:
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


# What the table is.


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
        assert found.detail == f"the publication {NAME} tells of partitions, not of public.runs"
        execute(any_database, found.hint.partition(";")[0])
        await ensured(any_database)


async def test_a_partition_by_another_name_is_not_the_table(database: str) -> None:
    execute(database, "DROP TABLE runs")
    execute(database, "CREATE TABLE runs (id text PRIMARY KEY, status text) PARTITION BY HASH (id)")
    execute(database, f"ALTER PUBLICATION {NAME} SET (publish_via_partition_root = true)")
    execute(database, "CREATE TABLE other (id int)")
    execute(database, f"ALTER PUBLICATION {NAME} ADD TABLE other")
    await ensured(database)
    assert publications(database) == [(NAME, "other"), (NAME, "runs")]


async def test_generated_columns(any_database: str, any_postgres: Postgres) -> None:
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


async def test_columns_that_are_computed_when_they_are_read(database: str) -> None:
    execute(database, "ALTER TABLE runs DROP COLUMN agent")
    execute(database, "ALTER TABLE runs ADD agent text GENERATED ALWAYS AS (upper(status)) VIRTUAL")
    found = await refused(database)
    assert found.detail == "the column agent is computed when it is read, and stands in no log"
    async with Following(database, "auto") as f:
        await f.source("poll")
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.settled()


@pytest.mark.parametrize(
    ("statement", "reason"),
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
async def test_where_it_would_hurt_it_is_not_made_and_the_cure_works(
    database: str, statement: str, reason: str
) -> None:
    execute(database, f"DROP PUBLICATION {NAME}")
    execute(database, statement)
    found = await refused(database)
    assert reason in found.detail
    assert publications(database) == []
    execute(database, found.hint)
    await ensured(database)


async def test_tables_that_inherit_are_not_published(any_database: str) -> None:
    """They would be published as tables of their own, and without a key their UPDATEs would fail, the parent's rows' too."""
    execute(any_database, f"DROP PUBLICATION {NAME}")
    execute(any_database, "CREATE TABLE runs_old () INHERITS (runs)")
    for key in ("", "ALTER TABLE runs_old ADD PRIMARY KEY (id)"):
        execute(any_database, key)
        found = await refused(any_database)
        assert (found.code, "other tables inherit from public.runs" in found.detail) == (
            "inheritance",
            True,
        )
        execute(any_database, init_sql(RUNS))
        assert publications(any_database) == []
        execute(
            any_database,
            "INSERT INTO runs_old (id) VALUES ('a'); UPDATE runs SET progress = 1; DELETE FROM runs",
        )
    execute(any_database, f"CREATE PUBLICATION {NAME}")
    assert (await refused(any_database)).code == "inheritance"
    execute(any_database, init_sql(RUNS))
    assert publications(any_database) == [(NAME, None)]
    execute(any_database, "ALTER TABLE runs_old NO INHERIT runs")
    await ensured(any_database)
    assert publications(any_database) == [(NAME, "runs")]


async def test_a_child_that_is_made_while_it_is_streamed(database: str) -> None:
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


# Where it has come to hurt.


@pytest.mark.parametrize(
    ("harm", "mend"),
    [
        ("ALTER TABLE runs DROP CONSTRAINT runs_pkey", "ALTER TABLE runs ADD PRIMARY KEY (id)"),
        ("ALTER TABLE runs REPLICA IDENTITY NOTHING", "ALTER TABLE runs REPLICA IDENTITY DEFAULT"),
        (
            f"CREATE TABLE a () INHERITS (runs); ALTER PUBLICATION {NAME} SET TABLE runs, other; CREATE TABLE b () INHERITS (runs)",
            "ALTER TABLE a NO INHERIT runs; ALTER TABLE b NO INHERIT runs",
        ),
    ],
)
async def test_the_table_is_taken_out_of_it_and_put_back(
    any_database: str, harm: str, mend: str
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
    execute(any_database, mend)
    await ensured(any_database)
    assert publications(any_database) == [(NAME, "other"), (NAME, "runs")]


@pytest.mark.parametrize("made", ["FOR TABLE runs", "FOR ALL TABLES"])
@pytest.mark.parametrize(
    ("harm", "mend"),
    [
        ("ALTER TABLE runs DROP CONSTRAINT runs_pkey", ""),
        ("CREATE TABLE a () INHERITS (runs)", "ALTER TABLE a NO INHERIT runs"),
    ],
)
async def test_a_publication_that_is_not_ours_is_left_and_its_end_is_the_cure(
    database: str, superuser_url: str, made: str, harm: str, mend: str
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
            f"UPDATE {'a' if mend else 'runs'} SET progress = 1; UPDATE runs SET progress = 1",
        )
    execute(superuser_url, stop)
    execute(database, "UPDATE runs SET progress = 1")
    execute(superuser_url, mend or rest)
    await ensured(database)


async def test_publications_by_other_names_are_left(database: str) -> None:
    execute(database, f"ALTER PUBLICATION {NAME} RENAME TO theirs")
    execute(database, "ALTER TABLE runs DROP CONSTRAINT runs_pkey")
    await refused(database)
    assert publications(database) == [("theirs", "runs")]


async def test_a_key_that_goes_and_comes_back_while_it_is_streamed(database: str) -> None:
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


@pytest.mark.parametrize("publish", ["insert", "update", "delete", "truncate"])
async def test_each_operation_is_needed(database: str, publish: str) -> None:
    others = ", ".join(op for op in ("insert", "update", "delete", "truncate") if op != publish)
    execute(database, f"ALTER PUBLICATION {NAME} SET (publish = '{others}')")
    found = await refused(database)
    assert found.detail == f"the publication {NAME} leaves out every {publish}"
    assert found.hint == f'DROP PUBLICATION "{NAME}"; -- Brain makes it anew'


async def test_columns_that_are_not_the_contracts_may_be_left_out(database: str) -> None:
    execute(database, "ALTER TABLE runs ADD secret text")
    columns = "id, status, progress, task_id, agent, started_at, completed_at"
    execute(database, f"ALTER PUBLICATION {NAME} SET TABLE runs ({columns}, error)")
    await ensured(database)
    execute(database, f"ALTER PUBLICATION {NAME} SET TABLE runs ({columns})")
    assert "leaves out columns" in (await refused(database)).detail


async def test_facts_are_equal_until_something_changes(database: str) -> None:
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


# What the server says.


@pytest.mark.parametrize("code", _REFUSALS)
def test_every_refusal_has_a_reason_and_a_cure(code: str) -> None:
    found = from_error(psycopg.errors.lookup(code)("ERROR: what it said\nand more"), "the role")
    assert found.detail.endswith(f": what it said ({code})")
    assert bool(found.hint) == (code != "0A000")
    assert "{user}" not in found.hint
    assert str(found) == found.detail


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FATAL:  permission denied to start WAL sender", "may not replicate"),
        ("FATAL:  must be superuser or replication role to start walsender", "may not replicate"),
        ("FATAL:  keine Berechtigung, um WAL-Sender zu starten", "may not replicate"),
        (
            'FATAL:  number of requested standby connections exceeds "max_wal_senders" (currently 1)',
            "no connection",
        ),
        ('FATAL:  no pg_hba.conf entry for replication connection from host "::1"', "pg_hba.conf"),
        ("FATAL:  unsupported startup parameter: replication", "a pooler"),
        ("could not receive data from server", "replication was refused"),
    ],
)
def test_an_error_without_a_code_is_known_by_its_words(text: str, reason: str) -> None:
    assert reason in from_error(psycopg.OperationalError(text), "u").detail


def test_a_slot_that_waits_is_told_apart() -> None:
    assert isinstance(from_error(psycopg.errors.LockNotAvailable("x"), "u"), SlotBlocked)


async def test_the_template_is_as_brain_would_make_it(postgres: Postgres) -> None:
    """schema.sql makes the publication too: both must agree."""
    name = postgres.create_database(TEMPLATE, ROLE)
    url = postgres.url(name, ROLE)
    by_schema = (await ensured(url)).member
    execute(url, f"DROP PUBLICATION {NAME}")
    assert (await ensured(url)).member == by_schema
    postgres.drop_database(name)
