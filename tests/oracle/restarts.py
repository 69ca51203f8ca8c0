"""The oracle over restarts: whatever Brain and PostgreSQL go through, a client that comes back with
`since` ends with what SELECT shows.

One process plays it all: lives of Brain (Follow, Board, Hub and the file of records; the sockets
are left out), each ended at a random moment; writers of every kind; and clients that are cut off
after any message, stay away for some lives, and come back. From time to time the writers rest, and
what every client holds is compared with the table.

    BRAIN_RESTARTS=5000 .venv/bin/pytest -s tests/oracle/test_restarts.py -k restarts_lose

served_restarts.py has the same over real sockets.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from brain.api.overlay import Overlay
from brain.contract.close_codes import GAP
from brain.contract.events import Resumed, Snapshot
from brain.contract.messages import (
    ACTIVE,
    AGENT,
    ID,
    STATUS,
    TASK_ID,
    Micros,
    Run,
    parse_time,
)
from brain.contract.subscription import ALL, Filter, Subscription
from brain.delivery.board import Board
from brain.delivery.cohorts import Client
from brain.delivery.hub import Hub
from brain.delivery.log import RUN
from brain.postgres import pgoutput
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.poll import Poll
from brain.postgres.records import Records
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.timing import PollTiming, StreamTiming, Timing
from tests.support.following import RUNS, WithoutJitter
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres

TIMING = Timing(
    poll=PollTiming(share=0),
    stream=StreamTiming(idle=0.02, gulp=0.002),
    back_off=WithoutJitter(first=0.02, longest=0.1),
    promote_every=0.02,
    rejoin_within=0,
    slot_timeouts=(1.0,),
    watch_every=0.03,
    compare_every=0.1,
    stream_first=0.05,  # open transactions let it pass, often
)
EPOCH = pgoutput.POSTGRES_EPOCH
AGENTS = ("a1", "a2", "a3")
TASKS = ("t1", "t2")
MARKER = "marker"

Row: TypeAlias = tuple[str, str | None, str | None, str | None]
"""Status, agent, task and error, which counts the changes of a run."""

SELECT = (
    "SELECT pg_current_snapshot()::text, id, status, progress, task_id, agent,"
    " started_at, completed_at, error FROM runs"
)


class Plan(NamedTuple):
    """What may happen in a world."""

    restarts: int
    crashes: float = 0.0
    """The share of restarts at which PostgreSQL is killed."""
    asynchronous: float = 0.5
    """The share of writers that commit without waiting for the disk. With all of them, nothing is
    flushed for seconds: what a crash loses has been read."""
    modes: tuple[str, ...] = ("poll", "auto")
    memories: tuple[int, ...] = (1 << 24, 1 << 24, 1 << 15)
    check_every: int = 8
    keep: float = 3600
    pause: float = 1.0
    """How long writers rest between two changes: a factor."""


FILTERS = (
    ALL,
    ALL,
    Filter(status=frozenset({"running"})),
    Filter(status=frozenset({"queued", "running"})),
    Filter(status=frozenset({"completed"})),
    Filter(agent=frozenset({"a1"})),
    Filter(agent=frozenset({"a2"}), status=frozenset({"running"})),
    Filter(task_id=frozenset({"t1"})),
)


class Visit(Client):
    """A connection of a consumer to the hub of one life."""

    def __init__(self, consumer: "Consumer") -> None:
        self.consumer = consumer
        self.write = self.receive
        self.open = True

    def receive(self, data: bytes) -> None:
        at = 0
        while at < len(data) and self.open:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
            self.consumer.take(json.loads(data[start : start + size]))
            at = start + size

    def end(self, code: int, reason: str) -> None:
        self.open = False
        self.consumer.ended(code, reason)

    def drop(self, error: Exception) -> None:
        raise error


class Consumer:
    """A client as docs/reference/protocol.md asks for. It never forgets, but after 4410."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.name = f"client {number}"
        self.filter = FILTERS[number % len(FILTERS)]
        self.by_snapshot = number % 3 == 2
        self.dice = random.Random(f"{world.seed}/{number}")
        self.view: dict[str, Row] = {}
        self.since: Micros | None = None
        self.visit: Visit | None = None
        self.left = 0
        """Messages until it is cut off."""

    def take(self, message: dict[str, Any]) -> None:
        row, stamp = message["data"], parse_time(message["timestamp"])
        self.view[row["id"]] = (
            row["status"],
            row.get("agent"),
            row.get("task_id"),
            row.get("error"),
        )
        if self.since is not None and stamp < self.since:
            self.world.fault(f"{self.name}: time went back by {self.since - stamp} µs")
        self.since = stamp
        self.world.messages += 1
        self.left -= 1
        if self.left == 0:
            self.cut()

    def ended(self, code: int, _: str) -> None:
        self.cut()
        if code == GAP.code:
            life = self.world.life
            self.world.gaps[life.excuse(self.since) if life is not None else "no life"] += 1
            self.view, self.since = {}, None

    def cut(self) -> None:
        visit, self.visit = self.visit, None
        if visit is not None:
            visit.open = False
            if self.world.life is not None:
                self.world.life.hub.leave(visit)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0, 0.02))
            life = self.world.life
            if self.visit is not None or life is None or not life.board.begun:
                continue
            if not self.world.resting and self.dice.random() < 0.3:
                await asyncio.sleep(self.dice.uniform(0, 0.5))  # away for some lives
                continue
            if self.since is None and not self.by_snapshot:
                try:
                    await self._load(life)
                except (psycopg.Error, OSError):
                    continue
                if life is not self.world.life:
                    continue
            self.left = 0 if self.world.resting else int(self.dice.expovariate(1 / 30)) + 1
            self.visit = Visit(self)
            snapshot = self.since is None
            if snapshot:
                self.view = {}
            life.hub.join(self.visit, Subscription(self.filter, snapshot, self.since))

    async def _load(self, life: "Life") -> None:
        """GET /api/runs."""
        overlay, decoder = life.overlay, life.decoder
        before = overlay.position()
        async with await connect(self.world.url, "test-get") as conn:
            rows = [row async for row in await conn.execute(SELECT)]
        view: dict[str, Row] = {}
        snapshot = PgSnapshot.parse(str(rows[0][0]))
        for _, *fields in rows:
            run = decoder(fields)
            assert run is not None
            shown = overlay.shown(run, snapshot, before.seq)
            assert shown is not None
            if self.filter == ALL or self.filter.matches(shown[ID], [facets(shown)]):
                view[shown[ID]] = comparable(shown)
        self.view, self.since = view, overlay.since(before, snapshot)

    def judge(self, table: dict[str, Row]) -> None:
        for run_id, row in table.items():
            held, wanted = self.view.get(run_id), matches(self.filter, run_id, row)
            entitled = not self.by_snapshot or row[0] in ACTIVE
            if wanted and held != row and (held is not None or entitled):
                self.world.fault(f"{self.name} {self.filter}: {run_id} is {row}, not {held}")
            elif not wanted and held is not None and matches(self.filter, run_id, held):
                self.world.fault(f"{self.name} {self.filter}: {run_id} is {row}, still {held}")


def facets(run: Run) -> tuple[str, str | None, str | None]:
    return (run[STATUS], run[AGENT], run[TASK_ID])


def comparable(run: Run) -> Row:
    *_, error = run
    return (run[STATUS], run[AGENT], run[TASK_ID], str(error) if error is not None else None)


def matches(filter_: Filter, run_id: str, row: Row) -> bool:
    return filter_ == ALL or filter_.matches(run_id, [row[:3]])


class Life:
    """One process of Brain."""

    def __init__(self, world: "World", mode: Any, memory: int) -> None:
        loop = asyncio.get_running_loop()
        self.records = Records(world.folder, keep=world.plan.keep)
        self.records._apart = world.dice.choice((0, 200_000))
        self.board = Board(memory, remember=self.records.remember)
        self.overlay = Overlay(self.board)
        self.decoder = Decoder({}, 1000)
        self.hub = Hub(
            self.board,
            interval=world.dice.choice((0, 0.005, 0.03)),
            clock=loop.time,
            call_later=loop.call_later,
            call_soon=loop.call_soon,
        )
        self.follow = Follow(
            world.url,
            RUNS,
            self.decoder,
            self.board,
            mode=mode,
            interval=0.01,
            application="brain",
            timing=TIMING,
            records=self.records,
        )
        self.mode = mode
        self.why = ""
        """Why nobody can resume in this life, if so."""
        self.floor = 0
        self._world = world
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        _set_back(self._world.skew)
        async with contextlib.aclosing(self.follow.events()) as events:
            async for several in events:
                event = several[0]  # a Snapshot, or what takes its place, comes alone
                if isinstance(event, Snapshot) and event.new and self.board.begun:
                    self.why = "a new history"
                    self.floor = 0
                    for consumer in self._world.consumers:
                        if consumer.visit is not None:
                            consumer.visit.end(GAP.code, GAP.reason)
                elif isinstance(event, Snapshot) and not self.board.begun:
                    self.why = self.records.detail or "nothing was recorded"
                elif isinstance(event, Resumed):
                    self.floor = event.floor_time
                    self._world.resumed += 1
                self.hub.push(self.board.apply(*several))
                if self.why:
                    self._world.voided = max(self._world.voided, self.board.floor_time)

    def excuse(self, since: Micros | None) -> str:
        """Why a client is sent 4410."""
        if self.why:
            return self.why
        if since is not None and since <= self._world.voided:
            return "away since a life in which nobody could resume"
        if self.board.floor or self.board.floor_time > self.floor:
            return "evicted"
        return f"NONE: since {since}, floor {self.floor}"

    async def end(self) -> None:
        """At any moment, as SIGKILL does: nobody gets a last word."""
        self.task.cancel()
        self.hub._alarm.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.records.close()


@dataclass
class World:
    url: str
    seed: int
    folder: Path
    plan: Plan
    server: Postgres | None = None
    """For crashes."""
    life: Life | None = None
    resting: bool = False
    patient: bool = False
    """Nobody begins a long transaction."""
    messages: int = 0
    restarts: int = 0
    resumed: int = 0
    checks: int = 0
    changes: int = 0
    crashes: int = 0
    streams: int = 0
    skew: float = 0
    """By how many seconds the database's clock has been set back."""
    voided: Micros = 0
    """Until when nobody can resume."""
    faults: list[str] = field(default_factory=list)
    gaps: Counter[str] = field(default_factory=Counter)
    consumers: list[Consumer] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """Of the consumers: one that ends has failed."""
    _busy: int = 0
    _stop: bool = False
    _next: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.restarts} restarts, {self.resumed} resumed, {self.streams}"
            f" streams, {self.crashes} crashes, {self.changes} changes, {self.messages} messages,"
            f" {self.checks} checks, 4410: {dict(self.gaps)}, {len(self.faults)} faults"
        )

    async def run(self, *, until_fault: bool = False, seconds: float = PATIENCE) -> None:
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            await conn.execute("INSERT INTO runs (id, status) VALUES (%s, 'queued')", [MARKER])
        self.consumers = [self._consumer(n) for n in range(20)]
        self.tasks = tasks = [asyncio.create_task(each.run()) for each in self.consumers]
        writers = [
            asyncio.create_task(self._write(habit))
            for habit in (
                self._insert,
                self._insert,
                self._single,
                self._many,
                self._savepoints,
                *([self._two_phase] if self.plan.asynchronous < 1 else []),  # each is flushed
                self._long,
                self._delete,
                self._nothing,
            )
        ]
        deadline = time.monotonic() + seconds
        try:
            await self._begin()
            while self.restarts < self.plan.restarts and time.monotonic() < deadline:
                await self._live()
                if self.restarts % self.plan.check_every == 0:
                    await self._check()
                    if until_fault and self.faults:
                        break
                for task in (*tasks, *writers):
                    if task.done():
                        task.result()
                await self._restart()
            await self._check()
        finally:
            self._stop = True
            self.resting = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*writers, *tasks, return_exceptions=True)
            if self.life is not None:
                await self.life.end()
            _set_back(0)

    def _consumer(self, number: int) -> Consumer:
        return Consumer(self, number)

    async def _begin(self) -> None:
        self.life = Life(
            self, self.dice.choice(self.plan.modes), self.dice.choice(self.plan.memories)
        )

    async def _live(self) -> None:
        life = self.life
        assert life is not None
        await self._until(lambda: life.board.begun, life)
        await asyncio.sleep(self.dice.choice((0, 0.02, 0.1, 0.3)) * self.dice.random())
        if life.mode == "auto" and self.dice.random() < 0.5:
            # A slot waits for every open transaction.
            self.patient = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._until(lambda: life.follow.state.source == "replication", life)
                    self.patient = False
                    await asyncio.sleep(self.dice.uniform(0, 0.4))
            self.patient = False
        self.streams += life.follow.state.streams
        if self.server is not None and self.dice.random() < self.plan.crashes / 2:
            self.crashes += 1
            await asyncio.to_thread(self.server.crash)
            await asyncio.sleep(self.dice.uniform(0, 0.5))

    async def _restart(self) -> None:
        life, self.life = self.life, None
        assert life is not None
        await life.end()
        for consumer in self.consumers:
            consumer.cut()
        self.restarts += 1
        self.skew = self.dice.choice((0, 0, 0.5, 3))
        if self.server is not None and self.dice.random() < self.plan.crashes:
            self.crashes += 1
            await asyncio.to_thread(self.server.crash)
        elif self.dice.random() < 0.3:
            await asyncio.sleep(self.dice.uniform(0, 0.1))
        await self._begin()

    async def _until(self, condition: Callable[[], bool], life: Life) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if life.task.done():
                life.task.result()
            assert time.monotonic() < deadline, (life.follow.state, str(self))
            await asyncio.sleep(0.002)

    async def _check(self) -> None:
        """Let the writers rest, and compare every client with the table."""
        life = self.life
        assert life is not None
        self.resting = True
        await self._until(lambda: not self._busy, life)
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            mark = await move_marker(conn)

            def followed() -> bool:
                entry = life.board.get(MARKER)
                return entry is not None and comparable(entry[RUN])[3] == mark

            def present(consumer: Consumer) -> bool:
                visit = consumer.visit
                return visit is not None and visit.cohort is not None and visit.seq is None

            await self._until(followed, life)
            await self._until(
                lambda: all(map(present, self.consumers)) and life.hub.idle,
                life,
            )
            cursor = await conn.execute("SELECT id, status, agent, task_id, error FROM runs")
            table = {each[0]: each[1:] for each in await cursor.fetchall()}
        for consumer in self.consumers:
            consumer.judge(table)
        self.checks += 1
        for consumer in self.consumers:
            consumer.left = self.dice.randrange(1, 40)
        self.resting = False

    # Writers

    async def _write(self, habit: Callable[[AsyncConnection[TupleRow]], Awaitable[None]]) -> None:
        while not self._stop:
            with contextlib.suppress(psycopg.OperationalError):
                async with await AsyncConnection.connect(
                    self.url, autocommit=True, prepare_threshold=None
                ) as conn:
                    if self.dice.random() < self.plan.asynchronous:
                        await conn.execute("SET synchronous_commit = off")
                    while not self._stop:
                        while self.resting:
                            await asyncio.sleep(0.002)
                        self._busy += 1
                        try:
                            await habit(conn)
                            self.changes += 1
                        except psycopg.errors.DeadlockDetected:
                            await conn.rollback()
                        finally:
                            self._busy -= 1
                        await asyncio.sleep(self.dice.uniform(0, 0.015) * self.plan.pause)
            await asyncio.sleep(0.05)

    def _new_id(self) -> str:
        self._next += 1
        return f"r{self._next:06}"

    async def _insert(self, conn: AsyncConnection[TupleRow]) -> None:
        values = self.dice.choice(("queued", "running")), self.dice.choice(AGENTS)
        ids = [self._new_id() for _ in range(self.dice.choice((1, 1, 3)))]
        await conn.execute(
            "INSERT INTO runs (id, status, agent, task_id, error)"
            " SELECT id, %s, %s, %s, '0' FROM unnest(%s::text[]) id",
            [*values, self.dice.choice(TASKS), ids],
        )

    async def _change(self, conn: AsyncConnection[TupleRow], count: int) -> None:
        """A step, an end, or a change of agent, of unfinished runs; or a step of any run."""
        what, where = self.dice.choice(
            (
                ("status = status", "status IN ('queued', 'running')"),
                ("status = 'running'", "status = 'queued'"),
                ("status = 'completed'", "status = 'running'"),
                ("status = 'failed'", "status = 'running'"),
                (
                    f"agent = '{self.dice.choice(AGENTS)}'",
                    "status IN ('queued', 'running')",
                ),
                ("status = status", "true"),
            )
        )
        await conn.execute(
            f"UPDATE runs SET {what}, error = (coalesce(error, '0')::int + 1)::text"
            f" WHERE id IN (SELECT id FROM runs WHERE {where} AND id <> '{MARKER}'"
            " ORDER BY random() LIMIT %s FOR UPDATE SKIP LOCKED)".encode(),
            [count],
        )

    async def _single(self, conn: AsyncConnection[TupleRow]) -> None:
        await self._change(conn, 1)

    async def _many(self, conn: AsyncConnection[TupleRow]) -> None:
        async with conn.transaction(force_rollback=self.dice.random() < 0.3):
            for _ in range(3):
                await self._change(conn, 3)

    async def _savepoints(self, conn: AsyncConnection[TupleRow]) -> None:
        """The transaction itself writes nothing: each row's xmin is that of a subtransaction."""
        async with conn.transaction():
            for _ in range(3):
                async with conn.transaction(force_rollback=self.dice.random() < 0.3):
                    await self._change(conn, 2)
                await asyncio.sleep(self.dice.uniform(0, 0.02))

    async def _two_phase(self, conn: AsyncConnection[TupleRow]) -> None:
        name = f"restarts {os.getpid()} {self.dice.randrange(10**9)}"
        await _clear(conn)
        await conn.execute("BEGIN")
        try:
            await self._change(conn, 3)
            await conn.execute(f"PREPARE TRANSACTION '{name}'".encode())
        except BaseException:
            await conn.execute("ROLLBACK")
            raise
        await asyncio.sleep(self.dice.uniform(0, 0.1))
        how = "ROLLBACK" if self.dice.random() < 0.3 else "COMMIT"
        await conn.execute(f"{how} PREPARED '{name}'".encode())

    async def _long(self, conn: AsyncConnection[TupleRow]) -> None:
        """Writes, and commits some lives later."""
        while self.patient and not self._stop:
            await asyncio.sleep(0.01)
        async with conn.transaction():
            await self._change(conn, 2)
            async with conn.transaction():
                await self._change(conn, 2)
            await asyncio.sleep(self.dice.uniform(0, 0.4))
        await asyncio.sleep(self.dice.uniform(0, 0.3))

    async def _delete(self, conn: AsyncConnection[TupleRow]) -> None:
        # The more there are, so that a long run does not spend its time on the first look of a
        # table that has grown: of 25 000 rows, all changed in the last hour.
        await conn.execute(
            "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE id <> %s"
            " ORDER BY random() LIMIT (SELECT 1 + count(*) / 500 FROM runs)"
            " FOR UPDATE SKIP LOCKED)",
            [MARKER],
        )
        await asyncio.sleep(self.dice.uniform(0, 0.05))

    async def _nothing(self, conn: AsyncConnection[TupleRow]) -> None:
        """An UPDATE that changes no field."""
        await conn.execute(
            "UPDATE runs SET agent = agent WHERE id IN (SELECT id FROM runs"
            " ORDER BY random() LIMIT 2 FOR UPDATE SKIP LOCKED)"
        )
        await asyncio.sleep(self.dice.uniform(0, 0.05))


CLOCK = "clock_timestamp()"
_query = Poll._query


def _set_back(seconds: float) -> None:
    """The database's clock, as polls and the stream tell it to Brain."""

    def query(self: Poll, *parts: sql.Composable) -> sql.Composed:
        text = _query(self, *parts).as_string()
        assert CLOCK in text
        text = text.replace(CLOCK, f"({CLOCK} - interval '{seconds} s')")
        return sql.Composed([sql.SQL(text)])

    Poll._query = query if seconds else _query  # type: ignore[method-assign, assignment]
    pgoutput.POSTGRES_EPOCH = EPOCH - int(seconds * 1e6)


async def move_marker(conn: AsyncConnection[TupleRow]) -> str:
    """Change the run behind everything else. Returns what it has as its error now."""
    await _clear(conn)
    cursor = await conn.execute(
        "UPDATE runs SET error = (coalesce(error, '0')::int + 1)::text WHERE id = %s"
        " RETURNING error",
        [MARKER],
    )
    ((mark,),) = await cursor.fetchall()
    return str(mark)


async def _clear(conn: AsyncConnection[TupleRow]) -> None:
    """Roll back what a crash has left prepared."""
    cursor = await conn.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    )
    for (gid,) in await cursor.fetchall():
        await conn.execute(f"ROLLBACK PREPARED '{gid}'".encode())
