"""One poll finds everything that changed since the checkpoint, once, whatever transactions are
open.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from brain.contract.events import Event, Snapshot
from brain.contract.messages import ID, STATUS, Run, Status
from brain.delivery.board import Board
from brain.delivery.log import RUN
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import TableError
from brain.postgres.timing import PollTiming
from tests.support.following import RUNS, connected, held
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute, running
from tests.support.proxy import Proxy
from tests.support.template import ROLE, TEMPLATE

Writer = AsyncConnection[TupleRow]


def snapshot(event: Event) -> Snapshot:
    assert isinstance(event, Snapshot)
    return event


class Reader:
    """A poll that fills a board, and keeps the pieces of its last answer."""

    def __init__(self, poll: Poll, board: Board) -> None:
        self.poll = poll
        self.board = board
        self.pieces: list[Snapshot] = []

    async def read(self) -> list[Run]:
        """The rows of one answer."""
        self.pieces = [snapshot(piece) async for piece in self.poll.read()]
        for piece in self.pieces:
            self.board.apply(piece)
        return [run for piece in self.pieces for run in piece.rows]

    async def ids(self) -> list[str]:
        return sorted(run[ID] for run in await self.read())


@asynccontextmanager
async def reading(
    url: str,
    board: Board | None = None,
    checkpoint: Checkpoint | None = None,
    *,
    timing: PollTiming | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncIterator[Reader]:
    conn = await connect(url, "brain")
    async with conn:
        board = board or Board(1 << 30)
        poll = Poll(
            conn,
            RUNS,
            Decoder({}, 1000),
            board,
            Progress(checkpoint),
            timing=timing or PollTiming(),
            clock=clock,
        )
        await poll.read_catalog()
        yield Reader(poll, board)


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[Writer]:
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


# The horizon.


async def test_the_first_poll_finds_what_is_queued_or_running(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute(
            "INSERT INTO runs VALUES"
            " ('a', 'queued'), ('b', 'running'), ('c', 'completed'), ('d', 'failed')"
        )
        assert await reader.ids() == ["a", "b"]
        assert await reader.read() == []
        await writer.execute("UPDATE runs SET progress = 1 WHERE id IN ('a', 'd')")
        assert await reader.ids() == ["a", "d"]


async def test_a_word_of_status_may_contain_any_character(database: str) -> None:
    async with writing(database) as writer:
        await writer.execute("ALTER TABLE runs DROP CONSTRAINT runs_status_check")
        await writer.execute(
            "INSERT INTO runs VALUES ('a', '50%s'), ('b', '%'), ('c', 'it''s \\'), ('d', 'other')"
        )
        words: dict[str, Status] = {"50%s": "running", "%": "queued", "it's \\": "running"}
        async with await connect(database, "brain-test") as conn:
            poll = Poll(conn, RUNS, Decoder(words, 1000), Board(1 << 20), Progress())
            await poll.read_catalog()
            rows = [run async for piece in poll.read() for run in snapshot(piece).rows]
            assert sorted(run[:2] for run in rows) == [
                ("a", "running"),
                ("b", "queued"),
                ("c", "running"),
            ]


async def test_the_first_poll_finds_what_became_of_runs_that_the_board_holds(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute(
            "INSERT INTO runs VALUES ('a', 'queued'), ('b', 'running'), ('c', 'running')"
        )
        await reader.read()
        await writer.execute("UPDATE runs SET status = 'failed' WHERE id = 'b'")
        await writer.execute("DELETE FROM runs WHERE id = 'c'")
        async with reading(database, reader.board) as again:
            assert await again.ids() == ["a", "b"]
            assert again.pieces[-1].gone == ["c"]


async def test_returns_nothing_twice_while_an_open_transaction_holds_the_horizon(
    database: str,
) -> None:
    async with (
        writing(database) as writer,
        reading(database) as reader,
        connected(database) as holder,
    ):
        await writer.execute("INSERT INTO runs (id) SELECT i FROM generate_series(1, 20) i")
        assert len(await reader.read()) == 20
        await holder.execute("UPDATE runs SET progress = 1 WHERE id = '1'")
        for i in range(2, 12):
            async with (
                writer.transaction(),
                writer.transaction(),
            ):  # the inner one is a savepoint with an id of its own
                await writer.execute("UPDATE runs SET progress = 2 WHERE id = %s", [str(i)])
            assert await reader.ids() == [str(i)]
        assert await reader.read() == []
        # A new version of one of them.
        await writer.execute("UPDATE runs SET progress = 3 WHERE id = '5'")
        assert [run[:3] for run in await reader.read()] == [("5", "queued", 3)]
        assert reader.poll.progress.checkpoint is not None
        assert len(reader.poll.progress.checkpoint.versions) == 10
        await holder.commit()
        assert await reader.ids() == ["1"]
        await writer.execute("UPDATE runs SET progress = 4 WHERE id = '2'")
        assert await reader.ids() == ["2"]
        assert len(reader.poll.progress.checkpoint.versions) == 0


async def test_reads_what_was_open_at_the_checkpoint_once_it_is_committed(database: str) -> None:
    """Rows of subtransactions and of prepared transactions too; also over another connection."""
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(writing(database))
        reader = await stack.enter_async_context(reading(database))
        await writer.execute("INSERT INTO runs (id) VALUES ('a'), ('b'), ('c')")
        await reader.read()
        holder = await stack.enter_async_context(connected(database))
        async with holder.transaction():
            await holder.execute("UPDATE runs SET progress = 1 WHERE id = 'a'")
            async with holder.transaction():
                await holder.execute("UPDATE runs SET progress = 1 WHERE id = 'b'")
            await writer.execute("BEGIN")
            await writer.execute("UPDATE runs SET progress = 1 WHERE id = 'c'")
            await writer.execute("PREPARE TRANSACTION 'brain poll'")
            await writer.execute("INSERT INTO runs (id) VALUES ('later')")
            assert await reader.ids() == ["later"]
        await writer.execute("COMMIT PREPARED 'brain poll'")
        again = await stack.enter_async_context(
            reading(database, reader.board, reader.poll.progress.checkpoint)
        )
        assert await again.ids() == ["a", "b", "c"]


@pytest.mark.skipif(
    "BRAIN_WRAPAROUND" not in os.environ, reason="takes ten seconds: BRAIN_WRAPAROUND=1 pytest"
)
async def test_no_row_is_lost_across_a_real_wraparound() -> None:
    """After 4 294 967 295 `xmin` starts again at 3. A comparison of numbers would fail there."""
    with running() as server:
        execute(server.url(), "CREATE TABLE runs (id text PRIMARY KEY, status text)")
        for xid in (1_500_000_000, 3_000_000_000, 2**32 - 64):
            server.program(
                "vacuumdb",
                "--all",
                "--freeze",
                "-q",
                "-U",
                "postgres",
                "-h",
                "127.0.0.1",
                "-p",
                str(server.port),
            )
            execute(server.url(), "CHECKPOINT")
            server.stop()
            page = server.data / "pg_xact" / f"{xid // (8192 * 4 * 32):04X}"
            page.write_bytes(bytes(32 * 8192))
            page.chmod(0o666)
            server.program("pg_resetwal", "-f", "-x", str(xid), str(server.data))
            server.start()
        async with (
            writing(server.url()) as writer,
            reading(server.url()) as reader,
            connected(server.url()) as holder,
        ):
            await reader.read()
            await holder.execute("INSERT INTO runs VALUES ('before', 'running')")
            seen: list[str] = []
            for i in range(100):
                await writer.execute("INSERT INTO runs VALUES (%s, 'running')", [str(i)])
                seen += await reader.ids()
            await holder.commit()
            seen += await reader.ids()
            assert sorted(seen) == sorted([*map(str, range(100)), "before"])
            ((low,), (high,)) = await (
                await writer.execute(
                    "SELECT xmin::text::bigint FROM runs WHERE id IN ('0', '99') ORDER BY id"
                )
            ).fetchall()
            assert high < 200 < low


async def test_a_row_frozen_long_ago_comes_once() -> None:
    """More than 2^31 transactions later its age is negative."""
    with running() as server:
        url = server.url()
        execute(url, "CREATE TABLE runs (id text PRIMARY KEY, status text)")
        execute(url, "INSERT INTO runs VALUES ('old', 'completed'), ('active', 'running')")
        execute(url, "VACUUM FREEZE")
        server.stop()
        xid = 2**31 + 50_000
        page = server.data / "pg_xact" / f"{xid // (8192 * 4 * 32):04X}"
        page.write_bytes(bytes(32 * 8192))
        page.chmod(0o666)
        reset = ("-f", "-x", str(xid), "-u", str(xid - 1000))
        server.program("pg_resetwal", *reset, str(server.data))
        server.start()
        ((age,),) = execute(url, "SELECT age(xmin) FROM runs WHERE id = 'old'")
        assert age < 0
        async with writing(url) as writer, reading(url) as reader:
            assert await reader.ids() == ["active"]
            for i in range(3):
                await writer.execute("INSERT INTO runs VALUES (%s, 'running')", [str(i)])
                assert await reader.ids() == [str(i)]


async def test_rows_come_in_pieces(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs (id) SELECT i FROM generate_series(1, 2500) i")
        before = time.time()
        await reader.read()
        assert [(len(p.rows), p.complete) for p in reader.pieces] == [
            (1000, False),
            (1000, False),
            (500, True),
        ]
        assert len({piece.at for piece in reader.pieces}) == 1
        assert before - 1 < reader.pieces[0].at / 1e6 < time.time() + 1


async def test_the_checkpoint_moves_only_when_every_piece_has_been_taken(
    database: str,
) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await reader.read()
        before = reader.poll.progress.checkpoint
        await writer.execute("INSERT INTO runs (id) SELECT i FROM generate_series(1, 2500) i")
        pieces = reader.poll.read()
        await anext(pieces)
        await pieces.aclose()
        assert reader.poll.progress.checkpoint is before
        assert len(await reader.read()) == 2500


async def test_names_unfinished_runs_that_were_deleted(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'queued'), ('b', 'running')")
        await reader.read()
        await writer.execute("DELETE FROM runs WHERE id = 'a'")
        assert await reader.read() == []
        assert reader.pieces[-1].gone == ["a"]
        assert list(held(reader.board)) == ["b"]


# The cost of polling.


async def test_scans_nothing_if_nothing_was_committed(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        conn = reader.poll.conn
        await writer.execute(
            "INSERT INTO runs (id, status) SELECT i, 'completed' FROM generate_series(1, 200000) i"
        )
        await reader.read()

        async def scans() -> int:
            await conn.execute("SELECT pg_stat_force_next_flush()")
            row = await (
                await conn.execute(
                    "SELECT seq_scan + coalesce(idx_scan, 0)"
                    " FROM pg_stat_user_tables WHERE relname = 'runs'"
                )
            ).fetchone()
            return int(str(row and row[0]))

        await writer.execute("UPDATE runs SET progress = 1 WHERE id = '7'")
        before = await scans()
        assert await reader.ids() == ["7"]
        after = await scans()
        assert after > before
        for _ in range(50):
            assert await reader.read() == []
            assert reader.pieces == []
        assert await scans() == after


async def test_a_costly_scan_is_followed_by_a_pause(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        for _ in range(3):
            await writer.execute(
                "INSERT INTO runs (id) SELECT gen_random_uuid() FROM generate_series(1, 500)"
            )
            await reader.read()
        usual = reader.poll.pause
        assert 0 < usual < 5
        costly = PollTiming(share=20_000)
        async with reading(
            database, reader.board, reader.poll.progress.checkpoint, timing=costly
        ) as again:
            for _ in range(2):
                await writer.execute("INSERT INTO runs (id) VALUES (gen_random_uuid())")
                await again.read()
            assert again.poll.pause > usual


async def test_the_consumers_work_is_no_cost_of_the_scan(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        for _ in range(3):
            await writer.execute("INSERT INTO runs (id) VALUES (gen_random_uuid())")
            async for _ in reader.poll.read():
                await asyncio.sleep(0.3)
        assert reader.poll.pause < 5


async def test_waiting_for_a_lock_is_no_cost_of_the_scan(database: str) -> None:
    async with (
        writing(database) as writer,
        reading(database, timing=PollTiming(page=1e9)) as reader,  # the clock alone counts
        connected(database) as conn,
    ):
        for _ in range(2):
            await writer.execute("INSERT INTO runs (id) VALUES (gen_random_uuid())")
            await conn.execute("LOCK runs")
            read = asyncio.create_task(reader.read())
            await asyncio.sleep(0.4)
            assert not read.done()
            await conn.commit()
            await read
        assert reader.poll.pause < 5


async def test_a_lock_that_lasts_is_reported(database: str) -> None:
    async with (
        reading(database, timing=PollTiming(locked=0.2)) as reader,
        connected(database) as conn,
    ):
        await conn.execute("LOCK runs")
        with pytest.raises(psycopg.OperationalError, match=r"a lock on the table public\.runs"):
            await reader.read()


async def test_a_busy_machine_does_not_make_a_small_table_a_large_one(database: str) -> None:
    def slow() -> float:
        return time.perf_counter() * 1000

    async with writing(database) as writer, reading(database, clock=slow) as reader:
        for _ in range(3):
            await writer.execute(
                "INSERT INTO runs (id) SELECT gen_random_uuid() FROM generate_series(1, 5000)"
            )
            await reader.read()
        assert 0 < reader.poll.pause < 0.1
        timing = PollTiming(page=1e9)
        async with reading(
            database, reader.board, reader.poll.progress.checkpoint, timing=timing, clock=slow
        ) as again:
            for _ in range(2):
                await writer.execute("INSERT INTO runs (id) VALUES (gen_random_uuid())")
                await again.read()
            assert 1 < again.poll.pause <= timing.max_pause


# Partitions and inheritance.


PARTITIONED = (
    "DROP TABLE runs",
    "CREATE TABLE runs (id text, status text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
    "CREATE TABLE a PARTITION OF runs FOR VALUES FROM ('a') TO ('b')",
    "CREATE TABLE b (LIKE runs INCLUDING ALL)",
    "INSERT INTO b VALUES ('b1', 'queued'), ('b2', 'running'), ('b3', 'failed')",
    "INSERT INTO runs VALUES ('a1', 'running'), ('a2', 'completed')",
)
INHERITED = (
    "CREATE TABLE b (LIKE runs INCLUDING ALL)",
    "CREATE TABLE grandchild () INHERITS (b)",
    "INSERT INTO b VALUES ('b1', 'queued'), ('b3', 'failed')",
    "INSERT INTO grandchild VALUES ('b2', 'running')",
    "INSERT INTO runs VALUES ('a1', 'running'), ('a2', 'completed')",
)


@pytest.mark.parametrize(
    ("before", "attach", "detach"),
    [
        (
            PARTITIONED,
            "ALTER TABLE runs ATTACH PARTITION b FOR VALUES FROM ('b') TO ('c')",
            "ALTER TABLE runs DETACH PARTITION b",
        ),
        (INHERITED, "ALTER TABLE b INHERIT runs", "ALTER TABLE b NO INHERIT runs"),
    ],
    ids=["partition", "inheritance"],
)
async def test_finds_what_is_under_way_in_a_table_that_is_attached(
    database: str, before: tuple[str, ...], attach: str, detach: str
) -> None:
    """Its rows are older than any horizon. Its finished runs are not found."""
    for statement in before:
        execute(database, statement)
    async with writing(database) as writer, reading(database) as reader:
        assert await reader.ids() == ["a1"]
        await writer.execute(attach.encode())
        await reader.ids()  # before the catalog is read: the horizon passes what was attached
        await reader.poll.read_catalog()
        assert [run_id for run_id in await reader.ids() if run_id != "a1"] == ["b1", "b2"]
        assert not any(piece.new for piece in reader.pieces)
        # From now on, only what has changed.
        await writer.execute("UPDATE runs SET status = 'running' WHERE id = 'b1'")
        await reader.poll.read_catalog()
        assert await reader.ids() == ["b1"]
        await writer.execute(detach.encode())
        await reader.poll.read_catalog()
        await reader.read()
        assert sorted(reader.pieces[-1].gone) == ["b1", "b2"]
        assert list(held(reader.board)) == ["a1"]


# A new history.


async def test_a_database_that_is_created_again_is_a_new_history(postgres: Postgres) -> None:
    name = postgres.create_database(TEMPLATE, ROLE)
    url = postgres.url(name, ROLE)
    async with writing(url) as writer, reading(url) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'running'), ('b', 'queued')")
        await reader.read()
        await writer.execute("UPDATE runs SET status = 'failed' WHERE id = 'b'")
        await reader.read()
        assert not any(piece.new for piece in reader.pieces)
    postgres.drop_database(name)
    execute(postgres.url(), f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER {ROLE}")
    async with (
        writing(url) as writer,
        reading(url, reader.board, reader.poll.progress.checkpoint) as again,
    ):
        await writer.execute("INSERT INTO runs VALUES ('c', 'running'), ('d', 'completed')")
        assert await again.ids() == ["c"]
        assert [piece.new for piece in again.pieces] == [True]
        assert list(held(again.board)) == ["c"]
        await writer.execute("UPDATE runs SET status = 'failed' WHERE id = 'c'")
        await again.read()
        assert [piece.new for piece in again.pieces] == [False]
    postgres.drop_database(name)


async def test_another_server_with_an_equal_snapshot_is_a_new_history(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'running')")
        checkpoint = Checkpoint(("elsewhere",), await reader.poll.visible())
        async with reading(database, reader.board, checkpoint) as again:
            assert await again.ids() == ["a"]
            assert again.pieces[0].new


@pytest.mark.parametrize("lead", [1, 1_000_000, -(2**31)])
async def test_a_restored_or_unreachable_checkpoint_is_a_new_history(
    database: str, lead: int
) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs SELECT i, 'running' FROM generate_series(1, 1500) i")
        await reader.read()
        checkpoint = reader.poll.progress.checkpoint
        assert checkpoint is not None
        seen = checkpoint.visible
        there = PgSnapshot(seen.xmin + lead, seen.xmax + lead, frozenset())
        async with reading(database, reader.board, replace(checkpoint, visible=there)) as again:
            assert len(await again.read()) == 1500
            assert [piece.new for piece in again.pieces] == [True, False]


async def test_a_table_with_ids_of_another_type_is_a_new_history(database: str) -> None:
    """The board holds 'a', which no bigint can be."""
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'running'), ('1', 'running')")
        await reader.read()
        await writer.execute("DROP TABLE runs")
        await writer.execute("CREATE TABLE runs (id bigint PRIMARY KEY, status text)")
        await writer.execute("INSERT INTO runs VALUES (1, 'completed'), (2, 'queued')")
        await reader.poll.read_catalog()
        assert await reader.ids() == ["1", "2"]
        assert reader.pieces[0].new
        assert {run_id: entry[RUN][STATUS] for run_id, entry in held(reader.board).items()} == {
            "1": "completed",
            "2": "queued",
        }


async def test_a_changed_type_of_id_is_a_new_history(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'running')")
        await reader.read()
        await writer.execute(
            "ALTER TABLE runs ALTER id DROP DEFAULT, DROP CONSTRAINT runs_id_check"
        )
        await writer.execute("ALTER TABLE runs ALTER id TYPE uuid USING gen_random_uuid()")
        await reader.poll.read_catalog()
        assert len(await reader.read()) == 1
        assert reader.pieces[0].new
        assert reader.pieces[0].gone == ["a"]


async def test_polls_without_permission_to_read_the_identity(
    database: str, superuser_url: str
) -> None:
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    async with writing(database) as writer, reading(database) as reader:
        await reader.read()
        await writer.execute("INSERT INTO runs (id) VALUES ('a')")
        assert await reader.ids() == ["a"]
        assert reader.poll.progress.checkpoint is not None
        assert reader.poll.progress.checkpoint.identity[:3] == (None, None, None)
        assert not reader.pieces[-1].new


async def test_a_missing_privilege_is_raised(database: str, superuser_url: str) -> None:
    with psycopg.connect(superuser_url, autocommit=True) as admin:
        admin.execute("REVOKE ALL ON runs FROM PUBLIC, cecelia")
    async with reading(database) as reader:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await reader.read()


async def test_skips_rows_without_an_id(database: str) -> None:
    async with writing(database) as writer:
        await writer.execute("ALTER TABLE runs RENAME TO base")
        await writer.execute("CREATE VIEW runs AS SELECT nullif(id, 'no') AS id, status FROM base")
        await writer.execute("INSERT INTO base VALUES ('a', 'queued'), ('no', 'queued')")
        async with reading(database) as reader:
            assert await reader.ids() == ["a"]
            await writer.execute("UPDATE base SET status = 'completed'")
            assert [run[STATUS] for run in await reader.read()] == ["completed"]
            await writer.execute("DROP VIEW runs")
            with pytest.raises(TableError, match="there is no table"):
                await reader.poll.read_catalog()


async def test_fetches_rows_as_they_are_now(database: str) -> None:
    async with writing(database) as writer, reading(database) as reader:
        await writer.execute("INSERT INTO runs VALUES ('a', 'failed', 5), ('b', 'queued', 6)")
        assert await reader.poll.fetch(["a", "none"]) == {"a": ("a", "failed", 5, *[None] * 5)}


async def test_a_scan_whose_rest_does_not_come_fails(database: str) -> None:
    """A proxy, or a dead network, may pass on the first rows and no more."""
    execute(
        database,
        "INSERT INTO runs (id, error) SELECT i, repeat('e', 8000) FROM generate_series(1, 5000) i",
    )
    timing = PollTiming(first_scan=1.0)
    with Proxy(database) as proxy:
        async with await connect(proxy.url, "test") as conn:
            poll = Poll(conn, RUNS, Decoder({}, 8192), Board(1 << 26), Progress(), timing=timing)
            await poll.read_catalog()
            async with asyncio.timeout(PATIENCE), aclosing(poll.read()) as pieces:
                await anext(pieces)
                proxy.fall_silent()
                with pytest.raises(psycopg.OperationalError, match="kept Brain waiting for"):
                    async for _ in pieces:
                        pass
