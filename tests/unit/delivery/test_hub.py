"""The hub, rule by rule, on a clock that the test moves. For random histories see
test_hub_histories.py.
"""

import json
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import pytest

from brain.contract.close_codes import GAP, TRY_AGAIN_LATER
from brain.contract.events import Changes, Op, Snapshot, only_id
from brain.contract.include import NO_SOURCE, SourceReport
from brain.contract.messages import PING, Micros, Run
from brain.contract.subscription import ALL, ANY, Facet, Filter, Subscription
from brain.delivery.batches import BATCH
from brain.delivery.board import Board
from brain.delivery.cohorts import Client
from brain.delivery.groups import GROUP
from brain.delivery.hub import Hub
from brain.delivery.log import OVERHEAD, PIECE
from tests.unit.delivery.runs import PLENTY, T, run

INTERVAL = 0.025


class Timer:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Reader(Client):
    """A client whose transport is not full until `full` is set; then it pauses in the next
    write.
    """

    def __init__(self) -> None:
        self.write = self.take
        self.got: list[tuple[str, str, float | None]] = []
        self.all: list[dict[str, Any]] = []
        self.writes: list[bytes] = []
        self.pings = 0
        self.closed: int | None = None
        self.dropped: Exception | None = None
        self.full = False
        self.room: Room

    def take(self, data: bytes) -> None:
        self.writes.append(data)
        self.room.now += self.room.cost
        while data:
            head = {126: 4, 127: 10}.get(data[1], 2)
            size = head + (data[1] if head == 2 else int.from_bytes(data[2:head], "big"))
            if data[0] == PING[0]:
                self.pings += 1
                data = data[size:]
                continue
            message = json.loads(data[head:size])
            self.all.append(message)
            if "status" in (run := message.get("data", {})):
                self.got.append((run["id"], run["status"], run.get("progress")))
            data = data[size:]
        if self.full and not self.paused:
            self.room.hub.pause(self)

    def taken(self) -> list[tuple[str, str, float | None]]:
        got, self.got = self.got, []
        return got

    def ids(self) -> list[str]:
        return [run_id for run_id, _, _ in self.taken()]

    def types(self) -> list[tuple[str, str]]:
        """Of every message: its type, and the id of its run."""
        return [(each["type"], each.get("data", {}).get("id", "")) for each in self.all]

    def drain(self) -> None:
        self.full = False
        self.room.hub.resume(self)

    def end(self, code: int, reason: str) -> None:
        assert 0 < len(reason.encode()) <= 123
        self.closed = code
        self.room.hub.leave(self)

    def drop(self, error: Exception) -> None:
        self.dropped = error
        self.room.hub.leave(self)


class Room:
    """A hub, its board and its clock. Flushes have been so costly that they go once an interval."""

    def __init__(
        self,
        memory: int = PLENTY,
        *rows: Run,
        begun: bool = True,
        interval: float = INTERVAL,
        report: Callable[[], SourceReport] = lambda: NO_SOURCE,
        **limits: int,
    ) -> None:
        self.now = 100.0
        self.cost = 0.0
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []
        """What the next turn of the loop calls."""
        self.observed: list[Micros] = []
        self.board = Board(memory)
        self.hub = Hub(
            self.board,
            interval=interval,
            clock=lambda: self.now,
            call_later=self.call_later,
            call_soon=self.soon.append,
            observe=self.observed.append,
            report=report,
            **limits,
        )
        for _ in range(40):
            self.hub._pace.ended(self.now - 1)
        if begun:
            self.hub.push(self.board.apply(Snapshot(list(rows), T)))

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def armed(self) -> float | None:
        """Seconds until the hub's timer fires."""
        live = [timer.due for timer in self.timers if not timer.cancelled]
        assert len(live) <= 1, "at most one timer"
        return round(live[0] - self.now, 6) if live else None

    def tick(self) -> None:
        (timer,) = (timer for timer in self.timers if not timer.cancelled)
        self.timers.clear()
        self.now = max(self.now, timer.due)
        timer.callback()

    def rest(self) -> None:
        while self.armed() is not None:
            self.tick()

    def join(self, wish: Subscription = Subscription()) -> Reader:  # noqa: B008 - frozen
        reader = Reader()
        reader.room = self
        self.hub.join(reader, wish)
        return reader

    def change(self, *rows: Run, op: Op = "update", at: Micros = T + 1) -> None:
        self.hub.push(self.board.apply(Changes([(op, row) for row in rows], at, 7)))

    def delete(self, run_id: str, at: Micros = T + 1) -> None:
        self.change(only_id(run_id), op="delete", at=at)


def agents(*names: str) -> Filter:
    return Filter(agent=frozenset(names))


def statuses(*names: str) -> Filter:
    return Filter(status=frozenset(names))


# Batches


def test_a_change_is_flushed_at_once_when_the_last_flush_is_older_than_the_interval() -> None:
    room = Room()
    reader = room.join()
    room.change(run("r"))
    assert reader.taken() == [("r", "queued", None)]
    assert room.armed() is None
    assert room.observed == [T + 1]


def test_changes_within_the_interval_are_flushed_together_when_it_ends() -> None:
    room = Room()
    reader = room.join()
    room.change(run("a"))
    room.now += 0.01
    room.change(run("b"), at=T + 2)
    room.change(run("c"), at=T + 3)
    assert reader.ids() == ["a"]
    assert room.armed() == 0.015
    room.tick()
    assert reader.ids() == ["b", "c"]
    assert len(reader.writes) == 2
    assert room.observed == [T + 1, T + 2], "the oldest of each flush"
    assert (room.hub.counts.changes, room.hub.counts.flushes, room.hub.counts.deliveries) == (
        3,
        2,
        3,
    )


def test_an_interval_of_zero_flushes_each_push() -> None:
    room = Room(interval=0)
    reader = room.join()
    room.change(run("a"))
    room.change(run("b"))
    assert reader.ids() == ["a", "b"]


def test_a_timer_that_fires_half_a_millisecond_early_flushes() -> None:
    room = Room()
    reader = room.join()
    room.change(run("a"))
    room.change(run("b"))
    room.now += INTERVAL - 0.0004
    room.hub.tick()
    assert reader.ids() == ["a", "b"]


def test_128_kib_pending_are_flushed_before_the_interval_ends() -> None:
    room = Room()
    reader = room.join()
    room.change(run("a"))
    for i in range(4):
        room.change(run(f"r{i}", error="x" * 30_000))
    assert reader.ids() == ["a"]
    room.change(run("last", error="x" * 30_000))
    assert reader.ids() == ["r0", "r1", "r2", "r3", "last"]
    assert room.hub.pending_bytes == 0


def test_a_batch_is_cut_at_128_kib() -> None:
    room = Room()
    reader = room.join()
    room.change(
        *(run(f"r{i}", error="x" * 30_000) for i in range(10)), run("huge", error="x" * 200_000)
    )
    assert len(reader.ids()) == 11
    assert [len(data) > BATCH for data in reader.writes] == [False, False, False, True]


def test_a_batch_is_made_once_for_all_clients_with_the_same_filter() -> None:
    room = Room()
    everything = [room.join() for _ in range(3)]
    filtered = [room.join(Subscription(agents("a"))) for _ in range(3)]
    room.change(run("r", agent="a"), run("s", agent="a"), run("t"), op="insert")
    for readers, ids in ((everything, ["r", "s", "t"]), (filtered, ["r", "s"])):
        assert [reader.ids() for reader in readers] == [ids] * 3
        (first,) = readers[0].writes
        assert all(reader.writes[0] is first for reader in readers)


# Conflation


def test_progress_is_conflated_to_the_newest_which_stands_last() -> None:
    room = Room(PLENTY, run("r", "running"), run("s", "running"))
    reader = room.join()
    room.change(run("first"))
    room.change(run("r", "running", 1.0))
    size = room.hub.pending_bytes
    room.change(run("s", "running", 1.0))
    room.change(run("r", "running", 2.0))
    assert room.hub.pending_bytes == 2 * size
    room.rest()
    assert reader.taken()[1:] == [("s", "running", 1.0), ("r", "running", 2.0)]
    assert room.hub.counts.conflated == 1


def test_a_change_of_status_is_never_conflated_and_ends_the_chain() -> None:
    room = Room(PLENTY, run("r"))
    reader = room.join()
    room.change(run("first"))
    for status, progress in (
        ("queued", 1.0),
        ("queued", 2.0),
        ("running", 3.0),
        ("running", 4.0),
        ("running", 5.0),
        ("queued", 6.0),
        ("running", 7.0),
    ):
        room.change(run("r", status, progress))
    room.rest()
    assert [progress for _, _, progress in reader.taken()[1:]] == [2.0, 3.0, 5.0, 6.0, 7.0]


def test_a_conflated_change_reaches_filters_for_what_the_run_was_in_between() -> None:
    room = Room(PLENTY, run("r", "running", agent="a"))
    reader = room.join(Subscription(agents("a")))
    room.change(run("first", agent="a"))
    room.change(run("r", "running", 1.0, agent="b"))
    room.change(run("r", "running", 2.0, agent="b"))
    room.change(run("r", "running", 3.0, agent="c"))
    room.rest()
    assert reader.taken()[1:] == [("r", "running", 3.0)]


# Filters


def test_a_filter_passes_a_run_that_matches_or_did_before_the_change() -> None:
    room = Room(PLENTY, run("r", agent="a"))
    running, a = room.join(Subscription(statuses("running"))), room.join(Subscription(agents("a")))
    for row in (
        run("r", "queued", 1.0, agent="a"),
        run("r", "running", 2.0, agent="a"),
        run("r", "running", 3.0, agent="b"),
        run("r", "failed", 4.0, agent="b"),
        run("r", "failed", 5.0, agent="b"),
    ):
        room.change(row)
        room.rest()
        room.now += 1
    assert [progress for _, _, progress in running.taken()] == [2.0, 3.0, 4.0]
    assert [progress for _, _, progress in a.taken()] == [1.0, 2.0, 3.0]


def test_an_update_of_an_unknown_run_reaches_filters_for_what_it_may_have_been() -> None:
    room = Room()
    wishes = [
        agents("a"),
        Filter(task_id=frozenset("t")),
        statuses("failed"),
        statuses("running"),
        statuses("queued"),
    ]
    readers = [room.join(Subscription(wish)) for wish in wishes]
    room.change(run("r", "running", agent="b"))
    assert [reader.ids() for reader in readers] == [["r"], ["r"], ["r"], ["r"], []]
    room.change(run("new", "running", agent="b", task_id="u"), op="insert")
    room.rest()
    assert [reader.ids() for reader in readers] == [[], [], [], ["new"], []]


@pytest.mark.parametrize(
    ("filter_", "passes"),
    [
        (ALL, True),
        (Filter(run_id=frozenset(("r", "s"))), True),
        (Filter(run_id=frozenset("s")), False),
        (Filter(run_id=frozenset("r"), status=frozenset(("queued", "failed"))), True),
        (Filter(run_id=frozenset("r"), status=frozenset(("running",))), False),
        (Filter(agent=frozenset("a"), task_id=frozenset("t")), True),
        (Filter(agent=frozenset("a"), task_id=frozenset("u")), False),
        (Filter(agent=frozenset("b")), False),
    ],
)
def test_a_filter_is_or_within_a_field_and_and_between_fields(
    filter_: Filter, passes: bool
) -> None:
    assert filter_.matches("r", [("queued", "a", "t")]) is passes
    room = Room()
    reader = room.join(Subscription(filter_))
    room.change(run("r", agent="a", task_id="t"), op="insert")
    assert bool(reader.ids()) is passes


def test_the_fields_of_a_filter_match_the_same_facet() -> None:
    wish = Filter(agent=frozenset("a"), status=frozenset(("failed",)))
    assert not wish.matches("r", [("running", "a", None), ("failed", "b", None)])
    assert wish.matches("r", [("failed", ANY, ANY)])


class CountingFilter(Filter):
    """It counts how often a change is compared with any of them."""

    compared: ClassVar[list[str]] = []

    def matches(self, run_id: str, facets: Collection[Facet]) -> bool:
        self.compared.append(run_id)
        return super().matches(run_id, facets)


def test_ten_thousand_filters_by_run_cost_one_lookup() -> None:
    CountingFilter.compared.clear()
    room = Room()
    readers = [
        room.join(Subscription(CountingFilter(run_id=frozenset((f"r{i}",))))) for i in range(10_000)
    ]
    others = [
        room.join(Subscription(CountingFilter(agent=frozenset((f"a{i}",))))) for i in range(100)
    ]
    room.change(run("r77", agent="a5"), op="insert")
    assert CountingFilter.compared == ["r77", "r77"]
    assert [i for i, reader in enumerate(readers) if reader.got] == [77]
    assert [i for i, reader in enumerate(others) if reader.got] == [5]


def test_a_cohort_without_members_is_removed() -> None:
    room = Room()
    wish = Subscription(Filter(run_id=frozenset(("r", "s")), agent=frozenset("a")))
    first, second = room.join(wish), room.join(wish)
    assert room.hub.clients == 2
    for reader in (first, first, second):
        room.hub.leave(reader)
    assert room.hub.clients == 0
    assert len(room.hub._cohorts) == 0
    assert not room.hub._cohorts.index
    room.change(run("r", agent="a"))
    assert first.taken() == second.taken() == []


def test_removing_a_cohort_leaves_others_with_the_same_value() -> None:
    room = Room()
    gone = room.join(Subscription(Filter(run_id=frozenset("r"))))
    stays = room.join(Subscription(Filter(run_id=frozenset("r"), agent=frozenset("a"))))
    room.join(Subscription(ALL))
    room.hub.leave(gone)
    room.change(run("r", agent="a"))
    assert stays.ids() == ["r"]


# Joining


def test_a_client_without_since_and_snapshot_is_live_at_once() -> None:
    room = Room(PLENTY, run("old"))
    room.join()
    room.change(run("first"))
    room.change(run("pending"))
    reader = room.join()
    other = room.join(Subscription(agents("a")))
    assert reader.taken() == []
    room.change(run("new", agent="a"))
    room.rest()
    assert reader.ids() == ["pending", "new"], "what its group lacks"
    assert other.ids() == ["new"]


def test_snapshot_sends_unfinished_runs_and_goes_live() -> None:
    room = Room(PLENTY, run("a"), run("b", "running"))
    room.change(run("done", "completed"))
    reader = room.join(Subscription(snapshot=True))
    assert reader.taken() == [], "nothing from inside join"
    room.rest()
    assert reader.ids() == ["a", "b"]
    room.now += 1
    room.change(run("b", "completed"))
    assert reader.taken() == [("b", "completed", None)]


def test_snapshot_is_filtered() -> None:
    room = Room(PLENTY, run("a", agent="x"), run("b", agent="y"))
    reader = room.join(Subscription(agents("y"), snapshot=True))
    room.rest()
    assert reader.ids() == ["b"]


def test_snapshot_waits_until_the_database_has_been_read() -> None:
    room = Room(begun=False)
    reader = room.join(Subscription(snapshot=True))
    room.rest()
    room.hub.push(room.board.apply(Snapshot([run("a")], T, complete=False)))
    room.rest()
    assert reader.taken() == []
    room.hub.push(room.board.apply(Snapshot([run("b")], T)))
    room.rest()
    assert reader.ids() == ["a", "b"]
    room.change(run("a", "running"))
    assert reader.ids() == ["a"]


def test_since_sends_the_current_state_of_what_changed_at_or_after_it() -> None:
    room = Room(PLENTY, run("a"), run("b"))
    for at, row in (
        (T + 1, run("a", "running")),
        (T + 2, run("b", "running")),
        (T + 3, run("b", "failed")),
    ):
        room.change(row, at=at)
        room.now += 1
    reader = room.join(Subscription(since=T + 2))
    later = room.join(Subscription(since=T + 4))
    room.rest()
    assert reader.taken() == [("b", "failed", None)]
    assert later.taken() == []
    room.now += 1
    room.change(run("c"), at=T + 5)
    assert reader.ids() == later.ids() == ["c"]


def test_a_since_beyond_memory_is_closed_with_4410() -> None:
    room = Room(0)
    room.change(run("r", "completed"), at=T + 1)
    reader = room.join(Subscription(since=T + 1))
    assert reader.closed == GAP.code
    assert room.hub.counts.gaps == 1
    assert room.hub.clients == 0
    room = Room(begun=False)
    assert room.join(Subscription(since=T)).closed == TRY_AGAIN_LATER.code
    assert room.join().closed == TRY_AGAIN_LATER.code, (
        "the first Snapshot pushes nothing, but may hold what the client misses"
    )
    assert room.join(Subscription(snapshot=True)).closed is None, "it waits for the Snapshot"
    assert room.hub.counts.gaps == 0


# Lagging


def test_a_client_that_drains_before_the_next_flush_has_missed_nothing() -> None:
    room = Room()
    reader = room.join()
    reader.full = True
    room.change(run("a"))
    assert room.hub.lagging == 1
    reader.drain()
    assert (room.hub.lagging, room.hub.counts.lags) == (0, 0)
    assert room.armed() is None
    room.now += 1
    room.change(run("b"))
    assert reader.ids() == ["a", "b"]
    assert room.hub.counts.pieces == 0


def test_a_client_that_drains_later_is_caught_up_by_a_tick_and_live_again() -> None:
    room = Room(PLENTY, run("r"))
    reader, other = room.join(), room.join()
    reader.full = True
    room.change(run("a"))
    for progress in (1.0, 2.0, 3.0):
        room.now += 1
        room.change(run("r", "running", progress))
    assert reader.ids() == ["a"]
    assert len(other.taken()) == 4
    reader.drain()
    assert reader.taken() == [], "nothing from inside resume"
    assert room.armed() == 0
    room.tick()
    assert reader.taken() == [("r", "running", 3.0)]
    assert (room.hub.counts.lags, room.hub.counts.pieces, room.armed()) == (1, 1, None)
    room.now += 1
    room.change(run("b"))
    assert reader.ids() == ["b"]


def test_catch_up_ends_at_the_lane_and_a_client_goes_live_only_when_it_is_whole() -> None:
    room = Room(PLENTY, run("r", "running", agent="a"))
    reader = room.join(Subscription(agents("a")))
    reader.full = True
    room.change(run("first", agent="a"))
    room.now += 1
    room.change(run("r", "running", 1.0, agent="b"))  # leaves the filter, and the reader misses it
    room.change(run("r", "running", 2.0, agent="c"))  # pending: was b, is c
    reader.drain()
    room.tick()
    assert reader.ids() == ["first"], "a newer change of it is pending"
    room.rest()
    assert reader.taken() == [("r", "running", 2.0)]


def test_under_steady_load_a_client_goes_live_right_after_a_flush_is_planned() -> None:
    room = Room()
    reader = room.join()
    reader.full = True
    room.change(run("r"))
    room.change(run("r"))
    room.rest()
    room.change(run("r"))
    reader.drain()
    for i in range(3):
        room.change(run(f"more{i}"))
        room.tick()  # there is always something pending when a tick begins
    assert reader.seq is None


def test_a_client_that_fills_up_during_catch_up_continues_there() -> None:
    room = Room(PLENTY, *(run(f"r{i:03}", error="x" * 1000) for i in range(150)))
    reader = room.join(Subscription(snapshot=True))
    reader.full = True
    room.rest()
    first = reader.ids()
    assert 30 < len(first) < 70
    assert room.hub.lagging == 1
    room.change(run("new"))
    reader.drain()
    room.rest()
    assert first + reader.ids() == [*(f"r{i:03}" for i in range(150)), "new"]
    assert max(map(len, reader.writes)) <= PIECE


def test_a_client_filled_by_a_pong_receives_the_next_flush_when_it_drains() -> None:
    room = Room()
    reader = room.join()
    room.change(run("a"))
    room.hub.pause(reader)
    room.change(run("b"))
    room.rest()
    assert reader.ids() == ["a"]
    reader.drain()
    room.hub.pause(reader)  # and again, while it waits to be served
    assert room.hub.lagging == 1
    room.rest()
    assert reader.taken() == []
    reader.drain()
    room.rest()
    assert reader.ids() == ["b"]


def test_a_lagging_client_beyond_memory_is_closed_with_4410() -> None:
    room = Room(OVERHEAD + 400)
    lagging, other = room.join(), room.join()
    lagging.full = True
    for i in range(3):
        room.change(run(f"r{i}", "completed"))
        room.now += 1
    lagging.drain()
    room.rest()
    assert lagging.closed == GAP.code
    assert len(other.ids()) == 3
    assert other.closed is None


def test_evicted_finished_runs_are_no_gap_for_a_snapshot_client() -> None:
    room = Room(0, run("active"))
    room.change(run("done", "completed"))
    assert room.board.floor == 2
    reader = room.join(Subscription(snapshot=True))
    room.rest()
    assert reader.closed is None
    assert reader.ids() == ["active"]


def test_a_piece_is_made_once_per_filter_and_seq() -> None:
    room = Room(PLENTY, run("a", agent="x"), run("b"), run("c", agent="x"))
    wishes = (
        Subscription(since=T),
        Subscription(agents("x"), since=T),
        Subscription(snapshot=True),
    )
    readers = [[room.join(wish) for wish in wishes] for _ in range(50)]
    room.rest()
    assert [reader.ids() for reader in readers[0]] == [list("abc"), list("ac"), list("abc")]
    pieces = [data for some in readers for reader in some for data in reader.writes]
    assert len(pieces) == 150
    assert len(set(map(id, pieces))) == 3, "the same bytes object for all"


# Turns


def crowd(room: Room, rows: int = 1, groups: int = 2) -> list[list[Reader]]:
    """Groups of readers, and `rows` batches, of which the first group has been written one."""
    readers = [[room.join() for _ in range(GROUP)] for _ in range(groups)]
    room.change(*(run(f"r{i}", error="x" * (BATCH - 400)) for i in range(rows)))
    return readers


def test_a_turn_serves_a_group_and_the_loop_reads_changes_in_between() -> None:
    room = Room()
    first, second, third = crowd(room, groups=3)
    assert {len(reader.got) for reader in first} == {1}
    assert not any(reader.got for reader in (*second, *third))
    assert room.armed() == 0
    room.change(run("next"))
    room.tick()
    assert all(reader.ids() == ["r0", "next"] for reader in second), "all that is pending now"
    assert not any(reader.got for reader in third)
    room.rest()
    assert all(reader.ids() == ["r0", "next"] for reader in (*first, *third))
    assert room.observed == [T + 1] * 4, "the oldest of each plan"


def test_groups_that_lack_more_than_a_batch_take_turns() -> None:
    room = Room()
    (one, *_), (two, *_) = crowd(room, rows=3)
    written = [(len(one.writes), len(two.writes))]
    while not room.hub.idle:
        room.tick()
        written.append((len(one.writes), len(two.writes)))
    assert written == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]
    assert room.observed == [T + 1] * 2, "when the plan has been written whole"


def test_a_batch_is_made_when_it_is_written() -> None:
    room = Room()
    readers = [[room.join() for _ in range(GROUP)] for _ in range(2)]
    room.change(*(run(f"r{i}", error="x" * (BATCH // 3)) for i in range(4)))
    room.rest()
    (one, *_), (two, *_) = readers
    assert [len(writes) for writes in (one.writes, two.writes)] == [2, 2]
    assert one.writes == two.writes
    assert one.writes[0] is two.writes[0]
    assert one.writes[1] is not two.writes[1], "nobody keeps it"


def test_no_rotation_starts_before_every_lane_has_been_served() -> None:
    room = Room(interval=0)
    first, second = crowd(room)
    room.change(run("next"))
    assert {len(reader.got) for reader in first} == {1}
    assert room.hub.counts.flushes == 1
    room.rest()
    assert all(reader.ids() == ["r0", "next"] for reader in (*first, *second))
    assert room.hub.counts.flushes == 2


def test_many_small_groups_are_served_250_clients_a_turn() -> None:
    room = Room()
    readers = [room.join(Subscription(Filter(run_id=frozenset(("r", str(i)))))) for i in range(600)]
    room.change(run("r"))
    assert sum(bool(reader.got) for reader in readers) == GROUP
    room.rest()
    assert all(reader.ids() == ["r"] for reader in readers)


def test_a_light_load_is_served_at_once_in_all_lanes() -> None:
    room = Room()
    wishes = (
        Subscription(),
        Subscription(agents("a")),
        Subscription(include=frozenset(("ready",))),
    )
    readers = [room.join(wish) for wish in wishes for _ in range(80)]
    room.change(run("r", agent="a"))
    assert all(reader.ids() == ["r"] for reader in readers)
    assert room.armed() is None


def test_catch_up_yields_after_half_a_budget() -> None:
    room = Room(PLENTY, run("a"))
    readers = [room.join(Subscription(snapshot=True)) for _ in range(100)]
    room.cost = 0.001
    room.tick()
    assert 10 < sum(bool(reader.got) for reader in readers) < 16
    assert room.armed() == 0
    room.rest()
    assert all(reader.ids() == ["a"] for reader in readers)


def test_a_client_that_fills_up_in_a_batch_was_sent_that_batch() -> None:
    room = Room()
    (first, *_), *_ = crowd(room)
    first.full = True
    room.rest()
    room.now += 1
    room.change(*(run(f"s{i}", error="x" * (BATCH - 400)) for i in range(3)))
    assert (first.ids(), first.seq) == (["r0", "s0"], 2)
    first.drain()
    assert first.seq is None, "its group has not moved on"
    room.rest()
    assert first.ids() == ["s1", "s2"]
    assert room.hub.counts.lags == 0


def test_a_client_that_fills_up_receives_nothing_more() -> None:
    room = Room()
    reader, other = room.join(), room.join()
    reader.full = True
    room.change(*(run(f"r{i}", error="x" * (BATCH - 400)) for i in range(3)))
    room.rest()
    assert (reader.ids(), other.ids()) == (["r0"], ["r0", "r1", "r2"])
    reader.drain()
    room.rest()
    assert reader.ids() == ["r1", "r2"]
    assert (reader.seq, room.hub.counts.lags) == (None, 1)


def test_a_client_filled_by_a_pong_between_two_batches_was_sent_the_first() -> None:
    room = Room()
    first, second = crowd(room, rows=3)
    drained, stalled, gone = first[:3]
    unserved = second[0]
    for reader in (drained, stalled, gone, unserved):
        room.hub.pause(reader)
    assert (drained.seq, unserved.seq) == (1, 0)
    drained.drain()
    assert drained.seq is None
    room.hub.leave(gone)
    room.rest()
    assert drained.ids() == ["r0", "r1", "r2"]
    assert (stalled.ids(), gone.ids(), unserved.ids()) == (["r0"], ["r0"], [])
    assert room.hub.lagging == 2
    stalled.drain()
    unserved.drain()
    room.rest()
    assert (stalled.ids(), unserved.ids()) == (["r1", "r2"], ["r0", "r1", "r2"])


def test_a_client_that_drains_twice_is_ready_once() -> None:
    room = Room()
    reader = room.join()
    reader.full = True
    room.change(run("a"))
    room.now += 1
    room.change(run("b"))
    for _ in range(3):
        reader.drain()
        room.hub.pause(reader)
    reader.drain()
    assert len(room.hub._catch_up._ready) == 1
    room.rest()
    assert reader.ids() == ["a", "b"]


def test_a_whole_client_goes_live_when_its_group_has_been_written_its_last_batch() -> None:
    room = Room()
    for _ in range(GROUP - 1):
        room.join()
    room.change(*(run(f"r{i}", "completed", error="x" * (BATCH - 400)) for i in range(4)))
    late = room.join(Subscription(snapshot=True))
    room.tick()
    assert (late.seq, late.ids()) == (4, []), "whole, and its group has two batches left"
    for i in range(2):
        assert late.seq is not None
        room.change(run(f"more{i}"))
        room.tick()
    assert late.seq is None
    assert not room.hub.idle, "there has always been something pending"
    room.rest()
    assert late.ids() == ["more0", "more1"]


def test_a_client_whose_write_raises_is_dropped_alone() -> None:
    room = Room()
    readers = [room.join() for _ in range(3)]

    def fail(_: bytes) -> None:
        raise RuntimeError("the handler is closed")

    readers[1].write = fail
    room.change(run("r"))
    assert [reader.ids() for reader in readers] == [["r"], [], ["r"]]
    assert isinstance(readers[1].dropped, RuntimeError)
    assert (room.hub.counts.failures, room.hub.clients) == (1, 2)


def test_a_client_whose_write_raises_during_catch_up_is_dropped_alone() -> None:
    room = Room(PLENTY, run("r"))
    readers = [room.join(Subscription(snapshot=True)) for _ in range(2)]

    def fail(_: bytes) -> None:
        raise RuntimeError("the handler is closed")

    readers[0].write = fail
    room.rest()
    assert readers[0].dropped is not None
    assert readers[1].ids() == ["r"]


def test_the_write_of_a_client_is_looked_up_each_time() -> None:
    room = Room()
    _, second = crowd(room)
    second[-1].write = lambda _: None  # as a closing connection does
    room.rest()
    assert [bool(reader.got) for reader in second] == [True] * (GROUP - 1) + [False]


def test_a_client_that_leaves_while_ready_or_paused_is_removed() -> None:
    room = Room(PLENTY, run("r"))
    waiting, lagging = room.join(Subscription(snapshot=True)), room.join()
    room.hub.leave(waiting)
    lagging.full = True
    room.change(run("a"))
    room.hub.leave(lagging)
    assert (room.hub.clients, room.hub.lagging) == (0, 0)
    room.hub.resume(lagging)
    room.hub.pause(waiting)
    room.rest()
    assert waiting.taken() == []
    assert room.hub.lagging == 0


def test_a_delete_is_not_pushed_and_leaves_no_client_behind() -> None:
    room = Room(PLENTY, run("r"))
    reader = room.join()
    room.change(run("r"), op="delete")
    assert room.hub.idle
    assert room.armed() is None
    late = room.join(Subscription(snapshot=True))
    room.rest()
    assert reader.taken() == late.taken() == []
    assert late.seq is None


def test_a_connection_has_to_implement_end_and_drop() -> None:
    with pytest.raises(NotImplementedError):
        Client().end(GAP.code, "")
    with pytest.raises(NotImplementedError):
        Client().drop(ValueError())
