"""A simulated world for random histories: a table, a Brain that follows it, and its clients.

The world runs board and hub on a loop of its own, in which anything may happen in the middle of a
sweep. Clients connect, stall, are cut off at any byte and reconnect. The clock is virtual and a
write takes time, so sweeps and catch-up exceed their budget and yield, and other events come
between. Everything is drawn from one seed; judge.py decides what is right.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from brain.contract.close_codes import GAP
from brain.contract.events import Changes, Op, Resumed, Snapshot, only_id
from brain.contract.include import INCLUDE, Include, SourceReport
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
    text_frame,
)
from brain.delivery.board import ENTRY, Push
from brain.delivery.log import DELETED, RUN, SEQ, TIME
from tests.unit.delivery import judge
from tests.unit.delivery.consumers import Connection, Consumer, Criteria
from tests.unit.delivery.judge import FINISHED, Violation

NEXT = {
    "queued": ("running", "running", "failed"),
    "running": ("completed", "failed", "queued"),
    "completed": ("running", "queued"),
    "failed": ("running", "queued", "completed"),
}
AGENTS = ("a", "b", None)
TASKS = ("t", "u", None)
DAY = 86_400_000_000
WISHES: tuple[tuple[Include, ...], ...] = (
    (),
    (),
    (),
    ("deleted",),
    ("deleted",),
    ("ready", "source"),
)


class Engine(NamedTuple):
    """The classes under test: the real ones, or those of a module with a rule removed
    (mutants.py).
    """

    board: Any
    hub: Any


class Pushed(NamedTuple):
    """A change that the board returned to be pushed, and what the run was before."""

    run_id: str
    seq: int
    was: Run | None
    now: Run | None
    """None: it was deleted."""
    steady: bool
    """The status stayed the same."""
    loose: bool
    """The board cannot know what the run was, and may send it to more clients than necessary."""


class Before(NamedTuple):
    """What a Brain that has ended had told: as if it had kept records of all of it."""

    reported: dict[str, Run]
    held: dict[str, tuple[int, Micros]]
    lost_time: Micros
    newest: Micros


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """One history."""

    def __init__(self, seed: int, engine: Engine) -> None:
        self.random = rng = random.Random(seed)
        self.engine = engine
        real = rng.random() < 0.03
        self.max_piece = 65536 if real else rng.choice((300, 1200, 5000))
        self.max_batch = 131072 if real else rng.choice((300, 1200, 5000))
        self.max_group = rng.choice((1, 2, 3, 8))
        self.max_compared = rng.choice((10, 40, 10_000))
        self.max_facets = rng.choice((2, 4, 32))
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
        self.kernel = rng.choice((0.0, 0.0001, 0.001, 0.006))
        """Seconds that the turn of the loop in which a sweep ends takes for what each write has
        queued."""
        self.interval = rng.choice((0.0, 0.025, 0.025))
        self.memory = rng.choice((0, 4_000, 12_000, 10**9))
        self.push_unchanged = rng.random() < 0.8
        self.tick_size = rng.choice((1, 1000, 20_000))
        """Microseconds between two readings of the database's clock. The larger, the more commits
        have the same time."""
        self.hurry = rng.random()
        """How soon due timers fire."""
        self.churn = rng.choice((0.1, 0.3, 0.6))
        """The share of steps that are commits rather than events of a connection."""
        self.loss = rng.choice((0.0, 0.02, 0.2))
        """The share of transactions that the stream omits."""
        self.calm = rng.choice((0.5, 0.8, 0.95))
        """The share of other steps that are no outage, comparison or restart of Brain."""
        self.names = [f"r{i}" for i in range(rng.choice((2, 5, 12)))]
        self.now = 0.0
        self.offset: Micros = 20_000 * DAY
        self.version = 0
        self.numbers = itertools.count()
        self.table: dict[str, Run] = {}
        self.outside: set[str] = set()
        """The ids of rows that the contract cannot express."""
        self.parsed: dict[bytes, Any] = {}
        self.consumers: list[Consumer] = []
        self.board: Any = None
        self.start()
        for _ in self.names:
            self.change([])
        self.consumers = [
            Consumer(self, self.draw_filter(), frozenset(rng.choice((*WISHES, INCLUDE))))
            for _ in range(rng.choice((2, 4, 8, 16)))
        ]
        self.connections: list[Connection] = []
        self.asked: str | None = None
        """The `since` of the client that is joining."""
        self.resetting = False
        """The table has been replaced, and every connection is being closed."""
        self.wrong: list[str] = []

    def draw_filter(self) -> Criteria:
        rng = self.random
        kinds = rng.choice((0, 0, 1, 1, 1, 2, 3))
        fields: dict[str, Sequence[Any]] = {
            "run_id": self.names,
            "task_id": TASKS[:2],
            "agent": AGENTS[:2],
            "status": tuple(TYPES),
        }
        chosen = rng.sample(list(fields), kinds)
        return Criteria(
            **{
                name: frozenset(rng.sample(list(fields[name]), rng.choice((1, 1, 2))))
                for name in chosen
            }
        )

    # Brain, and what it receives

    def start(self) -> None:
        """A new process: it holds nothing, and the connections to the old one are lost."""
        for consumer in self.consumers:
            if consumer.connection is not None:
                consumer.disconnect()
            consumer.restarted()
        self.before = (
            Before(self.reported, self.held, self.lost_time, self.newest)
            if self.board is not None and self.board.begun and self.random.random() < 0.5
            else None
        )
        self.timers: list[tuple[float, int, Timer]] = []
        self.beats: list[tuple[float, int, Timer]] = []
        """Those of the frames about the source, which never end."""
        self.board = self.engine.board(
            self.memory,
            push_unchanged=self.push_unchanged,
            encode=self.message,
            encode_deleted=self.deleted_message,
            max_piece=self.max_piece,
            max_facets=self.max_facets,
        )
        self.hub = self.engine.hub(
            self.board,
            interval=self.interval,
            clock=lambda: self.now,
            call_later=self.call_later,
            call_soon=self.call_soon,
            report=self.report,
            max_batch=self.max_batch,
            max_group=self.max_group,
            max_compared=self.max_compared,
        )
        # Patched, because the index holds sets of cohorts, whose order depends on their addresses:
        # a history has to be the same each time it is replayed.
        cohorts = self.hub._cohorts
        lookup = cohorts.index.lookup

        def ordered(*change: Any) -> Any:
            kinds, found = lookup(*change)
            return kinds, sorted(found, key=list(cohorts).index)

        cohorts.index.lookup = ordered
        self.pacing = judge.Pacing(self)
        self.soon: list[Callable[[], None]] = []
        self.writes = 0
        """Since the turn of the loop began."""
        self.pushed: list[Pushed] = []
        self.sent: set[int] = set()
        """The seqs of the changes that any client was sent."""
        self.pushed_at: dict[str, int] = {}
        """Run id → the seq of its last push."""
        self.born: dict[str, int] = {}
        """Run id → the seq at which the board took it for a new run."""
        self.reported: dict[str, Run] = {}
        """The table as a client would know it that has received everything."""
        self.held: dict[str, tuple[int, Micros]] = {}
        self.shown: set[str] = set()
        """What the API showed before the event that is being applied."""
        self.graves: dict[str, tuple[int, Micros]] = {}
        """The same of deleted runs that the board holds."""
        self.buried: set[str] = set()
        """Runs that the board was told to have left, whether or not it holds their tombstone."""
        self.untold: set[str] = set()
        """Runs that were deleted while nobody could tell it."""
        self.dead_seq = 0
        self.dead_time: Micros = 0
        """The newest change that deleted runs without naming them."""
        self.lost_seq = 0
        self.lost_time: Micros = 0
        """The newest change of a run that exists and that the board no longer holds."""
        self.newest: Micros = 0
        self.following = False
        self.unreported: dict[str, float] = {}
        """Run id → the version of a change that the stream has not carried."""
        self.question: Snapshot | None = None
        """The answer to a comparison that the board has not received yet."""
        self.asked_of: dict[str, float] = {}
        self.offset += DAY

    @property
    def followed(self) -> bool:
        return self.following and not self.unreported

    def active_runs(self) -> set[str]:
        return {run_id for run_id, run in self.reported.items() if run[STATUS] in ACTIVE}

    def message(self, run: Run, time: Micros) -> bytes:
        """Like messages.message, with the seq of the entry, so that no two messages are equal."""
        head = f'{{"seq":{self.board.seq},"type":"{TYPES[run[STATUS]]}","data":'
        return text_frame(f'{head}{body(run)},"timestamp":"{iso(time)}"}}'.encode())

    def deleted_message(self, run_id: str, time: Micros) -> bytes:
        """Like include.deleted_message, with the seq."""
        head = f'{{"seq":{self.board.seq},"type":"run_deleted","data":{{"id":"{run_id}"}}'
        return text_frame(f'{head},"timestamp":"{iso(time)}"}}'.encode())

    def report(self) -> SourceReport:
        return SourceReport("replication" if self.following else "poll", None, "", 0.0)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        endless = type(getattr(callback, "__self__", None)).__name__ == "SourceMessages"
        queue = self.beats if endless else self.timers
        heapq.heappush(queue, (self.now + delay, next(self.numbers), timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def worked(self, began: float) -> None:
        """The hub has worked from then on."""
        judge.pace(self, began)
        self.pacing.worked(began)

    def end_turn(self) -> None:
        """The loop sends what was written, and calls what is due in its next turn."""
        self.now += self.kernel * self.writes
        self.writes = 0
        self.pacing.turn()
        while self.soon:
            self.soon.pop(0)()
        self.pacing.rests()

    def clock(self) -> Micros:
        """The database's clock."""
        return (self.offset + int(self.now * 1e6)) // self.tick_size * self.tick_size

    def apply(self, event: Snapshot | Changes | Resumed, *, more: bool = False) -> None:
        """`more`: the source says more in the same turn of the loop."""
        begun = self.board.begun
        seq = self.board.seq
        self.shown = set(self.board._shown)
        pushes: list[Push] = self.board.apply(event)
        self.newest = max(self.newest, event.at, self.lost_time + 1)
        if isinstance(event, Changes):
            self.note_changes(event, pushes, seq)
        elif isinstance(event, Resumed):
            self.note_resumed(event)
        else:
            self.note_snapshot(event, pushes, begun, seq)
        for held in (self.held, self.graves):
            for run_id in [run_id for run_id in held if run_id not in self.board._runs]:
                seq, time = held.pop(run_id)
                self.lost_seq, self.lost_time = max(self.lost_seq, seq), max(self.lost_time, time)
        finished = any(self.reported[run_id][STATUS] in FINISHED for run_id in self.held)
        if self.board.size > self.memory and (self.graves or finished):
            self.wrong.append("the board holds more than its memory")
        if any(run_id in self.board for run_id in self.graves):
            self.wrong.append("the board takes a tombstone for a run")
        for run_id, run in self.reported.items():
            if run[STATUS] in ACTIVE and run_id not in self.board:
                self.wrong.append(f"the board has dropped {run_id}, which is {run[STATUS]}")
        before = self.now
        self.hub.push(pushes)
        self.worked(before)
        if not more:
            self.end_turn()

    def note_changes(self, event: Changes, pushes: list[Push], seq: int) -> None:
        left = iter(pushes)
        push = next(left, None)
        for op, row in event.rows:
            run_id = row[ID]
            if op == "truncate":
                seq += 1
                self.reported.clear()
                self.forget()
                self.note_dead(seq)
            elif op == "delete":
                seq += 1
                if push is not None and push[ENTRY][RUN][:2] == (run_id, DELETED):
                    self.note_burial(push)
                    push = next(left, None)
                elif run_id in self.graves and run_id not in self.shown:
                    self.graves[run_id] = (seq, self.newest)
                else:
                    self.wrong.append(f"the board did not push that {run_id} was deleted")
            elif push is not None and push[ENTRY][RUN][:3] == row[:3]:
                seq = push[ENTRY][SEQ]
                self.note(push, created=op == "insert" and run_id not in self.held)
                push = next(left, None)
            elif self.push_unchanged or self.reported.get(run_id, row)[:3] != row[:3]:
                self.wrong.append(f"the board did not push {op} {row}")
        if push is not None:
            self.wrong.append(f"the board pushed {push} without a reason")

    def forget(self) -> None:
        """The board holds nothing any more of finished and deleted runs."""
        self.held = {run_id: held for run_id, held in self.held.items() if run_id in self.reported}
        self.graves.clear()
        self.buried.clear()

    def note_dead(self, seq: int) -> None:
        self.dead_seq, self.dead_time = seq, self.newest
        self.newest += 1
        self.untold.clear()

    def note_snapshot(self, event: Snapshot, pushes: list[Push], begun: bool, seq: int) -> None:
        if event.new:
            finished = [each for each, run in self.reported.items() if run[STATUS] in FINISHED]
            for run_id in finished:
                self.held.pop(run_id, None)
            self.graves.clear()
            self.buried.clear()
            self.lost_seq = seq
            self.lost_time = self.newest
        for push in pushes if begun else ():
            entry = push[ENTRY]
            run = entry[RUN]
            if entry[TIME] < event.at:
                self.wrong.append(f"{run} has a time before the query that found it")
            if run[STATUS] == DELETED:
                after = event.unless_after
                if after is not None and self.pushed_at.get(run[ID], 0) > after:
                    self.wrong.append(f"a comparison has buried {run[ID]}, which is newer")
                self.note_burial(push)
            else:
                self.note(push, created=run[ID] not in self.held and run[STATUS] in ACTIVE)
        for run_id in event.gone:
            if run_id not in self.board:
                self.untold.discard(run_id)
                self.reported.pop(run_id, None)
                self.held.pop(run_id, None)
        if not begun and pushes:
            self.wrong.append("the first Snapshot was pushed")
        if not begun:
            self.note_first_snapshot(event, seq)
        elif event.deletes_unknown:
            self.note_dead(self.board.seq)

    def note_resumed(self, event: Resumed) -> None:
        """Memory reaches over the restart, but nobody knows what was deleted before it (T8)."""
        self.reported = dict(self.table)
        rows = [(event.floor_time + 1, run) for run in event.unchanged] + list(event.changed)
        for seq, (time, run) in enumerate(rows, 1):
            self.held[run[ID]] = (seq, time)
        self.lost_time, self.dead_time = event.floor_time, event.at
        self.newest = max(self.newest, event.at + 1)
        self.untold.clear()
        self.begin()

    def begin(self) -> None:
        """What the clients asked for that have joined with `snapshot` already."""
        for consumer in self.consumers:
            if consumer.connection is not None and consumer.snapshot:
                consumer.owed = self.active_runs()
                consumer.connection.snapshot_seq = self.board.seq
                consumer.connection.asked_for = self.board.seq

    def note_first_snapshot(self, event: Snapshot, seq: int) -> None:
        for place, run in enumerate(event.rows, seq + 1):
            self.reported[run[ID]] = run
            self.held[run[ID]] = (place, self.newest)
        if event.complete:
            self.dead_time = event.at - 1
            self.lost_time = max(self.lost_time, self.dead_time)
            self.untold.clear()
            self.begin()

    def note(self, push: Push, *, created: bool) -> None:
        entry = push[ENTRY]
        run = entry[RUN]
        run_id = run[ID]
        comes_back = run_id in self.graves
        created = created and not comes_back
        was = None if created else self.reported.get(run_id)
        held = run_id in self.held
        if was is None and (created or run_id not in self.buried):
            self.born[run_id] = entry[SEQ]
        if entry[TIME] <= self.dead_time:
            self.wrong.append(f"{run} has a time that is a gap")
        steady = was is not None and was[STATUS] == run[STATUS]
        loose = comes_back or run_id in self.shown or (not held and not created)
        self.shown.discard(run_id)
        self.pushed.append(Pushed(run_id, entry[SEQ], was, run, steady, loose))
        self.reported[run_id] = run
        self.held[run_id] = (entry[SEQ], entry[TIME])
        self.graves.pop(run_id, None)
        self.buried.discard(run_id)
        if run_id in self.table:  # otherwise the answer of a comparison is older than its delete
            self.untold.discard(run_id)
        self.pushed_at[run_id] = entry[SEQ]

    def note_burial(self, push: Push) -> None:
        entry = push[ENTRY]
        run_id = entry[RUN][ID]
        if run_id in self.graves and run_id not in self.shown:
            self.wrong.append(f"the board pushed twice that {run_id} was deleted")
        was = self.reported.pop(run_id, None)
        loose = run_id not in self.held or run_id in self.shown
        self.shown.discard(run_id)
        self.pushed.append(Pushed(run_id, entry[SEQ], was, None, steady=False, loose=loose))
        self.held.pop(run_id, None)
        self.graves[run_id] = (entry[SEQ], entry[TIME])
        if was is not None:  # or it counts as another when it comes back
            self.buried.add(run_id)
        self.untold.discard(run_id)

    # The table

    def transaction(self) -> None:
        rng = self.random
        rows: list[tuple[Op, Run]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3, 9))):
            self.change(rows)
        if not self.following or rng.random() < self.loss:
            self.unreported.update((row[ID], self.version) for _, row in rows)
            self.untold.update(row[ID] for op, row in rows if op == "delete")
            self.untold.update(self.names if any(op == "truncate" for op, _ in rows) else ())
            return
        at = self.clock() - rng.choice((0, 0, 0, rng.randint(0, 17_000)))
        cut = rng.choice((len(rows), rng.randint(0, len(rows))))
        slices = [slice_ for slice_ in (rows[:cut], rows[cut:]) if slice_]
        for slice_ in slices:
            more = slice_ is not slices[-1] and rng.random() < 0.7
            incomplete = any(UNCHANGED in row for _, row in slice_)
            self.apply(Changes(slice_, at, 1, incomplete), more=more)
        for _, row in rows:
            self.unreported.pop(row[ID], None)

    def change(self, rows: list[tuple[Op, Run]]) -> None:
        """Change the table, and append what the stream says of it."""
        rng = self.random
        run_id = rng.choice(self.names)
        old = self.table.get(run_id)
        self.version += 1
        version = self.version / 1000
        error = None if rng.random() < 0.3 else "x" * rng.choice(self.texts)
        if run_id in self.outside:
            kind = rng.random()
            if kind < 0.5:  # it is as it was, or deleted
                if kind < 0.2:
                    self.outside.remove(run_id)
                rows.append(("delete", only_id(run_id)))
                return
            self.outside.remove(run_id)
            task_id, agent = rng.choice(TASKS), rng.choice(AGENTS)
            back: Run = (
                run_id,
                rng.choice(tuple(NEXT)),
                version,
                task_id,
                agent,
                None,
                None,
                error,
            )
            rows.append(("update", back))
            self.table[run_id] = back
            return
        if old is None:
            status = rng.choice(("queued", "queued", "running", *FINISHED))
            task_id, agent = rng.choice(TASKS), rng.choice(AGENTS)
            new: Run = (run_id, status, version, task_id, agent, None, None, error)
            rows.append(("insert", new))
            self.table[run_id] = new
            return
        _, status, _, task_id, agent, _, _, text = old
        kind = rng.random()
        if kind < 0.05:
            del self.table[run_id]
            if kind < 0.02:
                self.outside.add(run_id)
            rows.append(("delete", only_id(run_id)))
            return
        if kind < 0.053:
            self.table.clear()
            self.outside.clear()
            if self.followed:
                rows.append(("truncate", only_id("")))
            else:  # a comparison finds it as a delete of each run
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
        if text == old[-1] and text is not None and run_id in self.held and old[STATUS] in ACTIVE:
            new = new if run_id in self.unreported else (*new[:-1], UNCHANGED)
        rows.append(("update", new))

    # The source

    def query(self, *, new: bool = False, deletes_unknown: bool = False) -> Snapshot:
        """What changed, and what became of the runs that the board holds as unfinished."""
        rng = self.random
        unfinished = self.board.unfinished()
        ids = {*self.unreported, *unfinished, *rng.sample(self.names, 1)}
        return Snapshot(
            [self.table[run_id] for run_id in sorted(ids) if run_id in self.table],
            self.clock(),
            gone=[run_id for run_id in sorted(unfinished) if run_id not in self.table],
            new=new,
            deletes_unknown=deletes_unknown,
        )

    def poll(self) -> None:
        """No stream continues here: that finished runs are deleted meanwhile is known to nobody."""
        if self.board.begun:
            self.apply(self.query())

    def resumed(self, before: Before) -> Resumed:
        """What the records of the last process say of the table, from a floor that they reach."""
        times = [before.lost_time, *(time for _, time in before.held.values())]
        floor = self.random.choice([time for time in times if time >= before.lost_time])
        at = max(self.clock(), before.newest)
        unchanged: list[Run] = []
        changed: list[tuple[Micros, Run]] = []
        for run_id, run in self.table.items():
            _, time = before.held.get(run_id, (0, 0))
            if run != before.reported.get(run_id):
                changed.append((at, run))
            elif time > floor:
                changed.append((time, run))
            elif run[STATUS] in ACTIVE:
                unchanged.append(run)
        return Resumed(unchanged, sorted(changed), at, floor)

    def follow(self) -> None:
        """A Snapshot, in pieces, and the stream from there."""
        rng = self.random
        if not self.board.begun and self.before is not None:
            self.apply(self.resumed(self.before))
            self.following = True
            self.unreported.clear()
            return
        if not self.board.begun:
            rows = [
                run for run in self.table.values() if run[STATUS] in ACTIVE or rng.random() < 0.3
            ]
            whole = Snapshot(rows, self.clock())
            self.reported = {
                run_id: run for run_id, run in self.table.items() if run[STATUS] in FINISHED
            }
        else:
            whole = self.query(new=rng.random() < 0.2, deletes_unknown=True)
            if whole.new:
                self.reset()
        cut = rng.randint(0, len(whole.rows))
        if rng.random() < 0.5:
            self.apply(Snapshot(whole.rows[:cut], whole.at, complete=False, new=whole.new))
            self.apply(replace(whole, rows=whole.rows[cut:], new=False))
        else:
            self.apply(whole)
        self.following = True
        self.unreported.clear()

    def reset(self) -> None:
        """Close every connection, as the app does when another table is followed."""
        self.resetting = True
        for connection in self.connections:
            if not connection.closed:
                connection.end(GAP.code, GAP.reason)
        self.resetting = False

    def compare(self) -> None:
        """Query the table. Give the board the answer the next time, when it has moved on."""
        if self.question is None:
            found = self.query()
            self.question = Snapshot(
                found.rows, found.at, gone=found.gone, unless_after=self.board.seq
            )
            self.asked_of = dict(self.unreported)
        else:
            self.apply(self.question)
            self.question = None
            settled = self.asked_of.items() & self.unreported.items()
            for run_id, _ in settled:
                if self.table.get(run_id) in (None, self.reported.get(run_id)):
                    del self.unreported[run_id]
                # Otherwise the stream had overtaken the answer; the next comparison will have it.

    # The schedule

    def step(self) -> None:
        rng = self.random
        early = rng.choice((0.0, 0.0004))
        if (
            self.timers
            and self.timers[0][0] <= self.now + early
            and rng.random() < 0.2 + 0.6 * self.hurry
        ):
            self.fire()
        elif self.beats and rng.random() < 0.05:
            self.beat()
        elif self.hub._rotation.under_way and rng.random() < 0.5:
            self.ping(rng.choice(self.consumers))
        elif rng.random() < self.churn:
            self.transaction()
        elif rng.random() < self.calm:
            self.disturb(rng.choice(self.consumers))
        else:
            self.operate()
        for connection in self.connections:
            if connection.queued < len(connection.stream):
                connection.turn()
        self.now += rng.choice((0.0, 0.0, 0.0001, rng.uniform(0, 0.003), rng.uniform(0, 0.03)))

    def fire(self) -> None:
        _, _, timer = heapq.heappop(self.timers)
        if timer.callback is not None:
            before = self.now
            timer.callback()
            self.worked(before)
            self.end_turn()

    def beat(self) -> None:
        """A frame about the source is due, or becomes so."""
        due, _, timer = heapq.heappop(self.beats)
        if timer.callback is not None:
            self.now = max(self.now, due)
            timer.callback()

    def disturb(self, consumer: Consumer) -> None:
        rng = self.random
        connection = consumer.connection
        if connection is None:
            consumer.connect()
            return
        if connection.closed:
            consumer.disconnect()
            return
        what = rng.random()
        if what < 0.5:
            if consumer.reading:
                consumer.read(rng.choice((10**9, 10**9, rng.randint(0, 500))))
            if rng.random() < 0.8:
                connection.turn()
        elif what < 0.75:
            self.ping(consumer)
        elif what < 0.9:
            consumer.reading = not consumer.reading
        elif what < 0.98:
            consumer.disconnect()
        elif what < 0.985:
            connection.broken = True

    def ping(self, consumer: Consumer) -> None:
        """Pings to a client, or pongs in answer to its own: either may fill the transport."""
        for _ in range(self.random.choice((1, 3))):
            connection = consumer.connection
            if connection is not None and not connection.full and not connection.broken:
                pong = b"\x8a\x7d" + bytes(125)
                connection.write(pong if self.random.random() < 0.7 else b"\x89\x00")

    def operate(self) -> None:
        """Something happens to Brain itself."""
        what = self.random.random()
        if not self.following:
            if what < 0.4:
                self.follow()
            elif what < 0.6:
                self.poll()
        elif what < 0.4:
            self.compare()
        elif what < 0.5:
            self.following = False
            self.question = None
        elif what < 0.52:
            self.start()

    def rest(self) -> None:
        """Everybody connects and reads, the table stays as it is, and everything under way ends."""
        self.question = None
        if not self.following:
            self.follow()
        self.compare()
        self.compare()
        for _ in range(2000):
            busy = False
            for consumer in self.consumers:
                consumer.reading = True
                connection = consumer.connection
                if connection is not None and (connection.closed or connection.broken):
                    consumer.disconnect()
                if consumer.connection is None:
                    consumer.connect()
                    busy = True
                    continue
                connection = consumer.connection
                while connection.stream:
                    busy = True
                    consumer.read(10**9)
                    connection.turn()
            if self.timers:
                self.now = max(self.now, self.timers[0][0])
                self.fire()
            elif not busy:
                return
            self.check()
        raise Violation("the world does not come to rest")

    def probe(self) -> None:
        """At rest: what do newcomers receive?"""
        wanted = self.draw_filter()
        include = frozenset(INCLUDE)
        snapshot, since = Consumer(self, wanted, include), Consumer(self, wanted, include)
        self.consumers = [snapshot, since]
        snapshot.connect(how="snapshot")
        since.start = self.board.seq
        moment = self.random.choice(
            [time for _, time in (*self.held.values(), *self.graves.values())] or [self.newest]
        )
        since.connect(iso(moment))
        refused = since.connection is not None and since.connection.closed
        self.rest()
        judge.newcomers(self, snapshot, since, moment, refused=refused)

    def check(self) -> None:
        if self.wrong:
            raise Violation(self.wrong[0])

    def run(self) -> None:
        rounds = self.random.choice((1, 4, 12))
        for _ in range(rounds):
            for _ in range(self.random.choice((100, 300, 600)) // rounds):
                self.step()
                self.check()
            self.rest()
            judge.rest(self)
        self.probe()
        self.check()


def histories(seeds: Iterable[int], engine: Engine) -> None:
    """Run the history of each seed. Raises Violation, with the seed, for the first that is
    wrong.
    """
    for seed in seeds:
        try:
            World(seed, engine).run()
        except Exception as error:
            raise Violation(
                f"history {seed} (BRAIN_FIRST_HISTORY={seed} BRAIN_HISTORIES=1): {error}"
            ) from error
