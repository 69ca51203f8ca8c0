"""The words of the column `status`: common ones, in any case, padded, of an enum or a CHECK."""

import json
from typing import Any

import pytest

from brain.contract.messages import ACTIVE, STATUSES
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.example import look
from brain.postgres.polling import Mode
from brain.postgres.statuses import COMMON, STRICT, status_column
from brain.postgres.table import Table, describe
from tests.support import ROOT
from tests.support.following import RUNS, Following
from tests.support.postgres import execute

TYPES = [
    "text",
    "varchar(20)",
    "char(12)",
    "odd_word",
    "odd_domain",
    "text CHECK (status IN (' RUNNING', 'Completed', 'In_Progress'))",
    "char(12) CHECK (status IN (' RUNNING', 'Completed', 'In_Progress'))",
    "varchar(20) CHECK (status IN (' RUNNING', 'Completed', 'In_Progress'))",
]


def make(url: str, type_: str) -> None:
    execute(
        url,
        "ALTER TABLE runs DROP COLUMN status;"
        " CREATE TYPE odd_word AS ENUM (' RUNNING', 'Completed', 'In_Progress');"
        " CREATE DOMAIN odd_domain AS odd_word;",
    )
    execute(url, f"ALTER TABLE runs ADD status {type_}")


@pytest.mark.parametrize("mode", ["replication", "poll"])
@pytest.mark.parametrize("type_", TYPES)
async def test_words_in_any_case_and_with_padding_are_read(
    any_database: str, mode: Mode, type_: str
) -> None:
    make(any_database, type_)
    execute(
        any_database,
        "INSERT INTO runs (id, status) VALUES ('a', ' RUNNING'), ('b', 'Completed'),"
        " ('c', 'In_Progress')",
    )
    async with Following(any_database, mode) as f:
        await f.source()
        assert {run_id: run[1] for run_id, run in f.view().items()} == {
            "a": "running",
            "c": "running",
        }
        await f.sql("UPDATE runs SET status = 'Completed' WHERE id = 'a'")
        await f.pushed("a", "completed")
        await f.sql("UPDATE runs SET status = ' RUNNING' WHERE id = 'b'")
        await f.pushed("b", "running")


@pytest.mark.parametrize("mode", ["replication", "poll"])
async def test_a_word_may_have_braces_and_percent_signs(any_database: str, mode: Mode) -> None:
    execute(
        any_database,
        "ALTER TABLE runs DROP COLUMN status; CREATE TYPE state AS ENUM ('{0} %s', '{x}');"
        " ALTER TABLE runs ADD status state; INSERT INTO runs (id, status) VALUES ('a', '{0} %s')",
    )
    async with Following(
        any_database, mode, statuses={"{0} %s": "running", "{x}": "completed"}
    ) as f:
        await f.source()
        assert f.run("a")[1] == "running"
        await f.sql("UPDATE runs SET status = '{x}'")
        await f.pushed("a", "completed")


async def plan(url: str, words: Decoder) -> str:
    """Of the first read, for a planner that avoids a sequential scan where it can."""
    async with await connect(url, "test") as conn:
        described = await describe(conn, RUNS)
        condition = described.statuses.one_of("r", words.words(*ACTIVE)).as_string()
        await conn.execute("SET enable_seqscan = off")
        cursor = await conn.execute(
            f"EXPLAIN (FORMAT JSON) SELECT id FROM runs r WHERE {condition}".encode()
        )
        row = await cursor.fetchone()
    assert row is not None
    found: Any = json.loads(str(row[0]))
    return json.dumps(found)


CHECK = "CHECK (status IN ('queued', 'running', 'completed', 'failed'))"


@pytest.mark.parametrize(
    ("type_", "index"),
    [
        (f"text {CHECK}", "(id) WHERE status IN ('queued', 'running')"),
        (f"text {CHECK}", "(status)"),
        (f"varchar(9) {CHECK}", "(id) WHERE status::text IN ('queued', 'running')"),
        ("odd_word", "(status)"),
        ("odd_domain", "(status)"),
        ("odd_word", "(id) WHERE status IN (' RUNNING', 'In_Progress')"),
    ],
)
async def test_an_index_on_status_serves_where_the_catalog_lists_the_words(
    any_database: str, type_: str, index: str
) -> None:
    execute(any_database, "DROP INDEX runs_id_idx")
    make(any_database, type_)
    assert "Seq Scan" in await plan(any_database, Decoder({}, 100))
    execute(any_database, f"CREATE INDEX ON runs {index}")
    assert "Seq Scan" not in await plan(any_database, Decoder({}, 100))


async def test_the_index_that_init_db_creates_serves(any_database: str) -> None:
    assert "runs_id_idx" in await plan(any_database, Decoder({}, 100))


def test_the_word_that_is_written() -> None:
    assert Decoder({}, 100).word("failed") == "failed"
    assert Decoder({"KO": "failed"}, 100).word("failed") == "KO"
    assert Decoder({"KO": "failed", "bad": "failed"}, 100).word("failed") == "failed"
    assert Decoder({}, 100).word("failed", ("NEW", "FAILED")) == "FAILED"
    assert Decoder({}, 100).word("failed", ("new", "error", "killed")) == "error"
    assert Decoder({"KO": "failed"}, 100).word("failed", ("new", "ko")) == "ko"
    assert Decoder({"failed": "completed"}, 100).word("failed") == "error"
    assert Decoder(STRICT, 100).word("failed", ("error",)) == "failed"
    assert Decoder({**STRICT, "KO": "failed"}, 100).word("failed") == "KO"


def test_strict_knows_the_four_words_only() -> None:
    assert sorted(Decoder(STRICT, 100).words(*STATUSES)) == sorted(STATUSES)
    assert Decoder(STRICT, 100).status("done") is None
    assert Decoder({**STRICT, "done": "failed"}, 100).status("DONE") == "failed"
    assert Decoder({"done": "failed"}, 100).status("done ") == "failed"


def test_the_docs_list_the_common_words() -> None:
    lines = (ROOT / "docs" / "reference" / "settings.md").read_text().splitlines()
    for status in STATUSES:
        words = [f"`{word}`" for word, meaning in COMMON.items() if meaning == status]
        assert f"- `{status}`: {', '.join(words)}" in lines


async def test_a_column_that_has_gone_meanwhile_is_none(database: str) -> None:
    ((oid,),) = execute(database, "SELECT 'runs'::regclass::oid::bigint")
    async with await connect(database, "test") as conn:
        assert await status_column(conn, int(oid), "status") is not None
        assert await status_column(conn, int(oid), "state") is None


async def test_a_constraint_that_is_being_dropped_lists_no_words(database: str) -> None:
    """pg_get_constraintdef() returns NULL for it. A race: here, another function of that name does.

    pg_constraint is read with the query's snapshot, the definition with one of that moment.
    """
    ((name,),) = execute(database, "SELECT quote_ident(current_database())")
    execute(
        database,
        "ALTER TABLE runs ADD CHECK (status IN ('queued', 'running', 'completed', 'failed'));"
        " CREATE SCHEMA dropped;"
        " CREATE FUNCTION dropped.pg_get_constraintdef(oid) RETURNS text RETURN NULL::text;"
        f" ALTER DATABASE {name}"
        " SET search_path = dropped, pg_catalog, public",
    )
    ((oid,),) = execute(database, "SELECT 'runs'::regclass::oid::bigint")
    async with await connect(database, "test") as conn:
        described = await status_column(conn, int(oid), "status")
    assert described is not None
    assert described.allowed is None
    example = await look(database, Table("public", "runs"), Decoder({}, 100))
    assert example.insert == ""
    assert example.body is not None
