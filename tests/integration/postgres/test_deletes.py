"""What a source says of deletes, and where it says that they may be unknown (T7, T9)."""

import asyncio
from dataclasses import replace

import psycopg
import pytest

from brain.contract.events import Changes, Event, Snapshot
from brain.contract.messages import ID
from brain.postgres.unavailable import StreamUnavailable
from tests.support.following import QUICK, Following, connected
from tests.support.patience import PATIENCE


def ops(f: Following) -> list[tuple[str, str]]:
    return [
        (op, run[ID]) for event in f.events if isinstance(event, Changes) for op, run in event.rows
    ]


def marks(events: list[Event]) -> list[int]:
    """The indices of the Snapshots before which deletes may be unknown."""
    return [
        i for i, each in enumerate(events) if isinstance(each, Snapshot) and each.deletes_unknown
    ]


async def test_an_update_of_the_id_is_a_delete_and_an_insert(any_database: str) -> None:
    async with Following(any_database) as f:
        await f.sql("INSERT INTO runs (id, status, agent) VALUES ('a', 'running', 'x')")
        await f.source()
        await f.sql("UPDATE runs SET id = 'b' WHERE id = 'a'")
        await f.pushed("b", "running")
        assert ops(f) == [("delete", "a"), ("insert", "b")]
        assert [run[:2] for run in f.buried] == [("a", "deleted")]
        # What was not to be shown is not told to be deleted.
        await f.sql("ALTER TABLE runs DROP CONSTRAINT runs_id_check", "UPDATE runs SET id = ''")
        await f.until(lambda: ops(f)[2:] == [("delete", "b")])
        await f.sql("UPDATE runs SET id = 'c'")
        await f.pushed("c", "running")
        await f.sql("UPDATE runs SET id = repeat('x', 1025)", "DELETE FROM runs")
        await f.sql("INSERT INTO runs (id) VALUES ('end')")
        await f.pushed("end", "queued")
        assert ops(f)[3:] == [("insert", "c"), ("delete", "c"), ("insert", "end")]


async def test_a_stream_begins_with_a_mark_that_deletes_may_be_unknown(any_database: str) -> None:
    async with Following(any_database, "auto") as f:
        for streams in (1, 2):
            await f.until(lambda: f.follow.state.streams == streams)  # noqa: B023
            await f.source("replication")
            await f.sql(f"INSERT INTO runs (id) VALUES ('{streams}')")
            await f.pushed(str(streams), "queued")
            assert len(marks(f.events)) == streams, "once for each stream"
            *_, changes = (i for i, each in enumerate(f.events) if isinstance(each, Changes))
            assert marks(f.events)[-1] < changes
            await terminate(any_database)


async def test_the_first_look_joins_the_stream(any_database: str) -> None:
    """So nobody has loaded anything before it, and nobody has to load again when it begins."""
    timing = replace(QUICK, stream_first=PATIENCE)
    async with Following(any_database, "auto", timing=timing) as f:
        await f.sql("INSERT INTO runs (id) VALUES ('before')")
        await f.source("replication")
        assert marks(f.events) == [0], "one Snapshot, which is that of the join"
        assert f.board.dead_floor == 0
        await f.sql("INSERT INTO runs (id) VALUES ('behind')")
        await f.pushed("behind", "queued")


async def test_the_first_look_does_not_wait_for_a_slot_that_is_blocked(any_database: str) -> None:
    async with connected(any_database) as conn:
        await conn.execute("INSERT INTO runs (id) VALUES ('open')")
        timing = replace(QUICK, stream_first=0.05)
        async with Following(any_database, "auto", timing=timing) as f:
            await f.source("poll")
            assert marks(f.events) == []
            assert f.follow.state.code == "preparing"
            await conn.commit()
            await f.source("replication")
            assert len(marks(f.events)) == 1
            assert f.board.dead_floor > 0, "what was loaded before may hold deleted rows"


async def test_the_first_look_does_not_wait_for_a_stream_that_is_refused(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise StreamUnavailable("not now", code="slots")

    monkeypatch.setattr("brain.postgres.promotion.ensure_publication", refuse)
    timing = replace(QUICK, stream_first=10 * PATIENCE)  # longer than the test waits
    async with Following(database, "auto", timing=timing) as f:
        await f.source("poll")
        await f.until(lambda: f.follow.state.code == "slots")


async def terminate(url: str) -> None:
    """End the walsender: its role may."""

    def run() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE database = current_database()"
            )

    await asyncio.to_thread(run)


async def test_a_lost_stream_that_cannot_be_joined_again_leaves_a_mark(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; and a poll that never followed a stream has none."""
    async with Following(database, "auto", timing=replace(QUICK, promote_every=0.02)) as f:
        await f.source("replication")
        joined = len(marks(f.events))

        async def refuse(*_: object) -> None:
            raise StreamUnavailable("not now", code="slots")

        monkeypatch.setattr("brain.postgres.promotion.ensure_publication", refuse)
        await terminate(database)
        await f.source("poll")
        await f.until(lambda: f.follow.state.code == "slots")
        for i in range(5):
            await f.sql(f"INSERT INTO runs (id) VALUES ('{i}')")
            await f.pushed(str(i), "queued")
        assert len(marks(f.events)) == joined + 1
    async with Following(database, "poll") as f:
        await f.source()
        await f.sql("DELETE FROM runs", "INSERT INTO runs (id) VALUES ('end')")
        await f.pushed("end", "queued")
        assert marks(f.events) == []
        assert {run[ID] for run in f.buried} == set("01234"), "they were active"
