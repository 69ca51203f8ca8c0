"""Random histories of board and hub, on a loop of our own in which anything may happen in the middle of a sweep.

A world has a true table, a Brain that follows it, and consumers who connect, stall, are cut at any byte and come back. Its
clock is virtual: a write takes time, so that sweeps and catching up exceed their budget, yield, and others come in between.
Everything is drawn from one seed. What a consumer was sent is judged twice: each message as it arrives (order, time, no
duplicate, no run going back), and all of it when the world has come to rest (what it believes is the table; a client that never
lagged saw every change of status).

    BRAIN_HISTORIES=10000 pytest tests/test_hub_histories.py                     many more of them
    BRAIN_HISTORIES=1 BRAIN_FIRST_HISTORY=4711 pytest tests/test_hub_histories.py    that one again

The second half takes each rule of hub.py and board.py away, and sees the histories find it.
"""

import heapq
import inspect
import itertools
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from brain.contract.close_codes import GAP, TRY_AGAIN_LATER
from brain.contract.events import Changes, Event, Op, Snapshot, only_id
from brain.contract.messages import (
    ACTIVE,
    ID,
    STATUS,
    TYPES,
    UNCHANGED,
    Micros,
    Run,
    body,
    iso,
    parse_time,
    text_frame,
)
from brain.delivery import board as the_board
from brain.delivery import hub as the_hub
from brain.delivery.board import RUN, SEQ, TIME, Push

pytestmark = pytest.mark.long

FIRST = int(os.environ.get("BRAIN_FIRST_HISTORY", "0"))
HISTORIES = int(os.environ.get("BRAIN_HISTORIES", "300"))

FINISHED = ("completed", "failed")
NEXT = {
    "queued": ("running", "running", "failed"),
    "running": ("completed", "failed", "queued"),
    "completed": ("running", "queued"),
    "failed": ("running", "queued", "completed"),
}
AGENTS = ("a", "b", None)
TASKS = ("t", "u", None)
DAY = 86_400_000_000


class Wrong(AssertionError):  # noqa: N818 - not an error of the program's: a verdict
    """A rule of the contract is broken."""


@cache
def altered(module: ModuleType, *changes: tuple[str, str]) -> Any:
    """A copy of a module whose source has each of `changes` made in it, at the one place where it fits."""
    source = inspect.getsource(module)
    for old, new in changes:
        assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times: {old!r}"
        source = source.replace(old, new)
    copy = ModuleType(module.__name__)
    where = f"<{module.__name__}, altered>" if changes else str(module.__file__)
    exec(compile(source, where, "exec"), copy.__dict__)
    return copy


@dataclass(frozen=True)
class Wanted:
    """A filter, as the contract states it."""

    run_id: frozenset[str] = frozenset()
    task_id: frozenset[str | None] = frozenset()
    agent: frozenset[str | None] = frozenset()
    status: frozenset[str] = frozenset()

    def __call__(self, run: Run | None) -> bool:
        if run is None:
            return False
        run_id, status, _, task_id, agent, *_ = run
        return all(
            not values or value in values
            for values, value in (
                (self.run_id, run_id),
                (self.status, status),
                (self.agent, agent),
                (self.task_id, task_id),
            )
        )


class Said(NamedTuple):
    """A change that the board gave out to be pushed, and what it was a change of."""

    seq: int
    was: Run | None
    now: Run
    steady: bool
    """The status stayed as it was."""
    loose: bool
    """The board cannot know what the run was before, and may tell more clients than need to know."""


class Wire:
    """A connection: the hub's client, and under it a transport that does as uvloop's (0.23, handles/stream.pyx).

    `write` buffers; only if that makes more than the high-water mark and nothing is queued, it sends at once. What is
    buffered still goes out when the callback has ended. It pauses from inside `write`, and resumes from outside.
    """

    seq: int | None
    until: int
    paused: bool
    write: Callable[[bytes], object]

    def __init__(self, world: "World", consumer: "Consumer") -> None:
        self.world = world
        self.consumer = consumer
        self.number = next(world.numbers)
        self.kernel = world.random.choice((100, 300, 1000, 4000, 10**6))
        self.high = world.random.choice((0, 150, 400, 1200, 5000))
        self.write = self.take
        self.stream = bytearray()
        """All that was written, of which `queued` bytes left the buffer, `sent` are in the kernel, `read` arrived."""
        self.queued = self.sent = self.read = 0
        self.full = False
        self.full_since = 0
        """While it is full: how many flushes there had been."""
        self.broken = False
        self.code: int | None = None
        self.over = False
        self.never_full = True
        self.snapshot_of = 0
        """It joined with `snapshot` when so much had been flushed."""
        self.live_since: int | None = None
        """It was live at once, and all after this seq is due to it."""
        self.reached = 0
        self.received: set[int] = set()
        self.time = ""
        self.versions: dict[str, float] = {}

    def __hash__(self) -> int:
        """A set of connections has the same order whenever the history is told."""
        return self.number

    def take(self, data: bytes) -> None:
        self.world.now += self.world.cost
        if self.broken:
            raise RuntimeError(
                "unable to perform operation on a closed transport; the handler is closed"
            )
        if data[0] == 0x81:
            self.world.judge_write(self, data)
        self.stream += data
        if (
            not self.full
            and self.sent == self.queued
            and len(self.stream) - self.queued > self.high
        ):
            self.send()
        if not self.full and len(self.stream) - self.sent > self.high:
            self.full = True
            self.never_full = False
            self.full_since = self.world.hub.counts.flushes
            self.world.hub.pause(self)

    def send(self) -> None:
        self.queued = len(self.stream)
        self.sent = max(self.sent, min(len(self.stream), self.read + self.kernel))

    def turn(self) -> None:
        """The loop's turn ends, or the socket has become writable."""
        if not self.over:
            self.send()
            if self.full and len(self.stream) - self.sent <= self.high // 4:
                self.full = False
                self.world.hub.resume(self)

    def end(self, code: int, _reason: str) -> None:
        self.world.judge_refusal(self, code)
        self.code = code
        self.close()

    def drop(self, _error: Exception) -> None:
        self.close()

    def close(self) -> None:
        self.over = True
        self.write = lambda _: None
        self.world.hub.leave(self)


class Consumer:
    """Who connects, and what they believe: they keep a run while it passes their filter, as a user's program would."""

    def __init__(self, world: "World", wanted: Wanted) -> None:
        self.world = world
        self.wanted = wanted
        self.wire: Wire | None = None
        self.reading = True
        self.refused = False
        self.afresh()

    def afresh(self) -> None:
        self.view: dict[str, Any] = {}
        self.heard: dict[str, int] = {}
        """Run id → the seq of the last message about it, or of the board when it was loaded."""
        self.last: str | None = None
        self.whole = False
        """It has loaded the table: from then on, all of it is its business."""
        self.start = 0
        self.owed: set[str] = set()

    def connect(self, since: str | None = None, how: str | None = None) -> None:
        """With the time of the last message if there was one, else anew: plainly, with `snapshot`, or loading the table."""
        world, hub = self.world, self.world.hub
        since = since or self.last
        snapshot = False
        if since is None or self.refused:
            since = None
            how = (
                "load"
                if self.refused
                else how or world.random.choice(("load", "snapshot", "plain"))
            )
            load, snapshot = how == "load", how == "snapshot"
            if load and (not world.board.begun or (self.wanted != Wanted() and not world.followed)):
                return  # later: the table has changes of which the board has not been told
            self.afresh()
            self.start = world.board.seq
            self.whole = load
            if load:
                self.view = {
                    run[ID]: shown(run) for run in world.table.values() if self.wanted(run)
                }
                self.heard = dict.fromkeys(self.view, world.board.seq)
            if snapshot and world.board.begun:
                self.owed = {run_id for run_id, run in world.told.items() if run[STATUS] in ACTIVE}
        self.refused = False
        self.snapshot = snapshot
        self.reading = True
        self.wire = wire = world.wire(world, self)
        if since is None and not snapshot:
            wire.live_since = hub.flushed
        if snapshot:
            wire.snapshot_of = hub.flushed
        world.wires.append(wire)
        world.asked = since
        filter_ = world.hubs.Filter(**vars(self.wanted))
        hub.join(
            wire,
            world.hubs.Subscription(
                filter_, snapshot, None if since is None else parse_time(since)
            ),
        )
        world.asked = None
        if since is not None and not wire.over and parse_time(since) <= world.lost_time:
            world.wrong.append(
                f"an answer since {since}, though something is lost at {iso(world.lost_time)}"
            )

    def take(self, most: int) -> None:
        """Read up to `most` bytes, and act on the messages that are whole."""
        wire = self.wire
        assert wire is not None
        wire.read = min(wire.sent, wire.read + most)
        self.world.parse(wire)

    def lose(self) -> None:
        """The connection is gone. Of what was under way, some arrived."""
        wire = self.wire
        assert wire is not None
        self.take(
            self.world.random.choice(
                (0, self.world.random.randint(0, wire.sent - wire.read), wire.sent)
            )
        )
        wire.close()
        self.world.judge_live(wire, whole=False)
        self.world.wires.remove(wire)
        self.refused = self.refused or wire.code == GAP.code
        self.wire = None

    def hear(self, seq: int, message: Any) -> None:
        run = message["data"]
        self.last = message["timestamp"]
        self.heard[run["id"]] = seq
        values = (
            run["id"],
            run["status"],
            None,
            run.get("task_id"),
            run.get("agent"),
            None,
            None,
            None,
        )
        if self.wanted(values):
            self.view[run["id"]] = run
        else:
            self.view.pop(run["id"], None)


class World:
    """One history. `boards` and `hubs` are the modules that it runs on, with constants drawn for it."""

    def __init__(self, seed: int, boards: Any, hubs: Any) -> None:
        self.random = rng = random.Random(seed)
        self.boards, self.hubs = boards, hubs
        real = rng.random() < 0.03
        boards.message = self.message
        boards.PIECE = 65536 if real else rng.choice((300, 1200, 5000))
        hubs.BATCH = 131072 if real else rng.choice((300, 1200, 5000))
        hubs.STRIDE = rng.choice((1, 2, 3))
        boards.MAX_FACETS = rng.choice((2, 4, 32))
        boards.MAX_DELETED = rng.choice((1, 1024))
        self.texts = (
            0,
            0,
            10,
            90,
            140,
            *((500, 1500) if rng.random() < 0.3 else ()),
            *((70_000,) if real else ()),
        )
        self.cost = rng.choice((0.0, 0.001, 0.006, 0.015))
        """Seconds that a write takes."""
        self.interval = rng.choice((0.0, 0.025))
        self.memory = rng.choice((0, 4_000, 12_000, 10**9))
        self.push_unchanged = rng.random() < 0.8
        self.tick_size = rng.choice((1, 1000, 20_000))
        """Microseconds by which the database's clock moves on: commits have the same time the more often, the larger."""
        self.hurry = rng.random()
        self.churn = rng.choice((0.1, 0.3, 0.6))
        """How often it is a commit that happens, rather than something to a connection."""
        self.loss = rng.choice((0.0, 0.02, 0.2))
        """How often the stream leaves out a transaction."""
        self.peace = rng.choice((0.5, 0.8, 0.95))
        """How seldom Brain's own life changes: an outage, a comparison, a restart."""
        self.names = [f"r{i}" for i in range(rng.choice((2, 5, 12)))]
        self.now = 0.0
        self.offset: Micros = 20_000 * DAY
        self.version = 0
        self.numbers = itertools.count()
        self.wire = type("Connection", (Wire, hubs.Client), {})
        self.table: dict[str, Run] = {}
        self.parsed: dict[bytes, Any] = {}
        self.consumers: list[Consumer] = []
        self.start()
        for _ in self.names:
            self.change([])
        self.consumers = [
            Consumer(self, self.draw_filter()) for _ in range(rng.choice((2, 4, 8, 16)))
        ]
        self.wires: list[Wire] = []
        self.asked: str | None = None
        self.wrong: list[str] = []

    def draw_filter(self) -> Wanted:
        rng = self.random
        kinds = rng.choice((0, 0, 1, 1, 1, 2, 3))
        fields: dict[str, Sequence[Any]] = {
            "run_id": self.names,
            "task_id": TASKS[:2],
            "agent": AGENTS[:2],
            "status": tuple(TYPES),
        }
        chosen = rng.sample(list(fields), kinds)
        return Wanted(
            **{
                name: frozenset(rng.sample(list(fields[name]), rng.choice((1, 1, 2))))
                for name in chosen
            }
        )

    # Brain, and what it is told.

    def start(self) -> None:
        """A new process: it knows nothing, and everybody's connection to the old one is gone."""
        for consumer in self.consumers:
            if consumer.wire is not None:
                consumer.lose()
        self.timers: list[tuple[float, int, Timer]] = []
        self.board = self.boards.Board(self.memory, push_unchanged=self.push_unchanged)
        self.hub = self.hubs.Hub(
            self.board, interval=self.interval, clock=lambda: self.now, call_later=self.call_later
        )
        candidates, cohorts = self.hub._candidates, self.hub._cohorts
        self.hub._candidates = lambda *of: sorted(
            candidates(*of), key=lambda one: list(cohorts).index(one.filter)
        )
        self.said: list[Said] = []
        self.pushed: dict[str, int] = {}
        self.born: dict[str, int] = {}
        """Run id → the seq at which the board took it for a new run."""
        self.told: dict[str, Run] = {}
        """What those who have heard everything know."""
        self.held: dict[str, tuple[int, Micros]] = {}
        self.lost_seq = 0
        self.lost_time: Micros = 0
        """The newest that the board no longer holds, though it exists."""
        self.newest: Micros = 0
        self.following = False
        self.unsaid: dict[str, float] = {}
        """Run id → a change that the stream has not carried."""
        self.question: Snapshot | None = None
        self.asked_of: dict[str, float] = {}
        self.offset += DAY

    @property
    def followed(self) -> bool:
        return self.following and not self.unsaid

    def message(self, run: Run, time: Micros) -> bytes:
        """As messages.message, and with the seq of the entry, so that no two are alike."""
        head = f'{{"seq":{self.board.seq},"type":"{TYPES[run[STATUS]]}","data":'
        return text_frame(f'{head}{body(run)},"timestamp":"{iso(time)}"}}'.encode())

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timer":
        timer = Timer(callback)
        heapq.heappush(self.timers, (self.now + delay, next(self.numbers), timer))
        return timer

    def clock(self) -> Micros:
        """The database's."""
        return (self.offset + int(self.now * 1e6)) // self.tick_size * self.tick_size

    def tell(self, event: Event) -> None:
        begun = self.board.begun
        seq = self.board.seq
        pushes: list[Push] = self.board.apply(event)
        self.newest = max(self.newest, event.at, self.lost_time + 1)
        if isinstance(event, Changes):
            self.note_changes(event, pushes)
        else:
            self.note_snapshot(event, pushes, begun, seq)
        for run_id in [run_id for run_id in self.held if run_id not in self.board]:
            seq, time = self.held.pop(run_id)
            self.lost_seq, self.lost_time = max(self.lost_seq, seq), max(self.lost_time, time)
        for run_id, run in self.told.items():
            if run[STATUS] in ACTIVE and run_id not in self.board:
                self.wrong.append(f"the board has let go of {run_id}, which is {run[STATUS]}")
        before = self.now
        self.hub.push(pushes)
        self.judge_pace(before)

    def note_changes(self, event: Changes, pushes: list[Push]) -> None:
        left = iter(pushes)
        push = next(left, None)
        for op, row in event.rows:
            if op == "truncate":
                self.told.clear()
                self.held.clear()
            elif op == "delete":
                self.told.pop(row[ID], None)
                self.held.pop(row[ID], None)
            elif push is not None and push[0][RUN][:3] == row[:3]:
                self.note(push, anew=op == "insert" and row[ID] not in self.held)
                push = next(left, None)
            elif self.push_unchanged or self.told.get(row[ID], row)[:3] != row[:3]:
                self.wrong.append(f"the board did not give out {op} {row}")

    def note_snapshot(self, event: Snapshot, pushes: list[Push], begun: bool, seq: int) -> None:
        if event.new:
            for run_id in [run_id for run_id, run in self.told.items() if run[STATUS] in FINISHED]:
                self.held.pop(run_id, None)
            self.lost_seq = seq
            self.lost_time = self.newest
        for push in pushes if begun else ():
            run = push[0][RUN]
            if push[0][TIME] < event.at:
                self.wrong.append(f"{run} is said to be older than the query that found it")
            self.note(push, anew=run[ID] not in self.held and run[STATUS] in ACTIVE)
        for run_id in event.gone:
            if run_id not in self.board:
                self.told.pop(run_id, None)
                self.held.pop(run_id, None)
        if not begun:
            for run in event.rows:
                entry = self.board.get(run[ID])
                self.told[run[ID]] = run
                self.held[run[ID]] = (entry[SEQ], entry[TIME])
            if event.complete:
                self.lost_time = event.at - 1
                for consumer in self.consumers:
                    if consumer.wire is not None and consumer.snapshot:
                        consumer.owed = {
                            run_id for run_id, run in self.told.items() if run[STATUS] in ACTIVE
                        }

    def note(self, push: Push, *, anew: bool) -> None:
        entry = push[0]
        run = entry[RUN]
        was = None if anew else self.told.get(run[ID])
        held = run[ID] in self.held
        if was is None:
            self.born[run[ID]] = entry[SEQ]
        steady = was is not None and was[STATUS] == run[STATUS]
        loose = not held and not anew
        self.said.append(Said(entry[SEQ], was, run, steady, loose))
        self.told[run[ID]] = run
        self.held[run[ID]] = (entry[SEQ], entry[TIME])
        self.pushed[run[ID]] = entry[SEQ]

    # The table changes.

    def transaction(self) -> None:
        rng = self.random
        rows: list[tuple[Op, Run]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3, 9))):
            self.change(rows)
        if not self.following or rng.random() < self.loss:
            self.unsaid.update((row[ID], self.version) for _, row in rows)
            return
        at = self.clock() - rng.choice((0, 0, 0, rng.randint(0, 17_000)))
        cut = rng.choice((len(rows), rng.randint(0, len(rows))))
        for slice_ in (rows[:cut], rows[cut:]):
            if slice_:
                self.tell(Changes(slice_, at, 1))
        for _, row in rows:
            self.unsaid.pop(row[ID], None)

    def change(self, rows: list[tuple[Op, Run]]) -> None:
        rng = self.random
        run_id = rng.choice(self.names)
        old = self.table.get(run_id)
        self.version += 1
        version = self.version / 1000
        error = None if rng.random() < 0.3 else "x" * rng.choice(self.texts)
        if old is None:
            status = rng.choice(("queued", "queued", "running", *FINISHED))
            new: Run = (
                run_id,
                status,
                version,
                rng.choice(TASKS),
                rng.choice(AGENTS),
                None,
                None,
                error,
            )
            rows.append(("insert", new))
            self.table[run_id] = new
            return
        _, status, _, task_id, agent, _, _, text = old
        kind = rng.random()
        if kind < 0.03:
            del self.table[run_id]
            rows.append(("delete", only_id(run_id)))
            return
        if kind < 0.033:
            self.table.clear()
            if self.followed:  # unseen, it would be a delete of each
                rows.append(("truncate", only_id("")))
            else:
                rows.extend(("delete", only_id(run_id)) for run_id in self.names)
            return
        if kind < 0.1:
            rows.append(("update", old))  # changes nothing
            return
        if kind < 0.35:
            status = rng.choice(NEXT[status])
        elif kind < 0.5:
            task_id, agent = rng.choice(TASKS), rng.choice(AGENTS)
        elif kind < 0.6:
            text = error
        new = (run_id, status, version, task_id, agent, None, None, text)
        self.table[run_id] = new
        if text == old[7] and text is not None and run_id in self.held and old[STATUS] in ACTIVE:
            new = new if run_id in self.unsaid else (*new[:7], UNCHANGED)
        rows.append(("update", new))

    def look(self, *, new: bool = False) -> Snapshot:
        """What a query finds that asks for what has changed, and for what the board holds as unfinished."""
        rng = self.random
        ids = {*self.unsaid, *self.board.unfinished(), *rng.sample(self.names, 1)}
        return Snapshot(
            [self.table[run_id] for run_id in sorted(ids) if run_id in self.table],
            self.clock(),
            gone=[run_id for run_id in sorted(self.board.unfinished()) if run_id not in self.table],
            new=new,
        )

    def follow(self) -> None:
        """A Snapshot, in pieces, and the stream from there."""
        rng = self.random
        if not self.board.begun:
            rows = [run for run in self.table.values() if run[STATUS] in ACTIVE]
            whole = Snapshot(rows, self.clock())
            self.told = {
                run_id: run for run_id, run in self.table.items() if run[STATUS] in FINISHED
            }
        else:
            whole = self.look(new=rng.random() < 0.2)
        cut = rng.randint(0, len(whole.rows))
        if rng.random() < 0.5:
            self.tell(Snapshot(whole.rows[:cut], whole.at, complete=False, new=whole.new))
            self.tell(Snapshot(whole.rows[cut:], whole.at, gone=whole.gone))
        else:
            self.tell(whole)
        self.following = True
        self.unsaid.clear()

    def compare(self) -> None:
        """Ask what the table holds; and, later, tell the board, which has gone on meanwhile."""
        if self.question is None:
            found = self.look()
            self.question = Snapshot(
                found.rows, found.at, gone=found.gone, unless_after=self.board.seq
            )
            self.asked_of = dict(self.unsaid)
        else:
            self.tell(self.question)
            self.question = None
            settled = self.asked_of.items() & self.unsaid.items()
            for run_id, _ in settled:
                if self.table.get(run_id) in (None, self.told.get(run_id)):
                    del self.unsaid[
                        run_id
                    ]  # else the stream had overtaken the answer: the next will have it

    # What may happen.

    def step(self) -> None:
        rng = self.random
        early = rng.choice((0.0, 0.0004))
        if (
            self.timers
            and self.timers[0][0] <= self.now + early
            and rng.random() < 0.2 + 0.6 * self.hurry
        ):
            self.fire()
        elif self.hub._sweep is not None and rng.random() < 0.5:
            self.ping(rng.choice(self.consumers))
        elif rng.random() < self.churn:
            self.transaction()
        elif rng.random() < self.peace:
            self.disturb(rng.choice(self.consumers))
        else:
            self.operate()
        for wire in self.wires:
            if wire.queued < len(wire.stream):
                wire.turn()
        self.now += rng.choice((0.0, 0.0, 0.0001, rng.uniform(0, 0.003), rng.uniform(0, 0.03)))

    def fire(self) -> None:
        _, _, timer = heapq.heappop(self.timers)
        if timer.callback is not None:
            before = self.now
            timer.callback()
            self.judge_pace(before)

    def disturb(self, consumer: Consumer) -> None:
        rng = self.random
        wire = consumer.wire
        if wire is None:
            consumer.connect()
            return
        if wire.over:
            consumer.lose()
            return
        what = rng.random()
        if what < 0.5:
            if consumer.reading:
                consumer.take(rng.choice((10**9, 10**9, rng.randint(0, 500))))
            if rng.random() < 0.8:
                wire.turn()
        elif what < 0.75:
            self.ping(consumer)
        elif what < 0.9:
            consumer.reading = not consumer.reading
        elif what < 0.98:
            consumer.lose()
        elif what < 0.985:
            wire.broken = True

    def ping(self, consumer: Consumer) -> None:
        """A ping of ours, or pongs in answer to theirs: they may be what fills the transport, whatever the hub is at."""
        for _ in range(self.random.choice((1, 3))):
            wire = consumer.wire
            if wire is not None and not wire.full and not wire.broken:
                wire.write(b"\x8a\x7d" + bytes(125) if self.random.random() < 0.7 else b"\x89\x00")

    def operate(self) -> None:
        what = self.random.random()
        if not self.following:
            if what < 0.4:
                self.follow()
        elif what < 0.4:
            self.compare()
        elif what < 0.5:
            self.following = False
            self.question = None
        elif what < 0.52:
            self.start()

    def rest(self) -> None:
        """Everybody is there and reads, the table is as it is, and whatever was under way comes to its end."""
        self.question = None
        if not self.following:
            self.follow()
        self.compare()
        self.compare()
        for _ in range(2000):
            busy = False
            for consumer in self.consumers:
                consumer.reading = True
                if consumer.wire is not None and (consumer.wire.over or consumer.wire.broken):
                    consumer.lose()
                if consumer.wire is None:
                    consumer.connect()
                    busy = True
                    continue
                wire = consumer.wire
                while wire.stream:
                    busy = True
                    consumer.take(10**9)
                    wire.turn()
            if self.timers:
                self.now = max(self.now, self.timers[0][0])
                self.fire()
            elif not busy:
                return
            self.judge()
        raise Wrong("the world does not come to rest")

    # What is right.

    def parse(self, wire: Wire) -> None:
        """Take whole frames off what has arrived."""
        stream = wire.stream
        while len(stream) >= 2:
            head, size = 2, stream[1]
            if size == 126:
                head, size = 4, int.from_bytes(stream[2:4], "big")
            elif size == 127:
                head, size = 10, int.from_bytes(stream[2:10], "big")
            length = head + size
            if length > wire.read:
                return
            frame = bytes(stream[:length])
            del stream[:length]
            wire.read -= length
            wire.sent -= length
            wire.queued -= length
            if frame[0] == 0x81:
                self.judge_message(wire, frame[head:])

    def judge_message(self, wire: Wire, payload: bytes) -> None:
        message = self.parsed.get(payload)
        if message is None:
            message = self.parsed[payload] = json.loads(payload)
        run = message["data"]
        run_id, version = run["id"], run["progress"]
        if message["type"] != TYPES[run["status"]]:
            raise Wrong(f"type and status disagree: {message}")
        if message["timestamp"] < wire.time:
            raise Wrong(f"time goes back from {wire.time}: {message}")
        if version < wire.versions.get(run_id, 0):
            raise Wrong(f"{run_id} goes back from {wire.versions[run_id]}: {message}")
        seq = message["seq"]
        if seq <= wire.reached:
            raise Wrong(f"sent twice, or out of order: {message}")
        if seq <= wire.snapshot_of and run["status"] in FINISHED:
            raise Wrong(f"not for one who asked for what is unfinished: {message}")
        wire.time, wire.versions[run_id], wire.reached = message["timestamp"], version, seq
        wire.received.add(seq)
        wire.consumer.hear(seq, message)

    def judge_pace(self, before: float) -> None:
        most = 1.5 * self.hubs.BUDGET + (self.hubs.STRIDE + 1) * self.cost
        if self.now - before > most + 1e-9:
            self.wrong.append(
                f"the loop was held for {self.now - before:.3f} s, more than {most:.3f}"
            )

    def judge_write(self, wire: Wire, data: bytes) -> None:
        if wire.full and wire.full_since != self.hub.counts.flushes:
            self.wrong.append("a full transport is handed more than the flush that was under way")
        most = max(self.hubs.BATCH, self.boards.PIECE)
        size = (
            data[1]
            if data[1] < 126
            else int.from_bytes(data[2 : 4 if data[1] == 126 else 10], "big")
        )
        if len(data) > max(most, size + 10):
            self.wrong.append(f"{len(data)} bytes in one write")

    def judge_refusal(self, wire: Wire, code: int) -> None:
        if code == TRY_AGAIN_LATER.code:
            if self.board.begun:
                self.wrong.append("told to wait for a database that has been read")
        elif self.asked is not None:
            if parse_time(self.asked) > self.lost_time:
                self.wrong.append(f"refused, though nothing since {self.asked} is lost")
        elif self.lost_seq <= max(wire.seq or 0, wire.until):
            self.wrong.append(
                f"refused at {wire.seq} (until {wire.until}), though all is there after {self.lost_seq}"
            )

    def judge_live(self, wire: Wire, *, whole: bool) -> None:
        """A client that never lagged was told every change that concerns it, less progress that newer progress replaced."""
        if wire.live_since is None or not wire.never_full or wire.broken:
            return
        wanted, due = wire.consumer.wanted, dict[str, bool]()
        for seq, was, now, steady, loose in self.said:
            if seq <= wire.live_since or (seq > wire.reached and not whole):
                continue
            run_id = now[ID]
            if due.get(run_id) and not steady:
                raise Wrong(
                    f"a change was left out before {run_id} became {now[STATUS]} (seq {seq})"
                )
            concerned = due.get(run_id, False) or wanted(was) or wanted(now)
            received = seq in wire.received
            if received and not concerned and not loose:
                raise Wrong(f"{now} does not concern {wanted}")
            due[run_id] = concerned and not received
        if whole and any(due.values()):
            raise Wrong(f"a live client was not told the last of {due}")
        if not wire.received <= {said.seq for said in self.said}:
            raise Wrong("a live client was told what was not pushed")

    def judge_view(self, consumer: Consumer) -> None:
        for run_id, run in self.table.items():
            concerned = (
                consumer.whole
                or run_id in consumer.view
                or run_id in consumer.owed
                or self.pushed.get(run_id, 0) > consumer.start
            )
            if not concerned:
                continue
            seen = consumer.view.get(run_id)
            if consumer.wanted(run):
                if seen != shown(run):
                    raise Wrong(f"{consumer.wanted} believes {seen}, and it is {shown(run)}")
            elif seen is not None and consumer.heard[run_id] >= self.born.get(run_id, 0):
                raise Wrong(f"{consumer.wanted} still holds {seen}, and it is {shown(run)}")

    def judge(self) -> None:
        if self.wrong:
            raise Wrong(self.wrong[0])

    def probe(self) -> None:
        """All is at rest: what is a newcomer told?"""
        wanted = self.draw_filter()
        snapshot, since = Consumer(self, wanted), Consumer(self, wanted)
        self.consumers = [snapshot, since]
        snapshot.connect(how="snapshot")
        since.start = self.board.seq
        moment = self.random.choice(
            [entry[TIME] for entry in map(self.board.get, self.held)] or [self.newest]
        )
        since.connect(iso(moment))
        refused = since.wire is not None and since.wire.over
        self.rest()
        active = {
            run_id: shown(run)
            for run_id, run in self.table.items()
            if run[STATUS] in ACTIVE and wanted(run)
        }
        if {
            run_id: run for run_id, run in snapshot.view.items() if run["status"] in ACTIVE
        } != active:
            raise Wrong(f"snapshot gave {snapshot.view}, and active is {active}")
        if not refused:
            for run_id, run in self.table.items():
                due = run_id in self.held and self.held[run_id][1] >= moment and wanted(run)
                if due and since.view.get(run_id) != shown(run):
                    raise Wrong(f"since {moment} gave {since.view}, without {shown(run)}")

    def live(self) -> None:
        rounds = self.random.choice((1, 4, 12))
        for _ in range(rounds):
            for _ in range(self.random.choice((100, 300, 600)) // rounds):
                self.step()
                self.judge()
            self.rest()
            self.judge_rest()
        self.probe()
        self.judge()

    def judge_rest(self) -> None:
        if self.hub.lagging or self.hub.clients != len(self.wires):
            raise Wrong(
                f"{self.hub.lagging} lag of {self.hub.clients}, and there are {len(self.wires)}"
            )
        for consumer in self.consumers:
            assert consumer.wire is not None
            self.judge_live(consumer.wire, whole=True)
            self.judge_view(consumer)


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


def shown(run: Run) -> Any:
    return json.loads(body(run))


def histories(seeds: Iterable[int], boards: Any, hubs: Any) -> None:
    for seed in seeds:
        try:
            World(seed, boards, hubs).live()
        except Exception as error:
            raise Wrong(
                f"history {seed} (BRAIN_FIRST_HISTORY={seed} BRAIN_HISTORIES=1): {error}"
            ) from error


def test_histories() -> None:
    histories(range(FIRST, FIRST + HISTORIES), altered(the_board), altered(the_hub))


# The proof of the proof: each rule is taken away. The rare ones are seen once in some thousand histories.

BOARD, HUB = the_board, the_hub

RULES: dict[str, tuple[int, ModuleType, tuple[tuple[str, str], ...]]] = {
    "R1 flushed is set before the first write": (
        12,
        HUB,
        (
            (
                "self.flushed = self.board.seq\n        self._last",
                "self._next = self.board.seq\n        self._last",
            ),
            ("_batches(pushes, self.flushed)", "_batches(pushes, self.board.seq)"),
            ("_batches(mine, self.flushed)", "_batches(mine, self.board.seq)"),
            (
                "for client in self._late:",
                "self.flushed = self._next\n        for client in self._late:",
            ),
        ),
    ),
    "R2 the batch just handed over counts as sent": (
        10,
        HUB,
        (("is None else self._serving\n", "is None else self._serving - 1\n"),),
    ),
    "R2 and no later batch does": (
        55,
        HUB,
        (("self.flushed if self._serving is None else self._serving", "self.flushed"),),
    ),
    "R3 live again only if nothing was flushed": (
        0,
        HUB,
        (("if client.intact and client.seq == self.flushed:", "if client.intact:"),),
    ),
    "R3 and if nothing but flushes was handed over": (
        168,
        HUB,
        (("if client.intact and client.seq == self.flushed:", "if client.seq == self.flushed:"),),
    ),
    "R3 the tick drives catching up": (
        15,
        HUB,
        (("        return behind\n", "        return False\n"),),
    ),
    "R4 catching up ends at what was flushed": (
        12,
        HUB,
        (
            (
                "board.piece(client.seq, flushed, _wanted",
                "board.piece(client.seq, board.seq, _wanted",
            ),
            (
                "client.intact = False",
                "client.seq = min(client.seq, flushed)\n                client.intact = False",
            ),
        ),
    ),
    "R5 live only while nothing is pending": (
        175,
        HUB,
        (("if client.seq == flushed and not self._pending:", "if client.seq == flushed:"),),
    ),
    "R6 no flush begins before the last sweep has ended": (
        2,
        HUB,
        (("if not self._pending or self._sweep is not None:", "if not self._pending:"),),
    ),
    "R6 who is cut off in a sweep is out of it": (18, HUB, (("cut_off.add(client)", "pass"),)),
    "R6 a write that fails ends nothing else": (
        10,
        HUB,
        (
            (
                "except Exception as error:  # noqa: BLE001 - one client's failure must never end a sweep",
                "except OSError as error:",
            ),
        ),
    ),
    "R6 filled while the sweep is suspended: still a receiver": (
        575,
        HUB,
        (("if self._sweep is not None and self._serving is None:", "if False:"),),
    ),
    "R6 a suspended sweep is inside nobody's write": (
        680,
        HUB,
        (("self._serving = None\n                            yield", "yield"),),
    ),
    "R6 and is cut off behind the sweep": (
        85,
        HUB,
        (
            (
                "            self._cut_off(client, client.cohort, self.flushed)\n        self._late",
                "            pass\n        self._late",
            ),
        ),
    ),
    "R6 unless it has drained": (
        306,
        HUB,
        (("            self._late.discard(client)\n            return", "            return"),),
    ),
    "R7 conflating appends the newer": (
        9,
        HUB,
        (
            (
                "                steady_at[run_id] = len(pending)",
                (
                    "                    pending[place] = (entry, merged, steady)\n"
                    "                    continue\n"
                    "                steady_at[run_id] = len(pending)"
                ),
            ),
        ),
    ),
    "R8 a change of status is never merged away": (
        8,
        HUB,
        (("if steady:\n                # (R7", "if True:\n                # (R7"),),
    ),
    "R8 a change of status ends the chain": (14, HUB, (("steady_at.pop(run_id, None)", "pass"),)),
    "R8 what is merged unites its was": (
        8,
        HUB,
        (
            (
                "facets if older[1] == facets else tuple(dict.fromkeys(older[1] + facets))",
                "merged",
            ),
        ),
    ),
    "R9 time never goes back": (
        3,
        BOARD,
        (
            (
                "self.time = max(self.time, at, self.floor_time + 1)",
                "self.time = max(at, self.floor_time + 1)",
            ),
        ),
    ),
    "R9 a Snapshot has the time of its query": (
        2,
        BOARD,
        (("self._advance(event.at)\n        if event.new", "if event.new"),),
    ),
    "R9 since includes its moment": (
        22,
        BOARD,
        (("bisect_left(self._times, time)", "bisect_right(self._times, time)"),),
    ),
    "R9 the moment of an evicted change is a gap": (
        1,
        BOARD,
        (("time <= self.floor_time", "time < self.floor_time"),),
    ),
    "R9 before the first Snapshot is a gap": (
        10,
        BOARD,
        (("self.floor_time = max(self.floor_time, event.at - 1)", "pass"),),
    ),
    "R9 at the first Snapshot is none": (
        36,
        BOARD,
        (("self.floor_time = max(self.floor_time, event.at - 1)", "self.floor_time = event.at"),),
    ),
    "R10 a flush tells who wanted what the run was": (
        2,
        BOARD,
        (("both = (now,) if before == now else (before, now)", "both = (now,)"),),
    ),
    "R10 catching up tells who wanted anything it was": (
        8,
        BOARD,
        (("run, frame, seen, xid)", "run, frame, (now,), xid)"),),
    ),
    "R10 which may be too much to remember": (
        12,
        BOARD,
        (("< MAX_FACETS else ANYTHING", "< MAX_FACETS else seen"),),
    ),
    "R10 an unknown run that is updated was anything finished": (
        26,
        BOARD,
        (('() if op == "insert" else FINISHED', "()"),),
    ),
    "R10 likewise in a Snapshot": (
        59,
        BOARD,
        (("run[STATUS] in ACTIVE else FINISHED", "run[STATUS] in ACTIVE else ()"),),
    ),
    "R10 a run that is inserted was nothing": (
        9,
        BOARD,
        (('() if op == "insert" else FINISHED', "FINISHED"),),
    ),
    "R11 active runs are never evicted": (
        11,
        BOARD,
        (
            (
                "            self._unfinished.add(run[0])\n            self._done.pop(run[0], None)\n",
                "            self._unfinished.add(run[0])\n            self._done[run[0]] = None\n",
            ),
        ),
    ),
    "R12 a gap is refused": (
        26,
        HUB,
        (("if board.floor > max(client.seq, client.until):", "if False:"),),
    ),
    "R12 and only a gap": (
        0,
        HUB,
        (("if board.floor > max(client.seq, client.until):", "if board.floor > client.seq:"),),
    ),
    "R12 what is evicted is a gap": (
        5,
        BOARD,
        (
            (
                "self.floor, self.floor_time = (\n",
                "_, self.floor_time = (\n",
            ),
        ),
    ),
    "R12 what a new beginning forgets is a gap": (
        33,
        BOARD,
        (("self.floor, self.floor_time = self.seq, self.time", "pass"),),
    ),
    "R13 what is gone is forgotten": (
        136,
        BOARD,
        (
            (
                "<= event.unless_after\n            ):\n                self._forget(known)",
                "<= event.unless_after\n            ):\n                pass",
            ),
        ),
    ),
    "R13 the first Snapshot pushes nothing": (41, BOARD, (("            pushes = []\n", ""),)),
    "R13 and counts as flushed": (
        8,
        HUB,
        (("self.flushed = self.board.seq\n            if self._ready", "if self._ready"),),
    ),
    "R13 what the stream has overtaken is no news": (
        1,
        BOARD,
        (
            (
                "return news and (unless_after is None or known[SEQ] <= unless_after)",
                "return news",
            ),
        ),
    ),
    "R13 nor what it has deleted": (309, BOARD, (("self._deleted[run[ID]] = self.seq", "pass"),)),
    "R13 or emptied": (
        635,
        BOARD,
        (
            (
                "self._deleted.clear()\n                self._emptied = self.seq",
                "self._deleted.clear()",
            ),
        ),
    ),
    "R13 or too much to remember": (
        374,
        BOARD,
        (("            self._emptied = self.seq\n        return", "        return"),),
    ),
    "R13 or the board has evicted": (
        1,
        BOARD,
        (
            (
                "max(self.floor, self._deleted.get(run[ID], self._emptied))",
                "self._deleted.get(run[ID], self._emptied)",
            ),
        ),
    ),
    "R13 nor is gone what has come back": (
        8502,
        BOARD,
        (
            (
                "event.unless_after is None or known[SEQ] <= event.unless_after\n",
                "True\n",
            ),
        ),
    ),
    "R14 a client without a wish is live at once": (
        12,
        HUB,
        (("cohort.live.add(client)  # (R14)\n            return", "client.seq = self.flushed"),),
    ),
    "R15 a piece is for one filter": (40, HUB, (("key = (cohort.filter, ", "key = (ALL, "),)),
    "R15 and for one snapshot": (
        14,
        HUB,
        (("client.until if client.seq < client.until else 0)", "0)"),),
    ),
    "R15 it ends before the roundest seq": (
        190,
        BOARD,
        (("len(frames), common - 1,", "len(frames), common,"),),
    ),
    "R15 it is bounded": (25, BOARD, (("if frames and size + len(frame) > PIECE:", "if False:"),)),
    "R16 a sweep yields": (10, HUB, (("if turns + len(some) > STRIDE:", "if False:"),)),
    "R16 catching up yields": (76, HUB, (("if self._clock() > deadline:", "if False:"),)),
    "R17 a batch is cut": (2, HUB, (("if frames and size + len(frame) > BATCH:", "if False:"),)),
}
"""What the rule says: a history that goes wrong without it, and the lines that take it out of the source."""


@pytest.mark.parametrize("rule", RULES)
def test_a_history_goes_wrong_without(rule: str) -> None:
    """If the seed no longer finds it, as what is drawn has changed, others are tried; BRAIN_HISTORIES=4000 tries enough."""
    seed, module, changes = RULES[rule]
    histories([seed], altered(BOARD), altered(HUB))
    boards = altered(BOARD, *changes) if module is BOARD else altered(BOARD)
    hubs = altered(HUB, *changes) if module is HUB else altered(HUB)
    with pytest.raises(Wrong, match=r"^history \d+"):
        histories([seed, *range(FIRST, FIRST + HISTORIES)], boards, hubs)
