"""The slot, what arrives through it, and the replies: over real connections, some by a proxy."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
import psycopg
import pytest

from brain.contract.events import Changes
from brain.contract.messages import CUT, ID
from brain.delivery.board import Board
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import LSN
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.replication import Stream, StreamLost
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import describe
from brain.postgres.timing import StreamTiming
from brain.postgres.transactions import SLICE, Transactions
from tests.support.following import QUICK, RUNS, Following, connected, slots_gone
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute, running
from tests.support.proxy import Proxy
from tests.support.template import ROLE, TEMPLATE, with_template

ALERT = StreamTiming(status_every=0.05, ask_every=0.1, dead_after=0.5, idle=0.05)
"""Notices within half a second that nothing arrives."""


@asynccontextmanager
async def opened(
    url: str, *, patience: float = 5, timing: StreamTiming | None = None
) -> AsyncIterator[Stream]:
    """A slot that exists and has not started."""
    conn = await connect(url, "brain")
    async with conn:
        description = await describe(conn, RUNS)
    stream = await Stream.open(
        url,
        RUNS,
        description,
        Decoder({}, 1000),
        application="brain",
        patience=patience,
        timing=timing or StreamTiming(),
    )
    try:
        yield stream
    finally:
        await stream.close()
        with contextlib.suppress(psycopg.OperationalError):
            await slots_gone(url)


@asynccontextmanager
async def streaming(url: str, timing: StreamTiming | None = None) -> AsyncIterator[Stream]:
    async with opened(url, timing=timing) as stream:
        conn = await connect(url, "brain")
        async with conn:
            poll = Poll(conn, RUNS, Decoder({}, 1000), Board(1 << 20), Progress())
            await stream.start(await poll.visible(), await poll.insert_lsn())
        yield stream


async def until(stream: Stream, run_id: str) -> list[Changes]:
    """Read until this run has arrived."""
    taken: list[Changes] = []
    async with asyncio.timeout(PATIENCE):
        while not taken or taken[-1].rows[-1][1][ID] != run_id:
            taken += await stream.read()
    return taken


# Reading.


async def test_reads_a_large_transaction_in_slices_and_bounded_memory(database: str) -> None:
    rows = 60_000
    async with streaming(database) as stream:
        process = psutil.Process()
        before = most = process.memory_info().rss
        writing = asyncio.create_task(
            asyncio.to_thread(
                execute,
                database,
                "INSERT INTO runs (id, error)"
                f" SELECT i, repeat('x', 100) FROM generate_series(1, {rows}) i",
            )
        )
        seen, xids, longest = 0, set(), 0
        async with asyncio.timeout(PATIENCE):
            while seen < rows:
                for changes in await stream.read():
                    seen += len(changes.rows)
                    longest = max(longest, len(changes.rows))
                    xids.add(changes.xid)
                most = max(most, process.memory_info().rss)
        await writing
        assert len(xids) == 1
        assert longest <= SLICE
        assert most - before < 30 << 20


async def test_ignores_other_tables(database: str) -> None:
    execute(database, "CREATE TABLE other (id text PRIMARY KEY, m text)")
    execute(database, "ALTER PUBLICATION brain_public_runs ADD TABLE other")
    execute(database, "CREATE TYPE mood AS ENUM ('fine')")
    execute(database, "ALTER TABLE runs ADD mood mood")
    async with streaming(database) as stream:
        execute(database, "INSERT INTO other VALUES ('o')")
        execute(database, "UPDATE other SET m = 'x'")
        execute(database, "TRUNCATE other")
        execute(database, "INSERT INTO runs (id, mood) VALUES ('a', 'fine')")
        execute(database, "TRUNCATE other, runs")
        execute(database, "INSERT INTO runs (id) VALUES ('b')")
        taken = await until(stream, "b")
        assert [[(op, run[ID]) for op, run in changes.rows] for changes in taken] == [
            [("insert", "a")],
            [("truncate", "")],
            [("insert", "b")],
        ]


async def test_leaves_out_a_transaction_that_the_last_poll_has_seen(database: str) -> None:
    async with opened(database) as stream, connected(database) as held:
        await held.execute("INSERT INTO runs (id) VALUES ('held')")
        execute(database, "INSERT INTO runs (id) VALUES ('seen')")
        conn = await connect(database, "brain")
        async with conn:
            poll = Poll(conn, RUNS, Decoder({}, 1000), Board(1 << 20), Progress())
            visible = await poll.visible()
            execute(database, "INSERT INTO runs (id) VALUES ('between')")
            await held.commit()
            await stream.start(visible, await poll.insert_lsn())
        execute(database, "INSERT INTO runs (id) VALUES ('after')")
        taken = await until(stream, "after")
        assert [run[ID] for changes in taken for _, run in changes.rows] == [
            "between",
            "held",
            "after",
        ]


async def test_reads_less_often_while_nobody_waits(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: set[tuple[bool, bool]] = set()
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds > 0:
            slept.add((stream.watched(), seconds <= 100))
        await sleep(0)

    async with streaming(database, StreamTiming(gulp=100, unwatched_gulp=1000)) as stream:
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        await until(stream, "a")
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "sleep", noted)
            for run_id, watched in (("b", True), ("c", False), ("d", True)):
                stream.watched = lambda watched=watched: watched  # type: ignore[misc]
                execute(database, f"INSERT INTO runs (id) VALUES ('{run_id}')")
                await until(stream, run_id)
        assert slept == {(True, True), (False, False)}


async def test_a_huge_text_is_cut_as_a_query_cuts_it(database: str) -> None:
    async with Following(database, "replication", max_text=1000) as f:
        await f.source("replication")
        await f.sql(
            "INSERT INTO runs (id, error) VALUES ('a', repeat('😀', 1000000))",
            "INSERT INTO runs (id, error) VALUES ('b', 'short')",
        )
        await f.pushed("b", "queued")
        (pushed,) = (run for run in f.pushes if run[ID] == "a")
        assert pushed[7] == "😀" * 1000 + CUT
        assert f.decoder.corrected == 0


async def test_a_value_that_was_not_sent_is_what_it_was_then_whatever_came_with_it(
    database: str,
) -> None:
    execute(database, "ALTER TABLE runs ALTER error SET STORAGE EXTERNAL")
    async with Following(database, "replication") as f:
        await f.source("replication")
        # Nothing of Brain's runs between these, so that one read brings all of them.
        execute(database, "INSERT INTO runs (id, error) VALUES ('a', repeat('1', 9000))")
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'a'")
        execute(database, "UPDATE runs SET status = 'failed', error = repeat('2', 9000)")
        await f.pushed("a", "failed")
        assert [(run[1], str(run[7])[:1]) for run in f.pushes] == [
            ("queued", "1"),
            ("running", "1"),
            ("failed", "2"),
        ]


async def test_loses_the_stream_at_bytes_that_are_no_message(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Transactions.feed
    monkeypatch.setattr(Transactions, "feed", lambda self, data, _: feed(self, b"S" + data, 0))
    async with streaming(database) as stream:
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        with pytest.raises(StreamLost, match="not a pgoutput message"):
            await until(stream, "a")


# Replying.


async def test_confirms_the_log_of_other_tables(database: str) -> None:
    timing = StreamTiming(status_every=0.05, ask_every=0.1, idle=0.02)
    confirmed = (
        "SELECT pg_wal_lsn_diff('{}', confirmed_flush_lsn) <= 0"
        " FROM pg_replication_slots WHERE database = current_database()"
    )
    execute(database, "CREATE TABLE other (t text)")
    async with streaming(database, timing) as stream:
        for _ in range(3):
            execute(
                database,
                "INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 1000)",
            )
            ((lsn,),) = execute(database, "SELECT pg_current_wal_insert_lsn()")
            async with asyncio.timeout(PATIENCE):
                while execute(database, confirmed.format(lsn)) != [(True,)]:
                    assert await stream.read() == []


async def test_replies_to_a_server_that_asks(database: str) -> None:
    """Here Brain sends nothing unasked. The walsender ends a connection that does not reply."""
    timing = StreamTiming(sender_timeout=0.5, idle=0.02, status_every=60)
    async with streaming(database, timing) as stream:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.8:
            await stream.read()
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        await until(stream, "a")


async def test_a_busy_reader_keeps_the_stream(database: str) -> None:
    timing = StreamTiming(sender_timeout=0.5, status_every=0.1)
    async with streaming(database, timing) as stream:
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        await asyncio.sleep(0.8)
        await until(stream, "a")


@pytest.mark.parametrize("busy", [False, True])
async def test_a_server_shuts_down_without_waiting_for_brain(busy: bool) -> None:
    with running() as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        async with streaming(url) as stream:
            execute(url, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 5000) i")
            reading = asyncio.create_task(until(stream, "never"))
            await asyncio.sleep(0.2)
            if busy:  # for a second, in which it replies; then it reads on
                reading.cancel()
                await asyncio.sleep(1)
                reading = asyncio.create_task(until(stream, "never"))
            await asyncio.to_thread(server.stop, "fast")
            with contextlib.suppress(asyncio.CancelledError, StreamLost):
                await reading


# Ending.


async def test_reports_why_the_server_ends_the_stream(database: str) -> None:
    async with streaming(database) as stream:
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        execute(
            database,
            "SELECT pg_terminate_backend(active_pid, 5000)"
            " FROM pg_replication_slots WHERE database = current_database()",
        )
        assert (await stream.read())[0].rows[0][1][ID] == "a"
        with pytest.raises(StreamLost, match="terminating connection due to administrator command"):
            await stream.read()


async def test_reports_an_error_of_the_plugin() -> None:
    """Before PostgreSQL 18, a missing publication is one."""
    with running(16) as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        async with streaming(url) as stream:
            execute(url, "DROP PUBLICATION brain_public_runs")
            execute(url, "INSERT INTO runs (id) VALUES ('a')")
            with pytest.raises(StreamLost, match='publication "brain_public_runs" does not exist'):
                await until(stream, "a")


async def test_a_stream_that_cannot_start_is_lost(database: str) -> None:
    async with opened(database) as stream:
        stream.slot = "another"
        with pytest.raises(StreamLost, match="does not exist"):
            await stream.start(PgSnapshot(3, 3, frozenset()), LSN(1))


async def test_a_silent_stream_is_lost(database: str) -> None:
    with Proxy(database) as proxy:
        await _lost(proxy, database)


async def _lost(proxy: Proxy, database: str) -> None:
    async with streaming(proxy.url, ALERT) as stream:
        # A server that is merely idle is not dead: Brain asks, and it replies.
        begun = time.monotonic()
        while time.monotonic() - begun < 0.7:
            await stream.read()
        proxy.fall_silent()
        execute(database, "INSERT INTO runs (id) VALUES ('a')")
        with pytest.raises(StreamLost, match="nothing was heard"):
            await until(stream, "a")
        proxy.speak()


async def test_follows_a_server_that_was_silent(database: str) -> None:
    with Proxy(database) as proxy:
        await _followed_again(proxy, database)


async def _followed_again(proxy: Proxy, database: str) -> None:
    timing = replace(QUICK, stream=ALERT)
    async with Following(proxy.url, "auto", writer=database, timing=timing) as f:
        await f.source("replication")
        proxy.fall_silent()
        await f.sql("INSERT INTO runs (id) VALUES ('a')")
        await f.source("none")  # the ordinary connection takes the same route
        assert "nothing was heard" in f.follow.state.detail
        proxy.speak()
        await f.pushed("a", "queued")
        await f.source("replication")
        assert f.pushed_statuses() == [("a", "queued")]


async def left(url: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(
        execute,
        url,
        "SELECT pid, state, query FROM pg_stat_activity"
        " WHERE backend_type = 'walsender' AND datname = current_database()"
        " UNION ALL SELECT 0, slot_name, ''"
        " FROM pg_replication_slots WHERE database = current_database()",
    )


async def test_a_cancelled_slot_leaves_nothing_behind(database: str) -> None:
    async with connected(database) as conn:
        await conn.execute("INSERT INTO runs (id) VALUES ('open')")

        async def open_() -> None:
            async with opened(database, patience=60):
                raise AssertionError

        opening = asyncio.create_task(open_())
        while not [row for row in await left(database) if "CREATE_REPLICATION_SLOT" in row[2]]:
            await asyncio.sleep(0.02)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(PATIENCE):
            while await left(database):
                await asyncio.sleep(0.02)
        await conn.execute("SELECT")  # the transaction that it waited for is still open
        # A slot that has waited for too long ends as cleanly.
        with pytest.raises(psycopg.errors.LockNotAvailable):
            async with opened(database, patience=0.1):
                raise AssertionError
        async with asyncio.timeout(PATIENCE):
            while await left(database):
                await asyncio.sleep(0.02)


async def test_these_tests_leave_no_slot_on_the_shared_server(postgres: Postgres) -> None:
    assert execute(postgres.url(), "SELECT slot_name FROM pg_replication_slots") == []


async def test_a_stream_is_closed_though_the_wait_for_its_watch_is_cancelled(database: str) -> None:
    """The watch waits for a backend that does not answer, not even to a cancellation."""
    async with Following(database, "auto") as f:
        await f.source("replication")
        ((pid,),) = await f.sql(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'brain' AND backend_type = 'client backend'"
        )
        backend = psutil.Process(int(pid))
        backend.suspend()
        try:
            await asyncio.sleep(10 * QUICK.check_every)  # a check waits
            for _ in range(2):
                f._task.cancel()
                await asyncio.sleep(0.05)  # it has come to a wait
            await slots_gone(database)
        finally:
            backend.resume()
