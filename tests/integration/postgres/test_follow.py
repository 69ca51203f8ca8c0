"""Follow: what it reports, how it reconnects, and how it finds what the stream did not deliver."""

import asyncio
import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from brain.contract.events import Changes, Event, Snapshot
from brain.contract.messages import ID, STATUS
from brain.postgres import replication
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.table import TableError
from tests.support.following import QUICK, Following, WithoutJitter, connected
from tests.support.hints import follows, paste
from tests.support.patience import PATIENCE
from tests.support.postgres import execute, running
from tests.support.template import ROLE, TEMPLATE, with_template


def sources(logs: Any) -> list[tuple[str, str]]:
    return [(line["now"], line.get("detail", "")) for line in logs if line["event"] == "source"]


# Reporting and reconnecting.


async def test_logs_one_line_per_change_of_state_and_none_per_try() -> None:
    with running() as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        with capture_logs() as logs:
            async with Following(url, "auto") as f:
                await f.source("replication")
                before = f.follow.state.heard
                await asyncio.to_thread(server.stop)  # it waits for Brain's reply
                await f.source("none")
                heard = f.follow.state.heard
                await asyncio.sleep(0.8)
                assert f.follow.state.heard == heard
                server.start()
                await f.source("replication")
        changes = sources(logs)
        assert [now for now, _ in changes[:2]] == ["poll", "replication"]
        assert changes[-1] == ("replication", "")
        gone = [detail for now, detail in changes if now == "none"]
        # A server that shuts down may refuse for several reasons; each is logged once.
        assert 1 <= len(gone) == len(set(gone)) <= 4
        assert "poll" in [now for now, _ in changes[2:]]
        assert f.follow.state.losses <= 1
        assert f.follow.state.heard > before


async def test_backs_off_from_a_server_that_accepts_connections_and_hangs_up() -> None:
    timing = replace(QUICK, back_off=WithoutJitter(first=0.01, longest=0.1))
    url = "postgresql://u@127.0.0.1:{}/d?sslmode=disable&gssencmode=disable"
    times: list[float] = []

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        writer.close()

    refusing = await asyncio.start_server(take, "127.0.0.1", 0)
    port = refusing.sockets[0].getsockname()[1]
    async with refusing, Following(url.format(port), timing=timing) as f:
        await f.until(lambda: len(times) >= 8)
    gaps = [b - a for a, b in itertools.pairwise(times[:8])]
    assert all(gap > 0.09 for gap in gaps[-2:])
    assert f.follow.state.connects == 0


async def test_starts_again_after_a_fault_in_brain(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Following(database, "auto") as f:
        await f.source("replication")
        decode = Decoder.__call__
        faults = iter([RuntimeError("a fault")])

        def fail(self: Decoder, row: Any) -> Any:
            for fault in faults:
                raise fault
            return decode(self, row)

        monkeypatch.setattr(Decoder, "__call__", fail)
        with capture_logs() as logs:
            await f.sql("INSERT INTO runs (id) VALUES ('a')")
            await f.pushed("a", "queued")
        assert "following failed" in [line["event"] for line in logs]
        details = [str(line.get("detail")) for line in logs if line["event"] == "source"]
        assert any("RuntimeError('a fault') at test_follow.py, line " in each for each in details)
        await f.source("replication")
        await f.settled()


# Promotion.


async def test_reports_a_table_that_is_dropped_during_a_promotion(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next poll finds the same; until then, this is reported."""
    f = Following(database, "auto").follow
    promotion = f._promotion

    async def promote() -> Any:
        raise TableError("there is no table")

    monkeypatch.setattr(promotion, "_promote", promote)
    promotion.start()
    await promotion.sleep(PATIENCE)
    before = asyncio.get_running_loop().time()
    assert promotion.collect() is None
    assert (f.state.source, f.state.detail) == ("poll", "there is no table")
    assert promotion.due >= before + QUICK.promote_every


async def test_leaves_no_slot_behind_when_cancelled_during_a_promotion(database: str) -> None:
    for wait in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15):
        async with Following(database, "auto") as f:
            await asyncio.sleep(wait)
        assert [
            task for task in asyncio.all_tasks() if task.get_name() in ("promotion", "watch")
        ] == []
    async with asyncio.timeout(PATIENCE):
        while execute(
            database, "SELECT FROM pg_replication_slots WHERE database = current_database()"
        ):
            await asyncio.sleep(0.02)
    assert f.follow.state.losses == 0


async def test_waits_longer_for_a_slot_with_every_try(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = replace(QUICK, slot_timeouts=(0.05, 0.1, 0.3))
    open_stream = replication.Stream.open
    waits: list[float] = []

    async def note(*args: Any, patience: float, **more: Any) -> replication.Stream:
        waits.append(patience)
        return await open_stream(*args, patience=patience, **more)

    monkeypatch.setattr(replication.Stream, "open", note)
    async with connected(database) as conn:
        await conn.execute("INSERT INTO runs (id) VALUES ('open')")
        async with Following(database, "auto", timing=timing) as f:
            await f.until(lambda: f.follow._promotion.slot_tries >= 4)
            assert waits[:5] == [0.05, 0.1, 0.3, 0.3, 0.3][: len(waits)]
            await conn.commit()
            await f.source("replication")
            assert f.follow._promotion.slot_tries == 0


async def test_withdraws_the_publication_if_the_key_is_dropped_while_a_slot_waits(
    database: str,
) -> None:
    """The promotion has checked the table, and now waits as long as some transaction writes. The
    application's UPDATEs must not fail in the meantime.
    """
    await asyncio.to_thread(execute, database, "CREATE TABLE other ()")
    async with connected(database) as conn:
        await conn.execute("INSERT INTO other DEFAULT VALUES")
        async with Following(database, "auto") as f:
            await f.source("poll")
            query = (
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'"
                " AND datname = current_database() AND wait_event_type = 'Lock'"
            )
            await f.until(lambda: bool(execute(database, query)))
            await f.sql(
                "INSERT INTO runs (id) VALUES ('a')", "ALTER TABLE runs DROP CONSTRAINT runs_pkey"
            )
            await f.until(lambda: f.follow.state.code == "replica_identity")
            assert f.follow._promotion.slot_tries == 0
            await f.sql("UPDATE runs SET status = 'running'")
            await f.pushed("a", "running")
            await f.sql("ALTER TABLE runs ADD PRIMARY KEY (id)")
            await conn.commit()
            await f.source("replication")


# Watching.


@follows("SELECT pid, usename, state, xact_start, query FROM pg_stat_activity WHERE backend_xid IS")
async def test_drops_a_slot_that_retains_too_much_log(database: str) -> None:
    """An open transaction pins it, whatever Brain confirms."""
    timing = replace(QUICK, max_wal=1 << 20)
    async with Following(database, "auto", timing=timing) as f, connected(database) as conn:
        await f.source("replication")
        await conn.execute("INSERT INTO runs (id) VALUES ('open')")
        await f.sql("CREATE TABLE other AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
        await f.source("poll")
        await f.until(lambda: "hold back" in f.follow.state.detail)
        paste(f.follow.state.hint, database)
        (found,) = await f.sql(f.follow.state.hint.partition(";")[0])
        assert found[0] == conn.info.backend_pid
        await f.sql(f"SELECT pg_terminate_backend({found[0]})")
        await f.source("replication")
        await f.settled()


async def test_a_comparison_finds_what_the_stream_did_not_deliver(database: str) -> None:
    """Although many looks in between have found nothing."""
    timing = replace(QUICK, compare_every=0.5)
    async with Following(database, "replication", timing=timing) as f:
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'running'), ('c', 'running')")
        await f.settled()
        await f.sql("INSERT INTO runs VALUES ('d', 'running')")
        await f.pushed("d", "running")
        checkpoint = f.follow._progress.checkpoint
        # As if the stream had left out an update, a delete and an insert. A comparison that is
        # under way may find some of them, and the next one the others.
        f.board._runs["a"] = (
            *f.board._runs["a"][:2],
            ("a", "queued", *f.run("a")[2:]),
            *f.board._runs["a"][3:],
        )
        f.board._forget(f.board.get("b"))
        f.board._put(("ghost", "running", *[None] * 6), 0, None, ())  # type: ignore[arg-type]
        with capture_logs() as logs:
            await f.until(lambda: f.follow._progress.checkpoint != checkpoint)
            await f.settled()
        assert {line["event"] for line in logs} == {"stream differed from the table"}
        assert f.board.corrections == 2
        assert f.pushed_statuses()[-2:] == [("a", "running"), ("b", "running")]
        assert f.follow.state.streams == 1
        # Once they agree, nothing is logged.
        with capture_logs() as logs:
            await f.sql("UPDATE runs SET status = 'failed'")
            await asyncio.sleep(0.7)
        assert logs == []


async def test_follows_partitions_that_are_attached_and_detached(database: str) -> None:
    """Runs under way in one that is attached are pushed; those of one that is detached are
    forgotten; an empty one changes nothing.
    """
    async with Following(database, "replication") as f:
        await f.sql(
            "DROP TABLE runs",
            "CREATE TABLE runs (id text, status text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
            "CREATE TABLE a PARTITION OF runs FOR VALUES FROM ('a') TO ('b')",
            "CREATE TABLE b (LIKE runs INCLUDING ALL)",
            "INSERT INTO b VALUES ('b1', 'queued'), ('b2', 'running'), ('b3', 'failed')",
            "DROP PUBLICATION brain_public_runs",
        )
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('a1', 'running')")
        await f.until(lambda: ("insert", "a1") in f.changes())
        before, pushes = len(f.events), len(f.pushes)

        async def rejoined(statement: str) -> None:
            streams = f.follow.state.streams
            await f.sql(statement)
            await f.until(lambda: f.follow.state.streams > streams)
            await f.source("replication")

        await rejoined("CREATE TABLE c PARTITION OF runs FOR VALUES FROM ('c') TO ('d')")
        assert len(f.pushes) == pushes
        await rejoined("ALTER TABLE runs ATTACH PARTITION b FOR VALUES FROM ('b') TO ('c')")
        assert f.pushed_statuses()[pushes:] == [("b1", "queued"), ("b2", "running")]
        await rejoined("ALTER TABLE runs DETACH PARTITION b")
        await f.settled()
        assert len(f.pushes) == pushes + 2
        assert not any(event.new for event in f.events[before:] if isinstance(event, Snapshot))


def leave_out(f: Following, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board forgets this run at each event, as if the stream had not delivered it."""
    apply = f.board.apply

    def forgetful(event: Event) -> Any:
        pushes = apply(event)
        if isinstance(event, Changes):
            f.board._forget(f.board.get(run_id))
        return pushes

    monkeypatch.setattr(f.board, "apply", forgetful)


@pytest.mark.parametrize("right", ["SELECT ON runs", "USAGE ON SCHEMA public"])
async def test_a_role_that_loses_its_right_to_read_the_table_streams_no_more(
    database: str, superuser_url: str, right: str
) -> None:
    """A walsender asks for REPLICATION only."""
    execute(superuser_url, "ALTER TABLE runs OWNER TO postgres; GRANT SELECT ON runs TO cecelia")
    execute(superuser_url, "ALTER SCHEMA public OWNER TO postgres")
    execute(superuser_url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    execute(superuser_url, "GRANT USAGE ON SCHEMA public TO cecelia")
    timing = replace(QUICK, compare_every=3600)
    async with Following(database, "auto", writer=superuser_url, timing=timing) as f:
        await f.source("replication")
        await f.sql(f"REVOKE {right} FROM cecelia")
        await f.source("none")
        await f.sql("INSERT INTO runs (id) VALUES ('hidden')", f"GRANT {right} TO cecelia")
        await f.source("replication")
        await f.pushed("hidden", "queued")


async def test_rows_of_a_truncated_partition_are_gone_and_nobody_can_name_the_others(
    any_database: str,
) -> None:
    """PostgreSQL streams the TRUNCATE of a whole table only. Clients that include deletes start
    over (T7 in delivery/tombstones.py).
    """
    timing = replace(QUICK, compare_every=3600)
    async with Following(any_database, "auto", timing=timing) as f:
        await f.sql(
            "DROP TABLE runs",
            "CREATE TABLE runs (id text PRIMARY KEY, status text) PARTITION BY LIST (id)",
            "CREATE TABLE old PARTITION OF runs FOR VALUES IN ('a', 'b')",
            "CREATE TABLE new PARTITION OF runs DEFAULT",
        )
        await f.source("replication")
        await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'failed'), ('c', 'running')")
        await f.until(lambda: len(f.board) == 3)
        streams, seq = f.follow.state.streams, f.board.seq
        await f.sql("TRUNCATE old")
        await f.until(lambda: "a" not in f.board)
        assert [run[ID] for run in f.buried] == ["a"]
        await f.until(lambda: f.board.dead_floor > seq and f.follow.state.streams > streams)
        assert "c" in f.board


async def test_the_next_comparison_returns_what_the_board_has_skipped(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board takes a run that it does not hold for deleted since the query. It may be wrong."""
    timing = replace(QUICK, compare_every=0.1)
    async with Following(database, "replication", timing=timing) as f:
        await f.source("replication")
        leave_out(f, "untold", monkeypatch)
        f.board.dead_floor = 1 << 60
        await f.sql("INSERT INTO runs VALUES ('untold', 'running')")
        await f.pushed("untold", "running")
        progress = f.follow._progress
        for _ in range(3):
            before = progress.checkpoint
            await f.until(lambda before=before: progress.checkpoint != before)  # type: ignore[misc]
            await f.sql("CREATE TABLE IF NOT EXISTS other ()", "INSERT INTO other DEFAULT VALUES")
        await asyncio.sleep(0.3)
        assert "untold" not in f.board
        f.board.dead_floor = 0
        await f.until(lambda: "untold" in f.board)
        assert f.follow.state.streams == 1


async def test_a_comparison_does_not_push_evicted_runs_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a board that is too small would push all that finished in a minute, every minute."""
    timing = replace(QUICK, compare_every=0.1)
    async with Following(database, "replication", timing=timing) as f:
        await f.source("replication")
        f.board._memory = 0
        await f.sql("INSERT INTO runs SELECT i, 'completed' FROM generate_series(1, 100) i")
        await f.until(lambda: len(f.pushes) == 100)
        with capture_logs() as logs:
            await asyncio.sleep(0.6)
        assert len(f.pushes) == 100
        assert f.board.corrections == 0
        assert logs == []
        # What is under way is never evicted, so a comparison still finds it.
        leave_out(f, "untold", monkeypatch)
        await f.sql("INSERT INTO runs VALUES ('untold', 'running')")
        await f.until(lambda: "untold" in f.board)


async def test_finds_a_publication_that_changes_during_a_look(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its queries: what the snapshot has seen must have been published."""
    visible = Poll.visible
    armed = False

    async def hooked(self: Poll) -> Any:
        nonlocal armed
        if armed:
            armed = False
            await f.sql("ALTER PUBLICATION brain_public_runs DROP TABLE runs")
            await f.sql("INSERT INTO runs (id) VALUES ('unpublished')")
        return await visible(self)

    async with Following(database, "replication") as f:
        await f.source("replication")
        monkeypatch.setattr(Poll, "visible", hooked)
        armed = True
        await f.pushed("unpublished", "queued")
        await f.source("replication")


async def test_a_comparison_ignores_what_the_stream_is_about_to_deliver(database: str) -> None:
    timing = replace(QUICK, watch_every=0.01, compare_every=0.01)
    async with Following(database, "replication", timing=timing) as f:
        await f.source("replication")
        await f.sql("INSERT INTO runs (id) SELECT i FROM generate_series(1, 50) i")
        with capture_logs() as logs:
            begun = time.monotonic()
            while time.monotonic() - begun < 0.5:
                await f.sql("UPDATE runs SET progress = (coalesce(progress, 0) + 1)::int % 100")
                await f.sql("DELETE FROM runs WHERE id = '7'", "INSERT INTO runs (id) VALUES ('7')")
            await f.settled()
        assert f.board.corrections == 0
        assert f.follow.state.streams == 1
        assert logs == []


@pytest.mark.parametrize("then", ["compared", "lost", "lost for good"])
async def test_a_commit_that_is_not_yet_visible_does_not_take_runs_back(then: str) -> None:
    """A synchronous standby does not answer: the stream has the commit, and no query sees it."""
    timing = replace(QUICK, compare_every=0.1 if then == "compared" else 60)
    with running() as server:
        execute(server.url(), "ALTER ROLE postgres SET synchronous_commit = local")
        with_template(server)
        execute(server.url(), f"ALTER ROLE {ROLE} SET synchronous_commit = local")
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
        execute(server.url(), "SELECT pg_reload_conf()")
        async with (
            Following(url, "replication", timing=timing) as f,
            await AsyncConnection.connect(url, autocommit=True) as conn,
        ):
            await f.source("replication")
            await f.sql("INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')")
            await f.settled()
            await conn.execute("SET synchronous_commit = on")
            query = (
                "WITH gone AS (DELETE FROM runs WHERE id = 'b')"
                " UPDATE runs SET status = 'failed' WHERE id = 'a'"
            )
            waiting = asyncio.gather(conn.execute(query), insert(url))
            try:
                await f.pushed("a", "failed")
                await f.pushed("c", "queued")
                assert [row[0] for row in await f.sql("SELECT status FROM runs ORDER BY id")] == [
                    "running"
                ] * 2
                before = len(f.pushes)
                if then != "compared":
                    await f.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
                    await f.source("poll")
                for _ in range(4):
                    await asyncio.sleep(0.15)
                    # A query sees less than the board holds.
                    assert ("a", "running") not in f.pushed_statuses()[before:]
                    assert f.run("a")[STATUS] == "failed"
                    assert "b" not in f.board
                    assert "c" in f.board
                assert f.board.corrections == 0
                if then == "lost for good":
                    # Brain gives up, and follows what a query sees.
                    await f.sql("INSERT INTO runs VALUES ('d', 'running')")
                    await f.pushed("d", "running")
            finally:
                execute(server.url(), "ALTER SYSTEM SET synchronous_standby_names = ''")
                execute(server.url(), "SELECT pg_reload_conf()")
                await waiting
            await f.source("replication")
            await f.settled()
            # Given up, a poll may read 'a' as it was: if no look has moved the checkpoint past it.
            assert then == "lost for good" or ("a", "running") not in f.pushed_statuses()[before:]


async def insert(url: str) -> None:
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute("SET synchronous_commit = on")
        await conn.execute("INSERT INTO runs (id) VALUES ('c')")


# Values that were not sent.


async def test_fetches_unsent_values_of_runs_that_the_board_does_not_hold(database: str) -> None:
    """A run that has been deleted since stays incomplete."""
    async with Following(database, "poll") as f:
        await f.sql(
            "ALTER TABLE runs ALTER error SET STORAGE EXTERNAL",
            "INSERT INTO runs (id, status, error)"
            " SELECT i, 'completed', repeat('x', 5000) FROM generate_series(1, 3) i",
        )
    async with Following(database, "replication") as f:
        await f.source("replication")
        await f.sql(
            "BEGIN",
            "UPDATE runs SET status = 'failed'",
            "DELETE FROM runs WHERE id = '1'",
            "COMMIT",
        )
        await f.settled()
        errors = {run[ID]: run[7] for run in f.pushes if run[STATUS] == "failed"}
        # A commit is in the stream a little before a query sees it: then "1" is still there.
        assert errors.pop("1") in (None, "x" * 5000)
        assert errors == {"2": "x" * 5000, "3": "x" * 5000}
