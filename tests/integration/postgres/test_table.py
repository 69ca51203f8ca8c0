"""The table: its name, its SQL, what the catalog says of it, and how its rows are read."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from brain.contract.messages import FIELDS, STATUSES, TRANSITIONS, UNCHANGED, RunData, Status, body
from brain.postgres.connection import connect
from brain.postgres.decoder import CUT, Decoder
from brain.postgres.table import Description, Table, TableError, describe, init_sql
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

RUNS = Table("public", "runs")

# Its name


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("runs", RUNS),
        ("public.runs", RUNS),
        ("My app.Runs", Table("My app", "Runs")),
        ('a".b;', Table('a"', "b;")),
    ],
)
def test_names(text: str, table: Table) -> None:
    assert Table.parse(text) == table
    assert Table.parse(str(table)) == table


@pytest.mark.parametrize("text", ["", ".", ".runs", "public.", "db.public.runs"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema\.name"):
        Table.parse(text)


def test_a_publication_name_fits() -> None:
    assert RUNS.publication == "brain_public_runs"
    long = Table("ü" * 30, "runs").publication
    assert len(long.encode()) <= 63
    assert long == "brain_" + "ü" * 28


# Its SQL

CATALOG = """
SELECT (SELECT array_agg((c.oid, c.relname, c.relkind)::text ORDER BY c.oid) FROM pg_class c WHERE c.oid >= 16384),
       (SELECT array_agg((k.conname, pg_get_constraintdef(k.oid))::text ORDER BY k.oid) FROM pg_constraint k WHERE k.oid >= 16384),
       (SELECT array_agg(t::text) FROM pg_publication_tables t), (SELECT array_agg(oid::text) FROM pg_publication)
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


def test_the_table_is_made_once(any_database: str) -> None:
    before = execute(any_database, CATALOG)
    assert published(any_database) == ["brain_public_runs: runs"]
    assert notices(any_database, init_sql(RUNS)) == ['"public"."runs" exists, and stays as it is']
    assert execute(any_database, CATALOG) == before

    execute(any_database, "INSERT INTO runs DEFAULT VALUES")
    (row,) = execute(any_database, "SELECT * FROM runs")
    assert len(row[0]) == 36
    assert row[1:] == ("queued", None, None, None, None, None, None)


def test_the_table_refuses_what_the_contract_does(database: str) -> None:
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


def test_active_runs_are_found_by_an_index(any_database: str) -> None:
    execute(
        any_database,
        "INSERT INTO runs SELECT i, CASE i % 1000 WHEN 0 THEN 'running' ELSE 'completed' END FROM generate_series(1, 20000) i; ANALYZE runs",
    )
    plan = execute(any_database, "EXPLAIN SELECT * FROM runs WHERE status IN ('queued', 'running')")
    assert "runs_id_idx" in str(plan)


@pytest.mark.parametrize(
    "table", [Table("My app", "The \"Runs\"; 'x' {y}"), Table("public", "x" * 63), Table("ü", "Ü")]
)
async def test_odd_names(any_postgres: Postgres, table: Table) -> None:
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


def test_a_publication_that_has_lost_the_table_is_given_it_back(any_database: str) -> None:
    execute(any_database, "DROP TABLE runs")
    assert published(any_database) == []
    assert notices(any_database, init_sql(RUNS)) == []
    assert published(any_database) == ["brain_public_runs: runs"]


def test_a_publication_of_all_tables_stays(database: str, superuser_url: str) -> None:
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


# What the catalog says of it


async def described(url: str, table: str) -> Description:
    conn = await connect(url, "test")
    async with conn:
        return await describe(conn, Table.parse(table))


async def test_the_table_of_our_own(any_database: str) -> None:
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


async def test_tables_of_other_people(any_database: str) -> None:
    execute(
        any_database,
        """
        CREATE SCHEMA "My"; CREATE TYPE "My"."St""ate" AS ENUM ('queued');
        CREATE TABLE "My"."Jobs" (gone int, status "My"."St""ate" DEFAULT 'queued', id uuid PRIMARY KEY,
                                  progress int GENERATED ALWAYS AS (5) STORED, "order" int);
        ALTER TABLE "My"."Jobs" DROP COLUMN gone;
        CREATE VIEW seen AS SELECT id, status::text FROM "My"."Jobs";
        CREATE UNLOGGED TABLE fast (id bigint GENERATED ALWAYS AS IDENTITY, status text);
        CREATE TABLE parts (id int, status text, day date, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
        ALTER TABLE parts REPLICA IDENTITY FULL""",
    )
    jobs = await described(any_database, "My.Jobs")
    assert set(jobs.columns) == {"id", "status", "progress", "order"}
    assert jobs.columns["status"].type == '"My"."St""ate"'
    assert jobs.columns["progress"].generated
    assert (await described(any_database, "seen")).kind == "v"
    fast = await described(any_database, "fast")
    assert (fast.logged, fast.primary_key, fast.columns["id"].default) == (False, (), True)
    parts = await described(any_database, "parts")
    assert (parts.kind, parts.replica_identity, set(parts.primary_key)) == ("p", "f", {"id", "day"})


async def test_what_is_no_table_of_runs(database: str) -> None:
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
        CREATE TABLE jobs (extra jsonb, error json, id bigint, status state, progress numeric(5, 2), task_id uuid, agent char(4),
                           started_at timestamp, completed_at date);
        INSERT INTO jobs VALUES ('{}', '{"a": 1}', 7, 'running', 12.50, '00000000-0000-0000-0000-00000000000A', 'ab',
                                 '2026-11-21 09:30', '2026-11-22')""",
    )
    assert await read(any_database, "jobs", Decoder({}, 100)) == [
        (
            "7",
            "running",
            12.5,
            "00000000-0000-0000-0000-00000000000a",
            "ab  ",
            "2026-11-21T09:30:00Z",
            "2026-11-22T00:00:00Z",
            '{"a": 1}',
        )
    ]


async def test_columns_that_are_missing_are_null(any_database: str) -> None:
    execute(
        any_database,
        "CREATE TABLE jobs (status bool, id uuid); INSERT INTO jobs VALUES (true, '00000000-0000-0000-0000-00000000000A')",
    )
    run_id = "00000000-0000-0000-0000-00000000000a"
    assert await read(any_database, "jobs", Decoder({"t": "running"}, 100)) == [
        (run_id, "running", *[None] * 6)
    ]


async def test_a_long_error_is_cut_on_the_way(database: str) -> None:
    execute(
        database,
        "INSERT INTO runs (id, error) VALUES ('a', repeat('🙂', 100)), ('b', repeat('x', 101)), ('c', repeat('x', 1000000))",
    )
    a, b, c = await read(database, "runs", Decoder({}, 100))
    assert a[7] == "🙂" * 100
    assert b[7] == c[7] == "x" * 100 + CUT


TIMES: list[tuple[str, str | None]] = [
    # What PostgreSQL has, what a client sees.
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


async def test_times(database: str) -> None:
    for number, (text, _) in enumerate(TIMES):
        execute(database, "INSERT INTO runs (id, started_at) VALUES (%s, %s)", f"{number:02}", text)
    decoder = Decoder({}, 100)
    found = [run[5] for run in await read(database, "runs", decoder)]
    assert found == [expected for _, expected in TIMES]
    assert decoder.corrected == found.count(None)
    assert decoder.rejected == 0


def decoded(decoder: Decoder, **fields: str | None) -> Any:
    return decoder([{"id": "a", "status": "queued", **fields}.get(name) for name in FIELDS])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21 09:30:00", "2026-11-21T09:30:00Z"),
        ("2026-11-21T09:30:00.25", "2026-11-21T09:30:00.250000Z"),
        ("2026-11-21 09:30:00-03", "2026-11-21T12:30:00Z"),
        ("2026-W47-6 09:30:00+00", "2026-11-21T09:30:00Z"),
        ("2026-11-21", "2026-11-21T00:00:00Z"),
        ("yesterday", None),
        ("", None),
        ("0001-01-01 00:00:00+14", None),
        ("9999-12-31 23:59:59-01", None),
        ("4714-11-24 BC", None),
        ("junkjunkju junkjunk+00", None),
        ("2026-13-41 99:99:99+00", None),
    ],
)
def test_times_as_other_columns_print_them(text: str, expected: str | None) -> None:
    decoder = Decoder({}, 100)
    assert decoded(decoder, completed_at=text)[6] == expected
    assert decoder.corrected == (expected is None)


@pytest.mark.parametrize(
    ("text", "expected", "corrected"),
    [
        ("0", 0, 0),
        ("-0", 0, 0),
        ("100", 100, 0),
        ("30.0", 30, 0),
        ("33.3", 33.3, 0),
        ("3e-07", 3e-07, 0),
        ("12.50", 12.5, 0),
        ("-0.1", 0, 1),
        ("100.5", 100, 1),
        ("1e999", 100, 1),
        ("Infinity", 100, 1),
        ("-Infinity", 0, 1),
        ("NaN", None, 1),
        ("half", None, 1),
        ("", None, 1),
    ],
)
def test_progress(text: str, expected: float | None, corrected: int) -> None:
    decoder = Decoder({}, 100)
    run = decoded(decoder, progress=text)
    assert run[2] == expected
    assert type(run[2]) is type(expected)
    assert decoder.corrected == corrected
    assert json.loads(body(run)).get("progress") == expected


def test_texts_that_break_pages_and_parsers() -> None:
    texts = [
        "🙂",
        "\u2028\u2029",
        "</script>",
        '"\\\b\n\t',
        "\x01\x1f\x7f",
        "\ufeff",
        "e\u0301",
        "א",
    ]
    for text in texts:
        run = decoded(Decoder({}, 100), id=text, agent=text, task_id=text, error=text)
        encoded = body(run)
        assert encoded.isascii()
        assert encoded.isprintable()
        assert json.loads(encoded) == {
            "id": text,
            "status": "queued",
            "agent": text,
            "task_id": text,
            "error": text,
        }


def test_long_texts_are_cut_with_a_mark_and_long_ids_refused() -> None:
    decoder = Decoder({}, 10)
    run = decoded(decoder, task_id="t" * 11, agent="a" * 10, error="e" * 12)
    assert (run[3], run[4], run[7]) == ("t" * 10 + CUT, "a" * 10, "e" * 10 + CUT)
    assert decoded(decoder, id="i" * 10)
    assert decoded(decoder, id="i" * 11) is None
    assert decoded(decoder, id="") is None
    assert decoded(decoder, id=None) is None
    assert decoder.rejected == 3


def test_words_that_are_not_of_the_contract_are_refused_and_said_once() -> None:
    decoder = Decoder({}, 100)
    with capture_logs() as logs:
        for word in ("paused", "paused", "Queued", "queued ", "", None):
            assert decoded(decoder, status=word) is None
    assert decoder.rejected == 6
    assert [log["detail"] for log in logs] == [
        "status 'paused' has no place in the contract",
        "status 'Queued' has no place in the contract",
        "status 'queued ' has no place in the contract",
        "status '' has no place in the contract",
        "status 'None' has no place in the contract",
    ]
    assert "BRAIN_STATUS_MAP" in logs[0]["hint"]


def test_a_map_of_words() -> None:
    words: dict[str, Status] = {
        "done": "completed",
        "ok": "completed",
        "new": "queued",
        "t": "running",
        "failed": "completed",
    }
    decoder = Decoder(words, 100)
    assert [
        decoded(decoder, status=word)[1] for word in ("done", "ok", "new", "t", "queued", "failed")
    ] == [
        "completed",
        "completed",
        "queued",
        "running",
        "queued",
        "completed",
    ]
    assert set(decoder.active_words) == {"queued", "running", "new", "t"}
    assert set(decoder.words("completed")) == {"completed", "done", "ok", "failed"}
    assert decoder.words() == []
    assert [decoder.word(status) for status in STATUSES] == ["new", "t", "done", "failed"]
    assert [decoder.status(word) for word in ("done", "queued", "odd", None)] == [
        "completed",
        "queued",
        None,
        None,
    ]


def test_what_was_not_sent_stays_so() -> None:
    run = decoded(
        Decoder({}, 100), status=UNCHANGED, error=UNCHANGED, agent=UNCHANGED, task_id=UNCHANGED
    )
    assert (run[1], run[3], run[4], run[7]) == (UNCHANGED,) * 4


texts = (
    st.none()
    | st.text(max_size=30)
    | st.sampled_from(["NaN", "1e5", "infinity", "2026-11-21 09:30:00+00", "50"])
)


@given(st.lists(texts, min_size=8, max_size=8), st.sampled_from(["queued", "running", "x", None]))
def test_every_row_is_a_run_of_the_contract_or_refused(
    row: Sequence[str | None], word: str | None
) -> None:
    decoder = Decoder({}, 20)
    values = [row[0], word, *row[2:]]
    run = decoder([None if value is None else value.replace("\0", "") for value in values])
    if run is None:
        assert decoder.rejected == 1
    else:
        data = RunData.model_validate_json(body(run))
        assert data.progress is None or math.isfinite(data.progress)
        for moment in (data.started_at, data.completed_at):
            assert moment is None or moment.tzinfo is not None
        assert data.model_dump(exclude_none=True).keys() == json.loads(body(run)).keys()


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_survives(moment: datetime) -> None:
    seen = decoded(Decoder({}, 100), started_at=moment.isoformat(" ").removesuffix(":00"))[5]
    assert datetime.fromisoformat(seen) == moment


# Its changes of status


def test_an_end_is_final_and_every_status_may_stay() -> None:
    assert TRANSITIONS.keys() == set(STATUSES)
    assert all(status in allowed for status, allowed in TRANSITIONS.items())
    assert TRANSITIONS["completed"] == {"completed"}
    assert TRANSITIONS["failed"] == {"failed"}
