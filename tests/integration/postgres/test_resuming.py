"""What a Follow records of the table, and when it takes it for another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.contract.events import Resumed, Snapshot
from brain.delivery.board import Board
from brain.delivery.log import FACETS
from brain.delivery.tombstones import ANYTHING
from brain.postgres.follow import Follow
from brain.postgres.polling import Mode
from brain.postgres.records import Records
from brain.postgres.table import Table
from tests.support.following import Following, connected
from tests.support.hints import follows, paste
from tests.support.postgres import execute

RENAME = "ALTER TABLE runs RENAME {} TO {}"


@asynccontextmanager
async def recorded(
    url: str, folder: Path, mode: Mode = "poll", *, max_rows: int = 1000, **options: Any
) -> AsyncIterator[Following]:
    """A Following whose records outlive it."""
    records = Records(folder, max_rows=max_rows)
    records._apart = 0
    f = Following(url, mode, **options)
    f.board = Board(1 << 30, remember=records.remember)
    f.follow = Follow(
        url,
        f.table,
        f.decoder,
        f.board,
        mode=mode,
        interval=0.01,
        application="brain",
        timing=f.follow._timing,
        records=records,
    )
    with contextlib.closing(records):
        async with f:
            await f.source()
            yield f


def records(f: Following) -> Records:
    return f.follow._progress.records


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def resumed(f: Following) -> Resumed:
    (event,) = [event for event in f.events if isinstance(event, Resumed)]
    return event


async def test_the_time_of_a_record_is_that_of_the_last_change(
    any_database: str, tmp_path: Path
) -> None:
    """Another table is busy, so that polls move the board's time and the horizon."""
    async with recorded(any_database, tmp_path) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running')", "CREATE TABLE other (id int)")
        await f.pushed("a", "running")
        await f.until(lambda: records(f)._list[-1].time == f.board.last_time)
        before = f.board.time, records(f)._list[-1].xmin
        for _ in range(20):
            await f.sql("INSERT INTO other VALUES (1)")
            await asyncio.sleep(0.01)
        await f.until(lambda: records(f)._list[-1].xmin > before[1] and f.board.time > before[0])
        assert records(f)._list[-1].time == f.board.last_time <= before[0]


async def test_a_mark_of_the_stream_makes_a_record(any_database: str, tmp_path: Path) -> None:
    async with recorded(any_database, tmp_path, "auto") as f:
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        ((xid,),) = await f.sql("SELECT xmin::text::bigint FROM runs")
        await f.pushed("a", "running")
        await f.until(lambda: records(f)._list[-1].xmin > int(xid))
        assert records(f)._list[-1].time == f.board.last_time
        await f.until(lambda: f.follow._progress.durable is not None)


async def test_the_first_look_finds_what_changed_since_and_what_is_unfinished(
    any_database: str, tmp_path: Path
) -> None:
    """Also what a transaction, or its savepoint, wrote that was open before the restart."""
    async with recorded(any_database, tmp_path) as f, connected(any_database) as holder:
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'completed'), ('c', 'failed')")
        await f.settled()
        async with holder.transaction():
            await holder.execute("UPDATE runs SET progress = 1 WHERE id = 'c'")
            async with holder.transaction():
                await holder.execute("UPDATE runs SET progress = 1 WHERE id = 'b'")
            await f.sql("INSERT INTO runs VALUES ('d', 'completed')")
            await f.pushed("d", "completed")
            time = f.board.time
            await f.stop()
            records(f).close()
    async with recorded(any_database, tmp_path) as f:
        event = resumed(f)
        assert {run[0] for _, run in event.changed} >= {"b", "c", "d"}
        assert event.at >= time
        seq = f.board.since(time)
        assert seq is not None
        assert f.board.log.piece(seq, f.board.seq, None)[0].count(b'"progress":1') == 2
        await f.sql("UPDATE runs SET progress = 2 WHERE id = 'a'")
        await f.pushed("a", "running")


async def test_a_run_that_left_the_contract_before_the_restart_may_have_been_running(
    any_database: str, tmp_path: Path
) -> None:
    async with recorded(any_database, tmp_path) as f:
        await f.sql(
            "ALTER TABLE runs DROP CONSTRAINT runs_status_check",
            "INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')",
        )
        await f.settled()
        await f.sql("UPDATE runs SET status = 'paused' WHERE id = 'a'")
        await f.until(lambda: "a" not in f.board)
        await f.stop()
        records(f).close()
    execute(any_database, "UPDATE runs SET status = 'paused' WHERE id = 'b'")
    async with recorded(any_database, tmp_path) as f:
        assert set(resumed(f).left) == {"a", "b"}
        assert len(f.board) == 0
        await f.sql("UPDATE runs SET status = 'completed'")
        for run_id in ("a", "b"):
            await f.pushed(run_id, "completed")
            entry = f.board.get(run_id)
            assert entry is not None
            assert set(entry[FACETS]) > set(ANYTHING)


async def test_a_rewritten_table_is_loaded_in_part_or_not_at_all(
    database: str, tmp_path: Path
) -> None:
    """Each of its rows has a new transaction, and memory is bounded."""
    async with recorded(database, tmp_path) as f:
        await f.sql(
            "INSERT INTO runs (id, status) SELECT i, 'completed' FROM generate_series(1, 50) i"
        )
        await f.sql("INSERT INTO runs (id, status) VALUES ('a', 'running')")
        await f.settled()
        await f.stop()
    await f.sql("UPDATE runs SET progress = 3")
    await f.hang_up()
    async with recorded(database, tmp_path, max_rows=20) as f:
        first = f.events[0]
        assert isinstance(first, Snapshot)
        assert [run[0] for run in first.rows] == ["a"]
        assert f.board.since(first.at - 1) is None
        await f.until(lambda: len(records(f)) == 1)


@pytest.mark.parametrize(
    ("statements", "options"),
    [
        (["DROP TABLE runs", "CREATE TABLE runs (id text PRIMARY KEY, status text)"], {}),
        ([RENAME.format("agent", "x"), RENAME.format("task_id", "agent")], {}),
        (["ALTER TABLE runs DROP agent", "ALTER TABLE runs ADD agent text DEFAULT 'y'"], {}),
        (["ALTER TABLE runs ALTER agent TYPE varchar(9)"], {}),
        (["CREATE TABLE part () INHERITS (runs)"], {}),
        ([], {"max_text": 100}),
        ([], {"statuses": {"paused": "queued"}}),
    ],
    ids=["table", "names", "column", "type", "partition", "max_text", "statuses"],
)
async def test_what_makes_another_table_of_it_starts_new_records(
    database: str, tmp_path: Path, statements: list[str], options: dict[str, Any]
) -> None:
    async with recorded(database, tmp_path) as f:
        time = f.board.time
        await f.stop()
        await f.sql("INSERT INTO runs (id, status) VALUES ('z', 'running')", *statements)
    async with recorded(database, tmp_path, **options) as f:
        assert isinstance(f.events[0], Snapshot)
        assert f.board.since(time) is None
        await f.until(lambda: len(records(f)) > 0)
        time = f.board.time
    async with recorded(database, tmp_path, **options) as f:
        assert resumed(f).at > time
        assert f.board.since(time) is not None


async def test_row_security_has_no_records(
    database: str, superuser_url: str, tmp_path: Path
) -> None:
    """A policy may ask other tables, so a row may appear that nobody wrote."""
    execute(
        superuser_url,
        "ALTER TABLE runs ENABLE ROW LEVEL SECURITY; ALTER TABLE runs FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY p ON runs USING (true)",
    )
    async with recorded(database, tmp_path) as f:
        await f.sql("INSERT INTO runs (id, status) VALUES ('z', 'running')")
        await f.pushed("z", "running")
        assert "row security" in records(f).detail
        assert files(tmp_path) == []


async def test_a_view_has_no_records(database: str, tmp_path: Path) -> None:
    view = Table("public", "seen")
    execute(database, "CREATE VIEW seen AS SELECT * FROM runs")
    async with recorded(database, tmp_path, table=view) as f:
        assert records(f).detail == "a view has no xmin"
        assert files(tmp_path) == []


@follows("GRANT EXECUTE ON FUNCTION pg_control_system() TO {};")
async def test_a_server_that_is_not_identified_has_no_records(
    database: str, superuser_url: str, tmp_path: Path
) -> None:
    execute(superuser_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    with capture_logs() as logs:
        async with recorded(database, tmp_path) as f:
            assert "identifies the server" in records(f).detail
            assert files(tmp_path) == []
    (line,) = [line for line in logs if "identifies" in line.get("detail", "")]
    paste(line["hint"], superuser_url)
    async with recorded(database, tmp_path) as f:
        await f.until(lambda: len(records(f)) > 0)


@pytest.mark.parametrize("mode", ["poll", "auto"])
@pytest.mark.parametrize(
    "statements",
    [
        [
            RENAME.format("agent", "x"),
            RENAME.format("task_id", "agent"),
            RENAME.format("x", "task_id"),
        ],
        ["ALTER TABLE runs DROP agent", "ALTER TABLE runs ADD agent text DEFAULT 'another'"],
    ],
    ids=["two columns swap their names", "a column is dropped and added"],
)
async def test_another_column_of_the_name_is_another_table(
    any_database: str, mode: Mode, statements: list[str]
) -> None:
    """No row is written again, and the types are the same."""
    async with Following(any_database, mode) as f:
        await f.source("poll" if mode == "poll" else "replication")
        await f.sql(
            "INSERT INTO runs (id, status, task_id, agent) VALUES ('a', 'running', 't', 'x')"
        )
        await f.pushed("a", "running")
        await f.sql(f"BEGIN; {'; '.join(statements)}; COMMIT")
        await f.until(lambda: any(snapshot.new for snapshot in f.snapshots()))
        await f.settled()
