"""Deleted runs, rule by rule (T1 to T9 in board.py). For random histories see
test_hub_histories.py.
"""

import json
from typing import Literal

import pytest

from brain.contract.close_codes import GAP
from brain.contract.events import Changes, Op, Outcome, Resumed, Snapshot, only_id
from brain.contract.include import NOTHING, Included, deleted_message
from brain.contract.messages import ID, Micros, Run, iso
from brain.contract.subscription import ANY, Filter, Subscription
from brain.delivery import tombstones
from brain.delivery.board import Board, Push
from brain.delivery.groups import GROUP
from brain.delivery.log import DELETED, FACETS, FRAME, OVERHEAD, RUN, SEQ, TIME, is_tombstone
from brain.delivery.tombstones import ANYTHING, FINISHED
from tests.unit.delivery import test_hub
from tests.unit.delivery.mutants import Mutant, engine
from tests.unit.delivery.runs import PLENTY, T
from tests.unit.delivery.runs import run as bare
from tests.unit.delivery.test_hub import Reader, Room

TOLD: Included = frozenset(("deleted",))


def run(run_id: str, status: str = "running", **fields: str) -> Run:
    return bare(run_id, status, **fields)  # type: ignore[arg-type]


def begun(memory: int = PLENTY, *rows: Run) -> Board:
    board = Board(memory)
    assert board.apply(Snapshot(list(rows), T)) == []
    return board


def change(board: Board, op: Op, row: Run, at: Micros = T) -> list[Push]:
    return board.apply(Changes([(op, row)], at, 7))


def delete(board: Board, run_id: str, at: Micros = T) -> list[Push]:
    return change(board, "delete", only_id(run_id), at)


def told(reader: Reader) -> list[tuple[str, str]]:
    """Type and id of what a reader was sent."""
    return [(kind, run_id) for kind, run_id in reader.types()]


# T1


def test_a_tombstone_is_absent_and_is_evicted_among_the_finished() -> None:
    board = begun(3 * (OVERHEAD + 300), run("r", agent="a"), run("done"))
    change(board, "update", run("done", "completed"))
    ((entry, _, _),) = delete(board, "r", T + 5)
    assert entry[RUN] == ("r", DELETED, None, None, "a", None, None, None)
    assert entry[FRAME] == deleted_message("r", T + 5)
    assert (entry[SEQ], entry[TIME]) == (board.seq, board.time)
    assert "r" not in board
    assert board.get("r") is None
    assert (len(board), board.tombstones) == (1, 1)
    assert board.differs(run("r"))
    assert not board.unfinished()
    assert board.size == sum(OVERHEAD + 2 * len(each[FRAME]) for each in board._runs.values())
    change(board, "insert", run("more", "failed"), T + 6)
    change(board, "insert", run("most", "failed"), T + 7)
    assert (board.floor, "done" in board, board.tombstones) == (3, False, 1)
    change(board, "insert", run("last", "failed"), T + 8)
    assert (board.floor, board.floor_time, board.tombstones) == (4, T + 5, 0)
    assert len(board) == 3


def test_the_message_of_a_delete_is_its_type_the_id_and_the_time() -> None:
    frame = deleted_message('a"\n€', T)
    assert json.loads(frame[2:]) == {
        "type": "run_deleted",
        "data": {"id": 'a"\n€'},
        "timestamp": iso(T),
    }


# T2


def test_a_delete_concerns_clients_that_may_show_the_run() -> None:
    board = begun()
    change(board, "insert", run("r", "queued", agent="a"))
    change(board, "update", run("r", agent="b"))
    ((entry, facets, steady),) = delete(board, "r")
    assert facets == (("running", "b", None),)
    assert entry[FACETS] == (("queued", "a", None), ("running", "b", None))
    assert not steady
    ((entry, facets, _),) = delete(board, "unknown")
    assert facets == entry[FACETS] == FINISHED


def test_a_delete_concerns_clients_to_which_the_api_showed_the_run() -> None:
    board = begun(PLENTY, run("r", agent="a"))
    board.show(run("r", agent="b"), board.seq)
    ((entry, facets, _),) = delete(board, "r")
    assert set(facets) == {("running", "a", None), ("running", "b", None)} == set(entry[FACETS])
    # The API shows a row again that the board has buried: another one, or an older one.
    assert board.show(run("r", "completed", agent="c"), 0) is None
    ((_, facets, _),) = change(board, "update", run("r", agent="d"))
    assert ("completed", "c", None) in facets


def test_a_token_receives_deletes_within_its_bounds() -> None:
    room = Room(PLENTY, run("mine", agent="a"), run("was", agent="a"), run("not", agent="b"))
    mine = Filter(agent=frozenset("a"), bounds=frozenset({("agent", frozenset("a"))}))
    reader = room.join(Subscription(mine, include=TOLD))
    lagging = room.join(Subscription(mine, include=TOLD))
    lagging.full = True
    room.now += 1
    room.change(run("mine", agent="a"))
    room.change(run("was", agent="b"))
    for run_id in ("mine", "was", "not", "unknown"):
        room.now += 1
        room.delete(run_id)
    lagging.drain()
    room.rest()
    assert told(reader) == [("run_update", "mine"), ("run_deleted", "mine")]
    assert told(lagging) == [("run_update", "mine"), ("run_deleted", "mine")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("facet(known[RUN])", "(DELETED, None, None)"),
        ("facet(known[RUN])", "known[FACETS][0]"),
        ("(DELETED, None, None) if known is None", "(DELETED, 'a', None) if known is None"),
    ],
    ids=["nothing is known", "what it was first", "unknown ones are in all bounds"],
)
def test_the_bounds_of_a_token_are_not_kept_without(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random histories have no tokens."""
    source = "_, agent, task_id = (DELETED, None, None) if known is None else facet(known[RUN])"
    changed = engine(Mutant(0, tombstones, ((source, source.replace(old, new)),)))
    monkeypatch.setattr(test_hub, "Board", changed.board)
    with pytest.raises(AssertionError):
        test_a_token_receives_deletes_within_its_bounds()


# T3


def test_only_clients_that_include_deletes_receive_them() -> None:
    room = Room(PLENTY, run("r"), run("s", agent="a"), run("t"))
    wishes = [
        Subscription(Filter(**fields), include=include)  # type: ignore[arg-type]
        for include in (TOLD, NOTHING)
        for fields in ({}, {"agent": frozenset("a")}, {"status": frozenset(("running",))})
    ]
    readers = [room.join(wish) for wish in wishes]
    lagging = [room.join(wish) for wish in wishes]
    for each in lagging:
        each.full = True
    room.change(run("x", "queued", agent="a"), run("r"))
    for run_id in "rst":
        room.now += 1
        room.delete(run_id)
    for each in lagging:
        each.drain()
    room.rest()
    everything = [("run_deleted", run_id) for run_id in "rst"]
    for some in (readers, lagging):
        got = [[each for each in told(reader) if each[0] == "run_deleted"] for reader in some]
        assert got == [everything, [("run_deleted", "s")], everything, [], [], []]


def test_a_delete_of_which_nobody_is_told_costs_no_flush() -> None:
    room = Room(PLENTY, run("r"))
    room.join()
    room.delete("r")
    assert (room.hub.counts.flushes, room.hub.counts.changes, room.hub.pending_bytes) == (0, 0, 0)
    assert room.hub.idle
    late = room.join(Subscription(since=T + 2, include=TOLD))
    room.rest()
    assert told(late) == [], "nothing since then"
    late = room.join(Subscription(since=T, include=TOLD))
    room.rest()
    assert told(late) == [("run_deleted", "r")]


def test_a_snapshot_has_no_deletes() -> None:
    room = Room(PLENTY, run("r"), run("s"))
    room.delete("r")
    reader = room.join(Subscription(snapshot=True, include=TOLD))
    room.rest()
    assert told(reader) == [("run_update", "s")]


def test_a_client_that_includes_deletes_is_sent_no_run_that_was_deleted_before_it_joined() -> None:
    gone: Op
    for gone in ("delete", "truncate"):
        room = Room(PLENTY, run("r"), run("s"))
        room.join()
        room.change(run("s"))
        room.change(run("r"))
        room.change(only_id("r"), op=gone)
        reader = room.join(Subscription(include=TOLD))
        room.change(run("new"))
        room.rest()
        room.now += 1
        room.change(run("new"))
        assert told(reader) == [("run_update", "new")] * 2


# T4


@pytest.mark.parametrize("op", ["insert", "update", "snapshot"])
def test_a_run_that_comes_back_was_all_that_its_tombstone_was(
    op: Op | Literal["snapshot"],
) -> None:
    """By UPDATE if the row had left the contract."""
    board = begun(PLENTY, run("r", agent="a"))
    change(board, "update", run("r", agent="b"))
    delete(board, "r")
    row = run("r", "completed", agent="c")
    ((entry, facets, steady),) = (
        board.apply(Snapshot([row], T)) if op == "snapshot" else change(board, op, row)
    )
    everything = {("running", "a", None), ("running", "b", None), ("completed", "c", None)}
    assert set(facets) == set(entry[FACETS]) == everything
    assert not steady
    assert (len(board), board.tombstones, "r" in board) == (1, 0, True)
    assert board.size == OVERHEAD + 2 * len(entry[FRAME])


def test_a_run_that_leaves_as_running_and_comes_back_finished_ends_at_every_client() -> None:
    room = Room(PLENTY, run("r"))
    running = Filter(status=frozenset(("running",)))
    reader = room.join(Subscription(running))
    lagging = room.join(Subscription(running))
    lagging.full = True
    room.change(run("r"))
    room.now += 1
    room.delete("r")
    room.change(run("r", "completed"))
    lagging.drain()
    room.rest()
    expected = [("run_update", "r"), ("run_complete", "r")]
    assert told(reader) == told(lagging) == expected


def test_a_run_that_left_as_running_and_comes_back_later_than_memory_was_anything() -> None:
    for left, was in (("completed", FINISHED), ("running", ANYTHING)):
        board = begun(0)
        change(board, "insert", run("r"))
        change(board, "update", run("r", left))
        delete(board, "r")
        assert board.tombstones == 0, "evicted"
        row = run("r", "completed")
        ((_, facets, _),) = change(board, "update", row)
        assert facets == (*was, ("completed", None, None))
        assert delete(board, "another")[0][1] == was
        ((_, facets, _),) = change(board, "insert", run("new"))
        assert facets == (("running", None, None),), "an inserted run was nothing"


def test_a_run_that_was_outside_of_the_contract_at_a_restart_was_anything() -> None:
    """A client from before the restart may show it as running."""
    board = Board(PLENTY)
    board.apply(Resumed([run("old")], [(T + 5, run("new"))], T + 9, T, left=["r", "s"]))
    assert (len(board), board.tombstones, set(board.unfinished())) == (2, 2, {"old", "new"})
    ((_, facets, _),) = change(board, "update", run("r", "completed"))
    assert facets == (*ANYTHING, ("completed", None, None))
    ((_, facets, _),) = change(board, "update", run("another", "completed"))
    assert facets == (*FINISHED, ("completed", None, None))


def test_a_run_of_too_many_facets_counts_as_unfinished_when_its_tombstone_is_evicted() -> None:
    board = Board(0, max_facets=1)
    board.apply(Snapshot([run("r", agent="a")], T))
    change(board, "update", run("r", agent="b"))
    assert delete(board, "r")[0][0][FACETS] == ANYTHING
    ((_, facets, _),) = change(board, "update", run("other", "failed"))
    assert facets[:-1] == ANYTHING


# T5


def test_a_run_that_is_gone_is_buried() -> None:
    board = begun(PLENTY, run("r"), run("s"))
    ((entry, facets, _),) = board.apply(Snapshot([], T + 1, gone=["r", "never known"]))
    assert entry[RUN][:2] == ("r", DELETED)
    assert facets == (("running", None, None),)
    assert "r" not in board
    assert set(board.unfinished()) == {"s"}
    asked = board.seq
    change(board, "update", run("s"))
    outcome = Outcome()
    compared = Snapshot([], T, gone=["s", "r"], unless_after=asked, outcome=outcome)
    assert board.apply(compared) == []
    assert (outcome.removed, "s" in board) == (0, True)


def test_a_comparison_does_not_bring_back_a_run_that_was_buried_again_since() -> None:
    board = begun(PLENTY, run("r"))
    delete(board, "r")
    asked = board.seq
    assert delete(board, "r") == [], "its row is still outside of the contract"
    assert board.apply(Snapshot([run("r")], T, unless_after=asked)) == []
    assert "r" not in board


def test_a_comparison_does_not_bring_back_a_run_whose_tombstone_is_evicted() -> None:
    board = begun(0, run("r"))
    asked = board.seq
    delete(board, "r")
    assert board.tombstones == 0
    assert board.apply(Snapshot([run("r")], T, unless_after=asked)) == []


# T6, T7


def unnamed(room: Room, how: str) -> None:
    event = (
        Changes([("truncate", only_id(""))], T, 7)
        if how == "truncate"
        else Snapshot([], T, deletes_unknown=True)
    )
    room.hub.push(room.board.apply(event))


@pytest.mark.parametrize("how", ["truncate", "snapshot"])
def test_unnamed_deletes_are_a_gap_for_clients_that_include_deletes(how: str) -> None:
    room = Room(PLENTY, run("r"))
    kinds = [Subscription(include=TOLD), Subscription(Filter(agent=frozenset("a")), include=TOLD)]
    live = [room.join(wish) for wish in kinds]
    drained, lagging, others = room.join(kinds[0]), room.join(kinds[0]), room.join()
    drained.full = lagging.full = True
    room.change(run("r", "completed"), at=T + 10)
    last = room.board.time
    room.change(run("s"), at=T + 10)  # pending: the client that drains has missed nothing but this
    unnamed(room, how)
    drained.drain()
    room.rest()
    lagging.drain()
    room.rest()
    closed = [each.closed for each in (*live, drained, lagging)]
    assert closed == [GAP.code] * 4
    assert others.closed is None
    assert room.join(Subscription(since=last)).closed is None
    assert room.join(Subscription(since=last, include=TOLD)).closed == GAP.code


@pytest.mark.parametrize("how", ["truncate", "snapshot"])
def test_what_follows_a_truncate_is_no_gap(how: str) -> None:
    """Not even while a change from before it is pending, or in the same transaction."""
    room = Room(PLENTY, run("r"))
    plain = room.join(Subscription(include=TOLD))
    room.change(run("q"))
    room.change(run("r"), at=T + 10)
    assert not room.hub.idle
    unnamed(room, how)
    since = room.board.as_of
    wishes = (
        Subscription(since=since, include=TOLD),
        Subscription(snapshot=True, include=TOLD),
        Subscription(include=TOLD),
    )
    readers = [room.join(wish) for wish in wishes]
    room.rest()
    room.now += 1
    room.change(run("new"), at=T)
    room.rest()
    assert plain.closed == GAP.code
    assert [reader.closed for reader in readers] == [None] * 3
    assert all(("run_update", "new") in told(reader) for reader in readers)


def test_a_change_behind_a_truncate_in_its_transaction_has_a_time_above_it() -> None:
    board = begun(PLENTY, run("r"))
    rows: list[tuple[Op, Run]] = [("truncate", only_id("")), ("insert", run("new"))]
    ((entry, _, _),) = board.apply(Changes(rows, T + 5, 7))
    assert board.dead_floor_time == T + 5
    assert entry[TIME] == T + 6
    assert board.since(T + 6, deleted=True) == entry[SEQ] - 1
    assert board.since(T + 5, deleted=True) is None
    assert board.since(T + 5) == entry[SEQ] - 1


def test_a_client_filled_by_a_ping_between_two_turns_starts_over_too() -> None:
    room = Room(PLENTY, run("r"))
    readers = [room.join(Subscription(include=TOLD)) for _ in range(2 * GROUP)]
    room.change(run("r"))
    late = next(reader for reader in readers if not reader.got)
    room.hub.pause(late)
    unnamed(room, "truncate")
    late.drain()
    room.rest()
    assert {reader.closed for reader in readers} == {GAP.code}
    assert (room.hub.clients, room.hub.lagging) == (0, 0)


# T8


def test_deletes_before_the_start_are_a_gap_for_clients_that_include_deletes() -> None:
    board = begun(PLENTY, run("r"))
    board.floor_time = T - 1000  # as where memory reaches over the restart
    assert board.since(T - 1) == 0
    assert board.since(T - 1, deleted=True) is None
    assert board.since(T, deleted=True) == 0


def test_the_first_snapshot_ends_nobody() -> None:
    room = Room(begun=False)
    reader = room.join(Subscription(snapshot=True, include=TOLD))
    room.hub.push(room.board.apply(Snapshot([run("r")], T, deletes_unknown=True)))
    room.rest()
    assert told(reader) == [("run_update", "r")]
    assert reader.closed is None


# T9


def test_a_tombstone_is_conflated_with_nothing() -> None:
    room = Room(PLENTY, run("r"))
    reader = room.join(Subscription(include=TOLD))
    room.change(run("x"))
    room.change(run("r"))
    room.delete("r")
    room.change(run("r"), op="insert")
    room.change(run("r"))
    room.delete("r")
    room.change(run("r"), op="insert")
    room.rest()
    update, deleted = ("run_update", "r"), ("run_deleted", "r")
    assert told(reader)[1:] == [update, deleted, update, update, deleted, update]


def test_a_run_is_buried_and_pushed_once() -> None:
    """A row outside of the contract may be updated a hundred times a second."""
    board = begun(PLENTY, run("r", agent="a"))
    assert len(delete(board, "r", T + 1)) == 1
    seq = board.seq
    assert delete(board, "r", T + 2) == []
    assert (board.seq, board.tombstones) == (seq + 1, 1)
    ((_, facets, _),) = change(board, "update", run("r", "completed"))
    assert facets == (("running", "a", None), ("completed", None, None))
    assert board.floor == 0


def test_ids_of_tombstones_are_those_of_runs() -> None:
    board = begun()
    ((entry, _, _),) = delete(board, "r")
    assert is_tombstone(entry)
    assert entry[RUN][ID] == "r"
    assert ANY not in entry[RUN]
