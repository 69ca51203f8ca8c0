"""The table: its SQL, what the catalog says about it, and how its rows are read."""

from typing import Any

import psycopg
import pytest

from brain.contract.messages import CUT, FIELDS
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.table import Description, Table, TableError, describe, init_sql
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

RUNS = Table("public", "runs")

# Its SQL

CATALOG = """
SELECT (SELECT array_agg((c.oid, c.relname, c.relkind)::text ORDER BY c.oid)
          FROM pg_class c WHERE c.oid >= 16384),
       (SELECT array_agg((k.conname, pg_get_constraintdef(k.oid))::text ORDER BY k.oid)
          FROM pg_constraint k WHERE k.oid >= 16384),
       (SELECT array_agg(t::text) FROM pg_publication_tables t),
       (SELECT array_agg(oid::text) FROM pg_publication)
"""


def notices(url: str, query: str) -> list[str]:
    said: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        connection.execute(query.encode())
    return said


def published(url: str) -> list[str]:
    return [
        f"{row[0]}: {row[1]}"
        for row in execute(
            url, "SELECT pubname, tablename FROM pg_publication_tables ORDER BY 1, 2"
        )
    ]


def test_the_table_is_created_once(any_database: str) -> None:
    before = execute(any_database, CATALOG)
    assert published(any_database) == ["brain_public_runs: runs"]
    assert notices(any_database, init_sql(RUNS)) == ['"public"."runs" exists, and stays as it is']
    assert execute(any_database, CATALOG) == before

    execute(any_database, "INSERT INTO runs DEFAULT VALUES")
    (row,) = execute(any_database, "SELECT * FROM runs")
    assert len(row[0]) == 36
    assert row[1:] == ("queued", None, None, None, None, None, None)


def test_the_table_refuses_values_that_the_contract_excludes(database: str) -> None:
    for values in (
        "('a', 'paused')",
        "('a', NULL)",
        "('', 'queued')",
        "(NULL, 'queued')",
        "('a', 'queued', 100.1)",
        "('a', 'queued', -1)",
        "('a', 'queued', 'NaN')",
    ):
        with pytest.raises(psycopg.IntegrityError):
            execute(database, f"INSERT INTO runs VALUES {values}")


def test_an_index_finds_unfinished_runs(any_database: str) -> None:
    execute(
        any_database,
        "INSERT INTO runs SELECT i, CASE i % 1000 WHEN 0 THEN 'running' ELSE 'completed' END"
        " FROM generate_series(1, 20000) i; ANALYZE runs",
    )
    plan = execute(any_database, "EXPLAIN SELECT * FROM runs WHERE status IN ('queued', 'running')")
    assert "runs_id_idx" in str(plan)


@pytest.mark.parametrize(
    "table", [Table("My app", "The \"Runs\"; 'x' {y}"), Table("public", "x" * 63), Table("ü", "Ü")]
)
async def test_names_are_quoted_in_the_sql(any_postgres: Postgres, table: Table) -> None:
    name = any_postgres.create_database(owner=ROLE)
    url = any_postgres.url(name, ROLE)
    try:
        execute(url, init_sql(table))
        execute(url, init_sql(table))
        assert published(url) == [f"{table.publication}: {table.name}"]
        conn = await connect(url, "test")
        async with conn:
            assert (await describe(conn, table)).primary_key == ("id",)
            await conn.execute(
                (await describe(conn, table))
                .select("r", 9)
                .as_string()
                .join(["SELECT ", f" FROM {table.sql.as_string()} r"])
                .encode()
            )
    finally:
        any_postgres.drop_database(name)


EXISTING = [
    "CREATE TABLE jobs (id int, status text)",
    "CREATE VIEW jobs AS SELECT 1 AS id, 'x' AS status",
    "CREATE TABLE jobs (id int PRIMARY KEY, status text)",
    "CREATE TABLE jobs (id int PRIMARY KEY, status text); CREATE PUBLICATION brain_odd_jobs",
]
"""Whether such tables are published: tests/integration/doctor/test_publication_rule.py."""


@pytest.mark.parametrize("existing", EXISTING)
def test_a_table_that_exists_and_its_publication_stay_as_they_are(
    any_database: str, existing: str
) -> None:
    execute(any_database, "CREATE SCHEMA odd")
    execute(f"{any_database}?options=-csearch_path%3Dodd", existing)
    before = execute(any_database, CATALOG)
    assert notices(any_database, init_sql(Table("odd", "jobs"))) == [
        '"odd"."jobs" exists, and stays as it is'
    ]
    assert execute(any_database, CATALOG) == before


def test_a_new_table_is_added_to_the_publication_that_lost_the_old_one(any_database: str) -> None:
    execute(any_database, "DROP TABLE runs")
    assert published(any_database) == []
    assert notices(any_database, init_sql(RUNS)) == []
    assert published(any_database) == ["brain_public_runs: runs"]


def test_a_publication_of_all_tables_stays_as_it_is(database: str, superuser_url: str) -> None:
    execute(database, "DROP TABLE runs; DROP PUBLICATION brain_public_runs")
    execute(superuser_url, "CREATE PUBLICATION brain_public_runs FOR ALL TABLES")
    assert notices(database, init_sql(RUNS)) == []
    assert published(database) == ["brain_public_runs: runs"]


def test_a_role_that_may_not_publish_is_told_what_it_lacks(
    database: str, superuser_url: str
) -> None:
    """The table is created all the same."""
    execute(
        superuser_url, "CREATE ROLE init_guest LOGIN; CREATE SCHEMA guest AUTHORIZATION init_guest"
    )
    try:
        (said,) = notices(
            database.replace(f"{ROLE}@", "init_guest@"), init_sql(Table("guest", "jobs"))
        )
        assert "permission denied for database" in said
        assert "with CREATE on the database" in said
        assert execute(superuser_url, "SELECT count(*) FROM guest.jobs") == [(0,)]
    finally:
        execute(superuser_url, "DROP OWNED BY init_guest")
        execute(superuser_url, "DROP ROLE init_guest")


# What the catalog says about it


async def described(url: str, table: str) -> Description:
    conn = await connect(url, "test")
    async with conn:
        return await describe(conn, Table.parse(table))


async def test_brains_own_table_is_described(any_database: str) -> None:
    found = await described(any_database, "runs")
    assert (found.kind, found.logged, found.replica_identity, found.primary_key) == (
        "r",
        True,
        "d",
        ("id",),
    )
    assert tuple(found.columns) == FIELDS
    assert [column.name for column in found.columns.values() if column.default] == ["id", "status"]
    assert found.columns["started_at"].type == '"pg_catalog"."timestamptz"'
    assert not any(column.generated for column in found.columns.values())


async def test_tables_of_any_kind_are_described(any_database: str) -> None:
    execute(
        any_database,
        """
        CREATE SCHEMA "My"; CREATE TYPE "My"."St""ate" AS ENUM ('queued');
        CREATE TABLE "My"."Jobs" (gone int, status "My"."St""ate" DEFAULT 'queued',
                                  id uuid PRIMARY KEY, "order" int,
                                  progress int GENERATED ALWAYS AS (5) STORED);
        ALTER TABLE "My"."Jobs" DROP COLUMN gone;
        CREATE VIEW seen AS SELECT id, status::text FROM "My"."Jobs";
        CREATE UNLOGGED TABLE fast (id bigint GENERATED ALWAYS AS IDENTITY, status text);
        CREATE TABLE parts (id int, status text, day date, PRIMARY KEY (day, id))
            PARTITION BY RANGE (day);
        ALTER TABLE parts REPLICA IDENTITY FULL""",
    )
    jobs = await described(any_database, "My.Jobs")
    assert set(jobs.columns) == {"id", "status", "progress"}
    assert [column.name for column in jobs.others] == ["order"]
    assert jobs.columns["status"].type == '"My"."St""ate"'
    assert jobs.columns["progress"].generated
    assert (await described(any_database, "seen")).kind == "v"
    fast = await described(any_database, "fast")
    assert (fast.logged, fast.primary_key, fast.columns["id"].default) == (False, (), True)
    parts = await described(any_database, "parts")
    assert (parts.kind, parts.replica_identity, set(parts.primary_key)) == ("p", "f", {"id", "day"})


async def test_a_missing_table_or_column_is_an_error(database: str) -> None:
    with pytest.raises(
        TableError, match=r"no table public\.nothing in database 'test_\d+'.*init-db"
    ):
        await described(database, "nothing")
    execute(
        database,
        "CREATE TABLE bare (name text); CREATE TABLE half (id int); CREATE SEQUENCE counter",
    )
    with pytest.raises(TableError, match="no column id and no column status"):
        await described(database, "bare")
    with pytest.raises(TableError, match="no column status"):
        await described(database, "half")
    with pytest.raises(TableError, match="no table"):
        await described(database, "counter")


# Its rows


async def read(url: str, table: str, decoder: Decoder) -> list[Any]:
    """Through the select list of the sources and the API."""
    name = Table.parse(table)
    conn = await connect(url, "test")
    async with conn:
        fields = (await describe(conn, name)).select("r", decoder.max_text).as_string()
        rows = await (
            await conn.execute(
                f"SELECT {fields} FROM {name.sql.as_string()} AS r ORDER BY 1".encode()
            )
        ).fetchall()
    return [decoder(row) for row in rows]


async def test_columns_of_any_type_are_read(any_database: str) -> None:
    execute(
        any_database,
        """
        CREATE TYPE state AS ENUM ('queued', 'running');
        CREATE TABLE jobs (extra jsonb, error json, id bigint, status state,
                           progress numeric(5, 2), task_id uuid, agent char(4),
                           started_at timestamp, completed_at date);
        INSERT INTO jobs VALUES ('{}', '{"a": 1}', 7, 'running', 12.50,
                                 '00000000-0000-0000-0000-00000000000A', 'ab',
                                 '2026-11-21 09:30', '2026-11-22')""",
    )
    assert await read(any_database, "jobs", Decoder({}, 100)) == [
        (
            "7",
            "running",
            12.5,
            "00000000-0000-0000-0000-00000000000a",
            "ab",
            "2026-11-21T09:30:00Z",
            "2026-11-22T00:00:00Z",
            '{"a": 1}',
        )
    ]


async def test_missing_columns_are_null(any_database: str) -> None:
    execute(
        any_database,
        "CREATE TABLE jobs (status bool, id uuid);"
        " INSERT INTO jobs VALUES (true, '00000000-0000-0000-0000-00000000000A')",
    )
    run_id = "00000000-0000-0000-0000-00000000000a"
    assert await read(any_database, "jobs", Decoder({"t": "running"}, 100)) == [
        (run_id, "running", *[None] * 6)
    ]


async def test_a_long_error_is_cut_in_the_query(database: str) -> None:
    execute(
        database,
        "INSERT INTO runs (id, error) VALUES ('a', repeat('🙂', 100)),"
        " ('b', repeat('x', 101)), ('c', repeat('x', 1000000))",
    )
    a, b, c = await read(database, "runs", Decoder({}, 100))
    assert a[7] == "🙂" * 100
    assert b[7] == c[7] == "x" * 100 + CUT


TIMES: list[tuple[str, str | None]] = [
    # What PostgreSQL stores, what a client receives.
    ("2026-11-21 09:30:00+00", "2026-11-21T09:30:00Z"),
    ("2026-11-21 09:30:00.5+00", "2026-11-21T09:30:00.5Z"),
    ("2026-11-21 09:30:00.123456+00", "2026-11-21T09:30:00.123456Z"),
    ("2026-11-21 09:30:00+05:30", "2026-11-21T04:00:00Z"),
    ("0001-01-01 00:00:00+00", "0001-01-01T00:00:00Z"),
    ("9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999Z"),
    ("10000-01-01 00:00:00+00", None),
    ("0044-03-15 12:00:00+00 BC", None),
    ("infinity", None),
    ("-infinity", None),
]


async def test_times_of_postgresql_become_iso_8601_or_none(database: str) -> None:
    for number, (text, _) in enumerate(TIMES):
        execute(database, "INSERT INTO runs (id, started_at) VALUES (%s, %s)", f"{number:02}", text)
    decoder = Decoder({}, 100)
    found = [run[5] for run in await read(database, "runs", decoder)]
    assert found == [expected for _, expected in TIMES]
    assert decoder.corrected == found.count(None)
    assert decoder.rejected == 0
