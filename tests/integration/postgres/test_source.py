"""One contract for both sources: whatever happens to the table, the board equals SELECT."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import conninfo
from structlog.testing import capture_logs

from brain.contract.events import Changes, Snapshot
from brain.contract.messages import CUT, ID, STATUS
from brain.postgres.polling import Mode
from tests.support.api import serving
from tests.support.following import QUICK, Following, connected, held
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute, running
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = pytest.mark.long

Start: TypeAlias = Callable[..., AbstractAsyncContextManager[Following]]


@pytest.fixture(params=["replication", "poll"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@contextlib.asynccontextmanager
async def following(
    url: str, mode: Mode, source: str = "", **more: Any
) -> AsyncIterator[Following]:
    """A Following that has begun. Its board equals the table when the block ends."""
    async with Following(url, mode, **more) as f:
        await f.source(source)
        yield f
        await f.settled()


def name_of(url: str) -> str:
    return str(conninfo.conninfo_to_dict(url)["dbname"])


# Writes.


async def test_pushes_inserts_updates_and_deletes(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs (id) VALUES ('a')")
        await f.pushed("a", "queued")
        await f.sql(
            "UPDATE runs SET status = 'running', progress = 12.5, started_at = now(), agent = 'x'"
            " WHERE id = 'a'"
        )
        await f.pushed("a", "running")
        await f.sql(
            "UPDATE runs SET status = 'completed', progress = 100, completed_at = now()"
            " WHERE id = 'a'"
        )
        await f.pushed("a", "completed")
        await f.sql("INSERT INTO runs VALUES ('b', 'running')")
        await f.pushed("b", "running")
        await f.settled()
        await f.sql("DELETE FROM runs")
        await f.until(lambda: "b" not in f.board)
        assert f.pushed_statuses() == [
            ("a", "queued"),
            ("a", "running"),
            ("a", "completed"),
            ("b", "running"),
        ]
        # A query cannot see that a finished run was deleted: the board keeps it until it is
        # evicted.
        assert ("a" in f.board) == (mode == "poll")


async def test_only_the_stream_pushes_an_update_that_changes_nothing(
    database: str, mode: Mode
) -> None:
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.pushed("a", "running")
        await f.sql(
            "UPDATE runs SET status = 'running' WHERE id = 'a'",
            "INSERT INTO runs (id) VALUES ('z')",
        )
        await f.pushed("z", "queued")
        assert f.pushed_statuses().count(("a", "running")) == (1 if mode == "poll" else 2)


async def test_a_truncate_forgets_every_run(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs (id) VALUES ('a'), ('b')")
        await f.settled()
        await f.sql("TRUNCATE runs", "INSERT INTO runs (id) VALUES ('c')")
        await f.settled()
        assert list(held(f.board)) == ["c"]


async def test_pushes_only_what_is_committed(database: str, mode: Mode) -> None:
    deferred = "ALTER TABLE runs ADD CONSTRAINT later UNIQUE (agent) DEFERRABLE INITIALLY DEFERRED"
    async with following(database, mode) as f, connected(database) as conn:
        await f.sql(deferred, "INSERT INTO runs (id, agent) VALUES ('kept', 'one')")
        await conn.execute("INSERT INTO runs (id) VALUES ('no')")
        await conn.rollback()
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with conn.transaction():
                await conn.execute("INSERT INTO runs (id, agent) VALUES ('no', 'one')")
        await conn.execute("INSERT INTO runs (id) VALUES ('yes')")
        await conn.execute("SAVEPOINT s")
        await conn.execute("INSERT INTO runs (id) VALUES ('no')")
        await conn.execute("UPDATE runs SET status = 'failed'")
        await conn.execute("ROLLBACK TO SAVEPOINT s")
        await conn.execute("UPDATE runs SET status = 'running' WHERE id = 'kept'")
        await conn.commit()
        await f.settled()
        assert {run_id for run_id, _ in f.pushed_statuses()} == {"kept", "yes"}
        assert "failed" not in {status for _, status in f.pushed_statuses()}


async def test_pushes_the_rows_of_subtransactions(database: str, mode: Mode) -> None:
    nested = """DO $$ BEGIN
        FOR i IN 1..100 LOOP
            BEGIN
                INSERT INTO runs (id) VALUES ('s' || i);
                IF i % 2 = 0 THEN RAISE 'no'; END IF;
            EXCEPTION WHEN raise_exception THEN NULL;
            END;
        END LOOP;
    END $$"""
    async with following(database, mode) as f:
        await f.sql(nested)
        await f.pushed("s99", "queued")
        assert len(f.pushes) == len(f.board) == 50


async def test_pushes_a_prepared_transaction_when_it_is_committed(
    database: str, mode: Mode
) -> None:
    async with following(database, mode) as f:
        await f.sql("BEGIN", "INSERT INTO runs (id) VALUES ('a')", "PREPARE TRANSACTION 'brain a'")
        await f.sql("BEGIN", "INSERT INTO runs (id) VALUES ('no')", "PREPARE TRANSACTION 'brain b'")
        await f.sql("INSERT INTO runs (id) VALUES ('now')")
        await f.pushed("now", "queued")
        assert f.pushed_statuses() == [("now", "queued")]
        await f.sql("ROLLBACK PREPARED 'brain b'", "COMMIT PREPARED 'brain a'")
        await f.pushed("a", "queued")
        assert f.pushed_statuses() == [("now", "queued"), ("a", "queued")]


async def test_delivers_a_large_transaction_in_slices(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql(
            "INSERT INTO runs (id, progress) SELECT i, i % 100 FROM generate_series(1, 10000) i"
        )
        await f.settled()
        assert len(f.pushes) == 10_000
        slices = [event for event in f.events if isinstance(event, Changes | Snapshot)]
        assert max(len(event.rows) for event in slices) == 1000


async def test_a_changed_id_replaces_the_old_one(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.pushed("a", "running")
        await f.sql("UPDATE runs SET id = 'b' WHERE id = 'a'")
        await f.settled()
        assert list(held(f.board)) == ["b"]


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
async def test_keeps_a_value_that_the_stream_leaves_out(
    database: str, mode: Mode, identity: str
) -> None:
    """PostgreSQL leaves an unchanged large value out of the stream (TOAST)."""
    async with Following(database, mode) as before:
        await before.sql(
            f"ALTER TABLE runs REPLICA IDENTITY {identity}",
            "ALTER TABLE runs ALTER error SET STORAGE EXTERNAL, ALTER agent SET STORAGE EXTERNAL",
            # Finished before Brain starts: the board does not know it.
            "INSERT INTO runs (id, status, error)"
            " VALUES ('old', 'completed', repeat('o', 1000000))",
        )
    async with following(database, mode) as f:
        await f.sql(
            "INSERT INTO runs (id, error, agent)"
            " VALUES ('new', repeat('n', 1000000), repeat('a', 9000))",
            "UPDATE runs SET status = 'running' WHERE id = 'new'",
            "UPDATE runs SET status = 'failed' WHERE id = 'old'",
            "UPDATE runs SET error = NULL, status = 'failed' WHERE id = 'new'",
        )
        await f.pushed("new", "failed")
        await f.settled()
        assert f.run("old")[7] == "o" * 1_000_000
        assert f.run("new")[4] == "a" * 9000
        assert all(run[7] == "n" * 1_000_000 for run in f.pushes if run[:2] == ("new", "running"))


async def test_follows_the_longest_id_that_the_contract_allows(database: str, mode: Mode) -> None:
    """It is stored out of line: the stream sends it as the old row's key, not in the new row."""
    long = "SELECT string_agg(md5(i::text || 'x'), '') FROM generate_series(1, 80) i"
    async with following(database, mode) as f:
        await f.sql(
            "ALTER TABLE runs ALTER id SET STORAGE EXTERNAL",
            "ALTER TABLE runs ALTER error SET STORAGE PLAIN",  # so that the row is too long
            f"INSERT INTO runs (id, error)"
            f" VALUES ((SELECT right(({long}), 1024)), repeat('x', 1500))",
        )
        await f.settled()
        await f.sql("UPDATE runs SET status = 'running'")
        await f.settled()
        assert f.follow.state.connects == 1
        assert [run[STATUS] for run in f.pushes] == ["queued", "running"]


async def test_both_sources_cut_a_text_at_the_same_bound(database: str, mode: Mode) -> None:
    async with Following(database, mode, max_text=100) as f:
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, status, error) VALUES ('a', 'running', repeat('é', 1000000))"
        )
        await f.pushed("a", "running")
        await f.sql("UPDATE runs SET status = 'failed'")
        await f.pushed("a", "failed")
        assert {run[7] for run in f.pushes} == {"é" * 100 + CUT}
        # Else every Snapshot would push it again.
        await f.sql(
            "UPDATE runs SET error = repeat('é', 100)", "INSERT INTO runs (id) VALUES ('z')"
        )
        await f.pushed("z", "queued")
        assert f.run("a")[7] == "é" * 100


async def test_delivers_any_text_unchanged(database: str, mode: Mode) -> None:
    texts = [
        "😀",
        "\u2028\u2029",
        "</script>",
        '"\\',
        "\x01\x1f\x7f",
        "\\N",
        "",
        "null",
        "a\tb\r\nc",
        "\ufeff\u0301",
    ]
    async with following(database, mode) as f, connected(database) as conn:
        for i, text in enumerate(texts):
            await conn.execute(
                "INSERT INTO runs (id, error, agent) VALUES (%s, %s, %s)",
                (f"{i}{text}", text, text),
            )
        await conn.commit()
        await f.settled()
        assert [run[7] for run in f.pushes] == texts


async def test_corrects_or_leaves_out_values_that_the_contract_cannot_express(
    database: str, mode: Mode
) -> None:
    async with Following(database, mode) as f:
        await f.source()
        await f.sql(
            "ALTER TABLE runs DROP CONSTRAINT runs_progress_check",
            "ALTER TABLE runs DROP CONSTRAINT runs_status_check",
            "INSERT INTO runs (id, progress) VALUES ('nan', 'NaN'), ('inf', 'Infinity'),"
            " ('-inf', '-Infinity'), ('more', 101), ('less', -1)",
            "INSERT INTO runs (id, started_at) VALUES ('late', 'infinity'),"
            " ('far', '12026-01-01'), ('bc', '0044-03-15 BC')",
            "INSERT INTO runs (id, status) VALUES ('odd', 'archived'), ('z', 'queued')",
        )
        await f.pushed("z", "queued")
        progress = {run_id: f.run(run_id)[2] for run_id in ("nan", "inf", "-inf", "more", "less")}
        assert progress == {"nan": None, "inf": 100, "-inf": 0, "more": 100, "less": 0}
        assert [f.run(run_id)[5] for run_id in ("late", "far", "bc")] == [None] * 3
        assert "odd" not in f.board
        assert f.decoder.rejected == 1
        assert f.decoder.corrected == 8


# Kinds of table.

ODD_TYPES = """
    j jsonb DEFAULT '{"a": [1]}', b bytea DEFAULT '\\x00ff', r int4range DEFAULT '[1,2)',
    p point DEFAULT '(1,2)', status mood_status, a text[] DEFAULT '{a,NULL,"x,y"}',
    v tsvector DEFAULT 'a b', m mood DEFAULT 'fine', c pair DEFAULT '(1,x)',
    i interval DEFAULT '1 day', mon money DEFAULT 1, x xid DEFAULT '1',
    id char(8) DEFAULT 'ab' PRIMARY KEY, started_at timestamp DEFAULT '2026-11-21 09:30:00.5',
    completed_at date, progress numeric DEFAULT 12.50, gone text, error varchar DEFAULT 'e'
"""
ODD = """
CREATE TYPE mood AS ENUM ('fine', 'bad');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN run_id AS uuid;
DROP TABLE runs;
"""


@pytest.mark.parametrize(
    ("definition", "ids"),
    [
        ("id uuid PRIMARY KEY DEFAULT gen_random_uuid(), status text", ""),
        ("id run_id PRIMARY KEY DEFAULT gen_random_uuid(), status mood_status", ""),
        ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status varchar(20)", ""),
        (
            (
                "id int DEFAULT 7, status text, extra text,"
                " UNIQUE (extra, id), PRIMARY KEY (extra, id)"
            ),
            "extra",
        ),
        (ODD_TYPES, ""),
        (
            (
                "id text PRIMARY KEY, status text, progress real,"
                " started_at text DEFAULT '2026-11-21T09:30:00+05:30'"
            ),
            "id",
        ),
    ],
    ids=["uuid", "domain and enum", "bigint", "wide key", "odd types", "times as text"],
)
async def test_follows_tables_of_other_types(
    database: str, mode: Mode, definition: str, ids: str
) -> None:
    async with Following(database, mode) as f:
        await f.sql(*filter(str.strip, ODD.split(";")))
        await f.sql("CREATE TYPE mood_status AS ENUM ('queued', 'running', 'completed', 'failed')")
        await f.sql(f"CREATE TABLE runs ({definition})")
        if "gone" in definition:
            await f.sql("ALTER TABLE runs DROP COLUMN gone")
    f = Following(database, mode)
    async with f:
        await f.source()
        columns = f"({ids}, status)" if ids else "(status)"
        values = "('k', 'queued')" if ids else "('queued')"
        await f.sql(f"INSERT INTO runs {columns} VALUES {values}")
        await f.until(lambda: len(f.pushes) == 1)
        await f.sql("UPDATE runs SET status = 'running'")
        await f.until(lambda: len(f.pushes) == 2)
        ((run_id, *_),) = await f.sql("SELECT id::text FROM runs")
        assert {run[ID].strip() for run in f.pushes} == {run_id}
        assert f.pushes[-1][STATUS] == "running"
        if "started_at" in definition:
            assert f.pushes[-1][5] in ("2026-11-21T09:30:00.500000Z", "2026-11-21T04:00:00Z")
        if "numeric" in definition:
            assert f.pushes[-1][2:] == (12.5, None, None, "2026-11-21T09:30:00.500000Z", None, "e")
        await f.sql("DELETE FROM runs")
        await f.until(lambda: not len(f.board))


@pytest.mark.parametrize(
    ("type_", "value", "printed"),
    [
        ("boolean", "true", "t"),
        ("inet", "10.0.0.1", "10.0.0.1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/8"),
        ("jsonb", '{"b":1,"a":2}', '{"a": 2, "b": 1}'),
        ("pair", "(1,)", "(1,)"),
        ("low", "yes", "t"),
    ],
)
async def test_both_sources_have_the_text_that_the_type_prints(
    database: str, mode: Mode, type_: str, value: str, printed: str
) -> None:
    """A cast may print another one, and each comparison would then correct the board."""
    # Before the table is described: a poll casts by what it knows of the columns.
    execute(
        database,
        "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN low AS boolean;"
        f" ALTER TABLE runs DROP error, ADD error {type_}",
    )
    async with Following(database, mode, timing=replace(QUICK, compare_every=0.1)) as f:
        await f.source()
        await f.sql(f"INSERT INTO runs (id, error) VALUES ('a', '{value}'), ('b', NULL)")
        await f.until(lambda: len(f.board) == 2)
        assert (f.run("a")[7], f.run("b")[7]) == (printed, None)
        pushed = len(f.pushes)
        for i in range(3):
            await f.sql(f"INSERT INTO runs (id) VALUES ('c{i}')")
            await asyncio.sleep(0.11)
        await f.until(lambda: len(f.pushes) == pushed + 3)
        assert f.board.corrections == 0


@pytest.mark.parametrize("type_", ["json", "point", "text[]"])
async def test_follows_a_table_whose_ids_do_not_compare(database: str, type_: str) -> None:
    """They have no `=`, by which a query could look for the runs that are gone."""
    ids = {"json": ('{"a": 1}', "2"), "point": ("(1,2)", "(3,4)"), "text[]": ("{a}", "{b}")}
    first, second = ids[type_]
    async with Following(database, "auto") as f:
        await f.sql("DROP TABLE runs", f"CREATE TABLE runs (id {type_}, status text)")
        await f.source("poll")
        await f.sql(f"INSERT INTO runs VALUES ('{first}', 'running'), ('{second}', 'queued')")
        await f.until(lambda: len(f.board) == 2)
        await f.sql(f"DELETE FROM runs WHERE id::text = '{first}'")
        await f.until(lambda: first not in f.board)
        assert second in f.board


async def test_follows_a_partitioned_table(any_database: str, mode: Mode) -> None:
    async with Following(any_database, mode) as f:
        await f.sql(
            "DROP TABLE runs",
            "CREATE TABLE runs (id text PRIMARY KEY, status text, error text)"
            " PARTITION BY HASH (id)",
            "CREATE TABLE runs_0 PARTITION OF runs FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
            # Its columns have another order.
            "CREATE TABLE runs_1 (error text, extra int, status text, id text PRIMARY KEY)",
            "ALTER TABLE runs_1 DROP COLUMN extra",
            "ALTER TABLE runs ATTACH PARTITION runs_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        )
        await f.source()
        await f.sql("INSERT INTO runs SELECT i, 'queued', 'e' || i FROM generate_series(1, 20) i")
        await f.sql(
            "UPDATE runs SET status = 'running' WHERE id::int > 10",
            "DELETE FROM runs WHERE id::int < 5",
        )
        await f.settled()
        await f.sql("UPDATE runs SET id = id || 'x'")
        await f.settled()
        await f.sql("TRUNCATE runs", "INSERT INTO runs VALUES ('last', 'queued')")
        await f.settled()
        assert list(held(f.board)) == ["last"]


async def test_settings_of_the_role_do_not_change_what_is_read(
    database: str, superuser_url: str, mode: Mode
) -> None:
    settings = {
        "client_encoding": "LATIN1",
        "datestyle": "SQL, DMY",
        "timezone": "Asia/Kolkata",
        "extra_float_digits": "-15",
        "intervalstyle": "sql_standard",
        "bytea_output": "escape",
        "statement_timeout": "1ms",
        "search_path": "nowhere",
        "default_transaction_isolation": "serializable",
        "standard_conforming_strings": "off",
    }
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        for key, value in settings.items():
            admin.execute(
                f"ALTER ROLE cecelia IN DATABASE {name_of(database)} SET {key} = '{value}'".encode()
            )
    async with following(database, mode, writer=superuser_url) as f:
        await f.sql(
            "INSERT INTO runs VALUES ('€', 'running', 33.333333, '日本', '😀',"
            " '2026-11-21 06:32:03.000001+00', NULL, '…')"
        )
        await f.settled()
        assert f.pushes == [
            ("€", "running", 33.333333, "日本", "😀", "2026-11-21T06:32:03.000001Z", None, "…")
        ]


async def test_functions_of_the_application_are_none_of_brains(
    database: str, superuser_url: str, mode: Mode
) -> None:
    """A search_path may name a schema before pg_catalog: orafce recommends it."""
    functions = {
        "concat(VARIADIC text[])": "text",
        "lower(text)": "text",
        "btrim(text)": "text",
        "left(text, int)": "text",
        "format(text, VARIADIC text[])": "text",
        "octet_length(text)": "int",
        "age(xid)": "int",
        "to_hex(bigint)": "text",
        "hashtextextended(text, bigint)": "bigint",
    }
    body = "RETURNS {} LANGUAGE plpgsql AS 'BEGIN RAISE ''not ours''; END'"
    execute(
        superuser_url,
        "CREATE SCHEMA first; GRANT USAGE ON SCHEMA first TO PUBLIC;"
        + "".join(
            f"CREATE FUNCTION first.{name} {body.format(type_)};"
            for name, type_ in functions.items()
        )
        + f"ALTER ROLE cecelia IN DATABASE {name_of(database)}"
        " SET search_path = first, pg_catalog, public;"
        "ALTER TABLE runs DROP CONSTRAINT runs_status_check",
    )
    async with following(database, mode, writer=superuser_url) as f:
        await f.sql("INSERT INTO runs (id, status, error, agent) VALUES ('a', 'done', 'e', 'x')")
        await f.sql("INSERT INTO runs (id, status) VALUES ('b', 'running')")
        await f.pushed("b", "running")
        async with serving(database, board=f.board) as api:
            made = await api.post("/api/runs", json={"id": "c"})
            assert made.status_code == 201, made.text
            assert (await api.patch("/api/runs/b", json={"status": "failed"})).is_success
            listed = await api.get("/api/runs?status=completed&agent=x")
            assert [run["id"] for run in listed.json()["runs"]] == ["a"]


async def test_maps_the_words_of_status(database: str, mode: Mode) -> None:
    async with following(database, mode, statuses={"PENDING": "queued", "done": "completed"}) as f:
        await f.sql("ALTER TABLE runs DROP CONSTRAINT runs_status_check")
        await f.sql(
            "INSERT INTO runs VALUES ('a', 'PENDING'), ('b', 'running')",
            "UPDATE runs SET status = 'done'",
        )
        await f.pushed("b", "completed")
        await f.settled()


# Changes of the table.


async def test_follows_a_table_whose_columns_change(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql("ALTER TABLE runs DROP COLUMN agent")
        await f.sql("INSERT INTO runs (id) VALUES ('a')")
        await f.pushed("a", "queued")
        await f.sql("ALTER TABLE runs ADD extra jsonb DEFAULT '{}', ADD agent text DEFAULT 'all'")
        await f.sql("INSERT INTO runs (id) VALUES ('b')")
        await f.pushed("b", "queued")
        await f.settled()
        assert f.run("b")[4] == "all"


async def test_follows_a_table_that_is_dropped_and_created_again(database: str, mode: Mode) -> None:
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'completed')")
        await f.pushed("b", "completed")
        await f.sql("DROP TABLE runs")
        await f.source("none")
        await f.until(lambda: "brain init-db" in f.follow.state.detail)
        await f.sql(
            "CREATE TABLE runs (id bigint PRIMARY KEY, status text)",
            "INSERT INTO runs VALUES (1, 'queued')",
        )
        await f.source()
        await f.pushed("1", "queued")
        await f.until(lambda: list(held(f.board)) == ["1"])
        await f.sql("UPDATE runs SET status = 'running'")
        await f.pushed("1", "running")
        assert sum(snapshot.new for snapshot in f.snapshots()) == 1


async def test_follows_a_table_that_is_replaced_in_one_transaction(
    database: str, mode: Mode
) -> None:
    """No query sees the table missing, and the stream goes silent for ever."""
    async with following(database, mode) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'completed')")
        await f.pushed("b", "completed")
        await f.sql(
            "BEGIN",
            "DROP TABLE runs",
            "CREATE TABLE runs (id text PRIMARY KEY, status text)",
            "INSERT INTO runs VALUES ('c', 'queued')",
            "COMMIT",
        )
        await f.pushed("c", "queued")
        await f.until(lambda: list(held(f.board)) == ["c"])
        await f.source()
        await f.sql("UPDATE runs SET status = 'running'")
        await f.pushed("c", "running")


async def test_follows_another_table_that_takes_the_name(database: str, mode: Mode) -> None:
    """Its rows were written long before: no horizon would find them."""
    async with following(database, mode) as f:
        await f.sql(
            "CREATE TABLE next (LIKE runs INCLUDING ALL)",
            "INSERT INTO next VALUES ('n', 'running')",
        )
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'completed')")
        await f.pushed("b", "completed")
        await f.sql(
            "BEGIN", "ALTER TABLE runs RENAME TO old", "ALTER TABLE next RENAME TO runs", "COMMIT"
        )
        await f.pushed("n", "running")
        await f.until(lambda: list(held(f.board)) == ["n"])
        await f.source()
        await f.sql("UPDATE runs SET status = 'failed'")
        await f.pushed("n", "failed")


async def test_follows_a_table_that_is_created_later(database: str, mode: Mode) -> None:
    async with Following(database, mode) as f:
        await f.sql("ALTER TABLE runs RENAME TO later")
    async with Following(database, mode) as f:
        await f.until(lambda: "there is no table public.runs" in f.follow.state.detail)
        await f.sql("ALTER TABLE later DROP COLUMN status", "ALTER TABLE later RENAME TO runs")
        await f.until(lambda: "has no column status" in f.follow.state.detail)
        await f.sql(
            "ALTER TABLE runs ADD status text",
            "INSERT INTO runs VALUES ('a')",
            "UPDATE runs SET status = 'running'",
        )
        await f.source()
        await f.settled()


BREAK = {
    "dropped": ["DROP PUBLICATION brain_public_runs"],
    "emptied": ["ALTER PUBLICATION brain_public_runs DROP TABLE runs"],
}


@pytest.mark.parametrize("how", BREAK)
async def test_creates_a_lost_publication_again(any_database: str, how: str) -> None:
    async with following(any_database, "auto") as f:
        await f.source("replication")
        await f.sql(*BREAK[how], "INSERT INTO runs VALUES ('a', 'running')")
        await f.pushed("a", "running")
        await f.until(lambda: f.follow.state.streams >= 2)
        await f.source("replication")
        await f.sql("UPDATE runs SET status = 'failed'")
        await f.pushed("a", "failed")
        assert "update" in {op for op, _ in f.changes()}


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        ("SET (publish = 'insert, update, truncate')", "leaves out every delete"),
        ("SET TABLE runs WHERE (id <> 'x')", "filters rows"),
        ("SET TABLE runs (id, status)", "leaves out columns"),
    ],
)
async def test_polls_while_the_publication_leaves_something_out(
    database: str, alter: str, reason: str
) -> None:
    async with following(database, "auto") as f:
        await f.source("replication")
        await f.sql(
            f"ALTER PUBLICATION brain_public_runs {alter}",
            "INSERT INTO runs VALUES ('a', 'running', 5)",
        )
        await f.pushed("a", "running")
        await f.source("poll")
        await f.until(lambda: reason in f.follow.state.detail)
        await f.sql("DELETE FROM runs")
        await f.settled()
        await f.sql(f.follow.state.hint.partition(";")[0])
        await f.source("replication")


# Tables that cannot be streamed.


async def test_polls_a_view(database: str) -> None:
    async with Following(database, "auto") as f:
        await f.sql(
            "ALTER TABLE runs RENAME TO base", "CREATE VIEW runs AS SELECT *, now() AS at FROM base"
        )
        await f.sql("INSERT INTO base VALUES ('a', 'completed'), ('b', 'queued')")
    async with Following(database, "auto") as f:
        await f.until(lambda: "a view" in f.follow.state.detail)
        await f.sql("UPDATE base SET status = 'running'")
        await f.pushed("b", "running")
        await f.pushed("a", "running")
        await f.sql("UPDATE base SET status = 'failed', error = 'x' WHERE id = 'b'")
        await f.pushed("b", "failed")
        await f.sql("DELETE FROM base")
        await f.until(lambda: f.board.unfinished() == set())


async def test_polls_an_unlogged_table_until_it_is_logged(database: str) -> None:
    async with Following(database, "auto") as f:
        await f.sql(
            "DROP TABLE runs", "CREATE UNLOGGED TABLE runs (id text PRIMARY KEY, status text)"
        )
        await f.until(lambda: "UNLOGGED" in f.follow.state.detail)
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.settled()
        await f.sql(f.follow.state.hint)
        await f.source("replication")


@pytest.mark.parametrize(
    "definition",
    [
        "id text, status text",
        "id text, status text, n int PRIMARY KEY",
        "id text PRIMARY KEY DEFERRABLE, status text",
        "id text PRIMARY KEY, status text); ALTER TABLE runs REPLICA IDENTITY NOTHING; --",
        (
            "id text UNIQUE NOT NULL, status text);"
            " ALTER TABLE runs REPLICA IDENTITY USING INDEX runs_id_key;"
            " ALTER TABLE runs DROP CONSTRAINT runs_id_key; --"
        ),
        (
            "id text PRIMARY KEY, status text) PARTITION BY HASH (id);"
            " CREATE TABLE p PARTITION OF runs FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
            " ALTER TABLE p REPLICA IDENTITY NOTHING; --"
        ),
    ],
    ids=["no key", "another key", "deferrable", "nothing", "index dropped", "partition"],
)
async def test_polls_a_table_without_a_replica_identity(database: str, definition: str) -> None:
    """A publication would make the application's UPDATEs fail, so Brain creates none. The hint
    works.
    """
    async with following(database, "auto", source="replication") as f:
        await f.sql("BEGIN", "DROP TABLE runs", "DROP PUBLICATION brain_public_runs")
        for statement in f"CREATE TABLE runs ({definition})".replace("; --)", "").split("; "):
            await f.sql(statement)
        await f.sql("COMMIT")
        await f.until(lambda: "replica identity" in f.follow.state.detail)
        assert await f.sql("SELECT FROM pg_publication") == []
        await f.sql(
            "INSERT INTO runs VALUES ('a', 'queued', 1)"
            if "n int" in definition
            else "INSERT INTO runs VALUES ('a', 'queued')"
        )
        await f.sql("UPDATE runs SET status = 'running'")
        await f.settled()
        await f.sql(*f.follow.state.hint.split("; "))
        await f.source("replication")
        await f.sql("UPDATE runs SET status = 'failed'")
        await f.pushed("a", "failed")


# On each version of PostgreSQL.


async def test_follows_many_kinds_of_write(any_database: str, mode: Mode) -> None:
    async with following(any_database, mode) as f:
        await f.sql(
            "INSERT INTO runs (id, error)"
            " SELECT i, repeat('€', 50000) FROM generate_series(1, 10) i"
        )
        await f.sql("UPDATE runs SET status = 'running', started_at = now() WHERE id > '5'")
        await f.settled()
        await f.sql(
            "BEGIN", "UPDATE runs SET progress = 1", "SAVEPOINT s", "UPDATE runs SET progress = 2"
        )
        await f.sql("ROLLBACK TO s", "UPDATE runs SET agent = 'z' WHERE id = '9'", "COMMIT")
        await f.settled()
        await f.sql("BEGIN", "UPDATE runs SET status = 'failed'", "PREPARE TRANSACTION 'brain day'")
        await f.sql("INSERT INTO runs (id) VALUES ('now')", "COMMIT PREPARED 'brain day'")
        await f.settled()
        await f.sql(
            "UPDATE runs SET id = 'x' || id WHERE id = 'now'",
            "DELETE FROM runs WHERE status = 'queued'",
        )
        await f.settled()
        await f.sql("TRUNCATE runs", "INSERT INTO runs (id) VALUES ('last')")
        await f.settled()
        assert f.decoder.rejected == f.decoder.corrected == 0


async def test_reconnects_when_connections_are_killed(any_database: str, mode: Mode) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND application_name = 'brain'"
        " AND (backend_type = 'walsender') = {}"
    )
    async with following(any_database, mode) as f:
        with capture_logs() as logs:
            for i, walsender in enumerate([True, False]):
                streams, connects = f.follow.state.streams, f.follow.state.connects
                await f.sql(f"INSERT INTO runs (id) VALUES ('a{i}')", kill.format(walsender))
                await f.sql(f"INSERT INTO runs (id) VALUES ('b{i}')")
                await f.settled()
                if mode != "poll":
                    await f.until(lambda before=streams: f.follow.state.streams > before)  # type: ignore[misc]
                elif not walsender:
                    await f.until(lambda before=connects: f.follow.state.connects > before)  # type: ignore[misc]
        if mode != "poll":
            assert any("terminat" in str(line.get("detail")) for line in logs)
            assert f.follow.state.losses == 1
        assert f.follow.state.connects == 2
        assert len(f.pushed_statuses()) == 4


# Changes of the server. These tests stop it, so it is their own.


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as own:
        yield with_template(own)


@pytest.fixture
def own_database(server: Postgres) -> Iterator[str]:
    name = server.create_database(TEMPLATE, ROLE)
    yield server.url(name, ROLE)
    server.drop_database(name)


async def test_follows_a_server_that_is_killed_and_started_again(
    server: Postgres, own_database: str, mode: Mode
) -> None:
    async with following(own_database, mode) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')")
        await f.settled()
        await f.hang_up()
        server.kill()
        await f.source("none")
        await asyncio.sleep(0.3)
        server.start()
        await f.sql(
            "UPDATE runs SET status = 'failed' WHERE id = 'a'", "DELETE FROM runs WHERE id = 'b'"
        )
        await f.pushed("a", "failed")
        await f.source()
        # A poll may have read what the crash has undone. Then it is a new beginning.
        most = 1 if mode == "poll" else 0
        assert [snapshot.new for snapshot in f.snapshots()].count(True) <= most


async def test_streams_when_wal_level_becomes_logical(server: Postgres, own_database: str) -> None:
    server.restart(wal_level="replica")
    try:
        async with following(own_database, "auto", source="poll") as f:
            await f.until(lambda: "wal_level" in f.follow.state.detail)
            assert f.follow.state.hint.startswith("ALTER SYSTEM SET wal_level = logical")
            await f.sql("INSERT INTO runs VALUES ('a', 'running')")
            await f.pushed("a", "running")
            await f.hang_up()
            server.restart(wal_level="logical")
            await f.source("replication")
    finally:
        server.restart(wal_level="logical")


@pytest.mark.parametrize("setting", ["max_replication_slots", "max_wal_senders"])
async def test_streams_when_a_slot_or_walsender_is_free(
    server: Postgres, own_database: str, setting: str
) -> None:
    before = server.settings[setting]
    server.restart(**{setting: "1"})
    try:
        async with (
            following(own_database, "replication") as first,
            following(own_database, "auto", source="poll") as f,
        ):
            await f.until(lambda: "free" in f.follow.state.detail)
            assert setting in f.follow.state.hint
            await first.sql("INSERT INTO runs VALUES ('a', 'running')")
            await f.pushed("a", "running")
            await first.settled()
            await first.stop()
            await f.source("replication")
    finally:
        server.restart(**{setting: before})


async def test_streams_when_the_role_may_replicate(
    postgres: Postgres, database: str, superuser_url: str
) -> None:
    role = f"plain_{name_of(database)}"
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN".encode())
        admin.execute(f"GRANT SELECT ON runs TO {role}".encode())
        try:
            async with following(
                postgres.url(name_of(database), role), "auto", source="poll", writer=database
            ) as f:
                await f.until(lambda: "may not replicate" in f.follow.state.detail)
                await f.sql("INSERT INTO runs VALUES ('a', 'running')")
                await f.pushed("a", "running")
                admin.execute(f.follow.state.hint.encode())
                await f.source("replication")
        finally:
            admin.execute(f"DROP OWNED BY {role}".encode())
            admin.execute(f"DROP ROLE {role}".encode())


async def test_polls_while_a_write_transaction_blocks_the_slot(database: str) -> None:
    """And leaves no walsender that waits on."""
    timing = replace(QUICK, slot_timeouts=(0.1, 0.2, 30))
    mine = (
        "SELECT (SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'walsender' AND datname = current_database()),"
        " (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())"
    )
    async with connected(database) as conn:
        await conn.execute("INSERT INTO runs VALUES ('open', 'running')")
        async with Following(database, "auto", timing=timing) as f:
            await f.until(lambda: "a writing transaction is open" in f.follow.state.detail)
            await f.sql("INSERT INTO runs VALUES ('a', 'running')")
            await f.pushed("a", "running")
            await f.until(lambda: f.follow._promotion.slot_tries == 2)
            await asyncio.sleep(0.1)
        async with following(database, "auto", source="poll", timing=timing) as f:
            assert await f.sql(mine) in ([(1, 1)], [(0, 0)])
            await f.until(lambda: f.follow._promotion.slot_tries == 2)
            await conn.commit()
            await f.source("replication")
            await f.sql("UPDATE runs SET status = 'failed'")
            await f.pushed("open", "failed")
        deadline = time.monotonic() + PATIENCE
        while (left := await f.sql(mine)) != [(0, 0)]:
            assert time.monotonic() < deadline, left
        await f.hang_up()


async def test_polls_a_read_replica_until_it_is_promoted(
    server: Postgres, own_database: str, mode: Mode
) -> None:
    standby = server.standby()
    try:
        standby.start()
        url = standby.url(name_of(own_database), ROLE)
        async with Following(
            url, "auto" if mode == "replication" else mode, writer=own_database
        ) as f:
            await f.source("poll")
            if mode == "replication":
                await f.until(lambda: "read replica" in f.follow.state.detail)
            await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'queued')")
            await f.pushed("b", "queued")
            # The replica's snapshot does not list what runs: it is the same before and after this
            # commit.
            async with connected(own_database) as oldest, connected(own_database) as conn:
                await oldest.execute("UPDATE runs SET progress = 1 WHERE id = 'b'")
                await conn.execute("UPDATE runs SET status = 'failed' WHERE id = 'a'")
                await f.sql("INSERT INTO runs VALUES ('c', 'queued')")
                await f.pushed("c", "queued")
                await asyncio.sleep(0.1)
                await conn.commit()
                await f.pushed("a", "failed")
                await oldest.commit()
            await f.settled()
            # It becomes the primary: a new history, and a stream if the mode asks for one.
            standby.program("pg_ctl", "promote", "-D", str(standby.data))
            f._writer = url
            await f.hang_up()
            await f.source("poll" if mode == "poll" else "replication")
            await f.until(lambda: any(snapshot.new for snapshot in f.snapshots()))
            await f.sql("UPDATE runs SET status = 'completed' WHERE id = 'b'")
            await f.pushed("b", "completed")
    finally:
        standby.remove()


@pytest.mark.parametrize(
    ("names", "called"),
    [("*", ""), ("FIRST 1 (other, Brain)", ""), ("ANY 1 (other, mine)", "?application_name=Mine")],
    ids=["all", "brain", "as the URL says"],
)
async def test_polls_where_every_commit_would_wait_for_brain(
    server: Postgres, own_database: str, names: str, called: str
) -> None:
    def alter(value: str) -> None:
        execute(server.url(), f"ALTER SYSTEM SET synchronous_standby_names = '{value}'")
        execute(server.url(), "SELECT pg_reload_conf()")

    async with following(own_database + called, "auto") as f:
        try:
            await f.source("replication")
            alter(names)
            await f.source("poll")
            await f.until(lambda: "every commit wait" in f.follow.state.detail)
            await f.sql(
                "SET synchronous_commit = local", "INSERT INTO runs VALUES ('a', 'running')"
            )
            await f.pushed("a", "running")
        finally:
            alter("")
        await f.source("replication")
