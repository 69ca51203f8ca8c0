"""The board, rule by rule. For random histories, with the hub, see test_hub_histories.py."""

import gc
import json
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from brain.contract.events import Changes, Op, Resumed, Snapshot, only_id
from brain.contract.messages import ID, UNCHANGED, Micros, Run, body, iso, message
from brain.contract.subscription import ANY, facet
from brain.delivery.board import Board, Push
from brain.delivery.log import DELETED, FACETS, FRAME, OVERHEAD, PIECE, RUN, SEQ, TIME, XID, Entry
from brain.delivery.tombstones import ANYTHING, FINISHED
from tests.unit.delivery.runs import PLENTY, T, run


def begun(memory: int = PLENTY, *rows: Run, **options: Any) -> Board:
    board = Board(memory, **options)
    assert board.apply(Snapshot(list(rows), T)) == []
    return board


def change(board: Board, op: Op, row: Run, at: Micros = T) -> Push:
    (push,) = board.apply(Changes([(op, row)], at, 7, incomplete=UNCHANGED in row))
    return push


def frames(data: bytes) -> list[str]:
    """The ids in a piece of frames below 64 KiB."""
    ids = []
    while data:
        size = int.from_bytes(data[2:4], "big") + 4 if data[1] == 126 else data[1] + 2
        ids.append(json.loads(data[4 if data[1] == 126 else 2 : size])["data"]["id"])
        data = data[size:]
    return ids


# What is new?


def test_a_change_becomes_an_entry_with_seq_time_run_frame_and_transaction() -> None:
    board = begun()
    row = run("r", "running", 5.0, agent="a", task_id="t")
    entry, facets, steady = change(board, "insert", row, T + 1)
    assert entry == (1, T + 1, row, message(row, T + 1), (("running", "a", "t"),), 7)
    assert (entry[SEQ], entry[TIME], entry[RUN], entry[XID]) == (board.seq, board.time, row, 7)
    assert facets == (facet(row),)
    assert not steady
    assert board.get("r") is entry
    assert "r" in board
    assert len(board) == 1


def test_the_first_snapshot_pushes_nothing() -> None:
    board = Board(PLENTY)
    assert board.apply(Snapshot([run("a")], T, complete=False)) == []
    assert not board.begun
    assert board.apply(Snapshot([run("b")], T)) == []
    assert [board.begun, set(board.unfinished())] == [True, {"a", "b"}]


def test_a_later_snapshot_pushes_what_differs() -> None:
    board = begun(PLENTY, run("same"), run("other"))
    pushes = board.apply(
        Snapshot([run("same"), run("other", "running"), run("more", "failed")], T + 5)
    )
    assert [(entry[RUN], entry[TIME], facets, steady) for entry, facets, steady in pushes] == [
        (run("other", "running"), T + 5, (("queued", None, None), ("running", None, None)), False),
        (run("more", "failed"), T + 5, (*FINISHED, ("failed", None, None)), False),
    ]
    assert board.corrections == 0
    assert not board.differs(run("same"))
    assert board.differs(run("same", "running"))
    assert board.differs(run("unknown"))


def test_a_comparison_does_not_override_newer_changes() -> None:
    board = begun(PLENTY, run("lost"), run("changed"), run("gone"), run("back"))
    asked = board.seq
    change(board, "update", run("changed", "running"))
    change(board, "update", run("back"))
    found = Snapshot(
        [run("lost", "running"), run("changed", "failed")],
        T,
        gone=["gone", "back"],
        unless_after=asked,
    )
    lost, gone = [entry[RUN] for entry, _, _ in board.apply(found)]
    assert (lost, gone[:2]) == (run("lost", "running"), ("gone", DELETED))
    assert board.corrections == 1
    assert set(board.unfinished()) == {"lost", "changed", "back"}


@pytest.mark.parametrize("op", ["delete", "truncate"])
def test_a_comparison_does_not_bring_back_a_run_deleted_since(op: Op) -> None:
    board = begun(PLENTY, run("r"))
    asked = board.seq
    board.apply(Changes([(op, only_id("r"))], T, 7))
    assert board.apply(Snapshot([run("r")], T, unless_after=asked)) == []
    assert "r" not in board
    # A query after the delete is news again.
    assert board.apply(Snapshot([run("r")], T, unless_after=board.seq)) != []


def test_a_comparison_does_not_bring_back_a_run_evicted_since() -> None:
    board = begun(0, run("r", "running"))
    asked = board.seq
    change(board, "update", run("r", "completed"))
    assert "r" not in board
    assert board.apply(Snapshot([run("r", "running")], T, unless_after=asked)) == []


def test_a_new_beginning_removes_finished_runs_and_answers_no_since_from_before() -> None:
    board = begun(PLENTY, run("active"))
    change(board, "insert", run("done", "completed"), T + 5)
    pushes = board.apply(Snapshot([run("active"), run("done", "completed")], T + 9, new=True))
    assert [entry[RUN][ID] for entry, _, _ in pushes] == ["done"]
    assert board.since(T + 9) is None
    assert board.since(T + 10) == board.seq
    assert board.floor == 2


# What was it?


def test_an_inserted_run_was_nothing_and_an_unknown_run_anything_finished() -> None:
    board = begun()
    assert change(board, "insert", run("new"))[1] == (("queued", None, None),)
    assert change(board, "update", run("old", "running", agent="a"))[1] == (
        ("completed", ANY, ANY),
        ("failed", ANY, ANY),
        ("running", "a", None),
    )


def test_an_unknown_unfinished_run_of_a_snapshot_counts_as_new() -> None:
    ((_, facets, _),) = begun().apply(Snapshot([run("r", "running")], T))
    assert facets == (("running", None, None),)


# What the API shows ahead of the source


def test_a_state_shown_before_a_poll_belongs_to_what_the_run_was() -> None:
    board = begun(PLENTY, run("known", agent="a"))
    for shown in (run("known", agent="b"), run("new", "running", agent="b")):
        for _ in range(2):
            assert board.show(shown, board.seq) is None
    pushes = board.apply(Snapshot([run("known", agent="c"), run("new", "failed", agent="c")], T))
    assert [facets for _, facets, _ in pushes] == [
        (("queued", "a", None), ("queued", "c", None), ("queued", "b", None)),
        (*FINISHED, ("failed", "c", None), ("running", "b", None)),
    ]
    assert all(set(facets) <= set(entry[FACETS]) for entry, facets, _ in pushes)
    ((_, facets, _),) = board.apply(Snapshot([run("known", agent="d")], T))
    assert facets == (("queued", "c", None), ("queued", "d", None))


def test_a_run_back_in_its_old_state_is_pushed_if_another_state_was_shown() -> None:
    board = begun(PLENTY, run("r", agent="a"))
    board.show(run("r", agent="b"), board.seq)
    ((_, facets, _),) = board.apply(Snapshot([run("r", agent="a")], T))
    assert facets == (("queued", "a", None), ("queued", "b", None))
    assert board.apply(Snapshot([run("r", agent="a")], T)) == []


def test_show_returns_the_entry_of_a_snapshot_that_came_after_the_query() -> None:
    """Either may be newer. If the table's is, it will be pushed."""
    board = begun()
    asked = board.seq
    board.apply(Snapshot([run("r", agent="c")], T))
    assert board.show(run("r", agent="b"), asked) is board.get("r")
    assert board.show(run("r", agent="b"), board.seq) is None
    asked = board.seq
    # From the stream: by its xid, the repository knows whether the query has seen it.
    change(board, "update", run("r", agent="d"))
    assert board.show(run("r", agent="b"), asked) is None


def test_a_shown_state_of_a_deleted_run_is_removed() -> None:
    board = begun()
    for gone in ("delete", "truncate", "snapshots"):
        board.show(run("r", agent="b"), board.seq)
        match gone:
            case "delete":
                board.apply(Changes([("delete", only_id("r"))], T, 7))
            case "truncate":
                board.apply(Changes([("truncate", only_id(""))], T, 7))
            case _:
                board.apply(Snapshot([], T))  # its query may have begun before
                assert board._shown
                board.apply(Snapshot([], T))
        assert not board._shown
    # The next change of a finished run reaches every filter that it may have passed, anyway.
    board.show(run("r", "failed"), board.seq)
    assert not board._shown


def test_a_push_has_what_a_run_is_or_was_and_its_entry_everything_it_has_been() -> None:
    board = begun()
    change(board, "insert", run("r", agent="a"))
    change(board, "update", run("r", agent="b"))
    entry, facets, steady = change(board, "update", run("r", agent="c"))
    assert facets == (("queued", "b", None), ("queued", "c", None))
    assert entry[FACETS] == (("queued", "a", None), *facets)
    assert steady
    entry, facets, steady = change(board, "update", run("r", "running", agent="c"))
    assert facets == (("queued", "c", None), ("running", "c", None))
    assert not steady


def test_a_run_with_too_many_facets_was_anything() -> None:
    board = begun(max_facets=2)
    for agent in "abc":
        entry, _, _ = change(board, "update", run("r", "completed", agent=agent))
    assert entry[FACETS] == ANYTHING


def test_an_update_that_changes_nothing_is_pushed_unless_push_unchanged_is_off() -> None:
    assert change(begun(PLENTY, run("r")), "update", run("r"))[2]
    board = begun(PLENTY, run("r"), push_unchanged=False)
    assert board.apply(Changes([("update", run("r"))], T, 7)) == []
    assert change(board, "insert", run("r"))
    assert change(board, "update", run("r", "running"))


def test_an_unchanged_value_comes_from_the_board_or_is_absent() -> None:
    board = begun(PLENTY, run("r", error="long", agent="a"))
    entry, _, _ = change(board, "update", run("r", "failed", error=UNCHANGED, agent=UNCHANGED))
    assert entry[RUN] == run("r", "failed", error="long", agent="a")
    assert b"u0000" not in entry[FRAME]
    entry, _, _ = change(board, "update", run("unknown", "failed", error=UNCHANGED))
    assert entry[RUN] == run("unknown", "failed")
    assert b"null" not in entry[FRAME]


def test_delete_and_truncate_move_the_seq() -> None:
    board = begun(PLENTY, run("a"), run("b"), run("c", "failed"))
    for op, left in (("delete", {"b"}), ("truncate", set[str]())):
        seq = board.seq
        pushes = board.apply(Changes([(op, only_id("a"))], T, 7))  # type: ignore[list-item]
        assert [entry[RUN][:2] for entry, _, _ in pushes] == [("a", DELETED)] * (op == "delete")
        assert board.seq == seq + 1
        assert set(board.unfinished()) == left
    assert len(board) == 0
    assert board.size == 0
    assert board.log.piece(0, board.seq) == (b"", board.seq)


# Time


def test_time_never_decreases() -> None:
    board = begun()
    times = [change(board, "update", run("r"), at)[0][TIME] for at in (T + 5, T + 2, T + 5, T + 6)]
    assert times == [T + 5, T + 5, T + 5, T + 6]


def test_since_at_its_boundaries() -> None:
    board = Board(PLENTY)
    assert board.since(T) is None, "nothing has been read"
    board.apply(Snapshot([run("a")], T))
    for run_id, at in (("b", T + 10), ("c", T + 10), ("d", T + 20)):
        change(board, "insert", run(run_id), at)
    assert board.since(T - 1) is None, "before the first Snapshot"
    assert board.since(T) == 0
    assert board.since(T + 1) == 1
    assert board.since(T + 10) == 1, "everything at or after it"
    assert board.since(T + 11) == 3
    assert board.since(T + 20) == 3
    assert board.since(T + 21) == 4, "beyond the newest: now"


@pytest.mark.parametrize("resumed", [True, False])
def test_time_skips_what_is_refused_and_a_since_there_is_a_gap(*, resumed: bool) -> None:
    refused = ((T + 10, T + 20),)
    board = Board(PLENTY)
    snapshot = Snapshot([], T, refused=refused)
    board.apply(Resumed([run("a")], [], T, T - 1, refused) if resumed else snapshot)
    for at, time in ((T + 9, T + 9), (T + 10, T + 21), (T + 15, T + 21), (T + 22, T + 22)):
        for refused_time in (T + 10, T + 15, T + 20):
            assert board.since(refused_time) is None
            assert board.since(refused_time, deleted=True) is None
        assert board.since(T + 21) is not None
        assert change(board, "update", run("r"), at)[0][TIME] == time
        assert board.as_of == time
    change(board, "delete", run("r"), T + 23)
    assert board.since(T + 23) is not None


def test_time_skips_what_is_refused_after_a_truncate_and_an_eviction() -> None:
    board = Board(0)
    board.apply(Snapshot([], T, refused=((T + 10, T + 20),)))
    change(board, "insert", run("done", "completed"), T + 9)
    assert board.floor_time == T + 9
    assert (board.as_of, board.reached) == (T + 21, T + 21)
    board = Board(PLENTY)
    board.apply(Snapshot([], T, refused=((T + 10, T + 20),)))
    board.apply(Changes([("truncate", only_id(""))], T + 9, 7))
    assert (board.as_of, board.reached) == (T + 21, T + 21)


def test_since_at_or_before_the_newest_evicted_change_is_a_gap() -> None:
    board = begun(0)
    change(board, "insert", run("done", "completed"), T + 5)
    change(board, "insert", run("active"), T + 6)
    assert board.since(T + 5) is None
    assert board.since(T + 6) == 1
    assert board.floor == 1


# Memory


def test_finished_runs_are_evicted_in_the_order_of_their_last_change_and_unfinished_never() -> None:
    board = begun(3 * (OVERHEAD + 300))
    for run_id in "abcdef":
        change(board, "insert", run(run_id, "running"))
    assert len(board) == 6
    for run_id in "fab":  # the order of finishing counts
        change(board, "update", run(run_id, "completed"))
    assert [run_id for run_id in "abcdef" if run_id in board] == ["c", "d", "e"]
    assert board.floor == 9

    board = begun(4 * (OVERHEAD + 300))
    for run_id in "abcd":
        change(board, "insert", run(run_id, "completed"))
    change(board, "update", run("a", "running"))  # reopened, so no longer a candidate
    change(board, "update", run("b", "failed"))  # now the newest
    change(board, "insert", run("e", "completed"))
    assert [run_id for run_id in "abcde" if run_id in board] == ["a", "b", "d", "e"]
    assert board.floor == 3


def test_stale_entries_are_compacted() -> None:
    board = begun(PLENTY, run("r"))
    for i in range(5000):
        change(board, "update", run("r", ("completed", "failed")[i % 2]))
    assert len(board.log.entries) < 1100
    assert frames(board.log.piece(0, board.seq, None)[0]) == ["r"]
    assert board.since(T) == board.log.seqs[0] - 1


def lives(count: int) -> Iterator[tuple[Op, Run]]:
    """Typical runs: inserted, started, some progress, finished; one in ten with a long error."""
    rng = random.Random(1)
    for i in range(count):
        run_id, task_id = (str(rng.getrandbits(128)) for _ in "12")
        agent, began, ended = f"agent-{rng.randrange(20)}", iso(T + i), iso(T + i + 10**6)
        error = f"Traceback {i}" + "x" * 2000 if rng.random() < 0.1 else None
        yield "insert", (run_id, "queued", None, task_id, agent, None, None, None)
        for progress in (0.0, 20 + rng.random(), 60 + rng.random()):
            yield "update", (run_id, "running", progress, task_id, agent, began, None, None)
        yield (
            "update",
            (
                run_id,
                "failed" if error else "completed",
                100.0,
                task_id,
                agent,
                began,
                ended,
                error,
            ),
        )


@pytest.mark.usefixtures("unmeasured")
def test_the_memory_charged_is_the_memory_used() -> None:
    gc.collect()
    tracemalloc.start()
    try:
        board, ratios = begun(), []
        before = tracemalloc.get_traced_memory()[0]
        for i, (op, row) in enumerate(lives(3000)):
            # A decoded row shares no text with the one before.
            copy = tuple(value + "" if isinstance(value, str) else value for value in row)
            change(board, op, copy)  # type: ignore[arg-type]
            if len(board) > 1500 and not i % 100:
                ratios.append((tracemalloc.get_traced_memory()[0] - before) / board.size)
    finally:
        tracemalloc.stop()
    average = sum(ratios) / len(ratios)
    assert 0.75 < average < 1.25, (
        f"{average:.2f} bytes are used for each one charged: adjust OVERHEAD"
    )
    assert max(ratios) < 1.6


# What did I miss?


def test_a_piece_has_the_current_state_of_changed_runs_oldest_first() -> None:
    board = begun(PLENTY, run("a"), run("b"), run("c"))
    change(board, "update", run("a", "running"))
    assert frames(board.log.piece(0, 4, None)[0]) == ["b", "c", "a"]
    assert frames(board.log.piece(0, 3, None)[0]) == ["b", "c"], "never beyond"
    assert frames(board.log.piece(2, 4, None)[0]) == ["c", "a"]
    assert board.log.piece(4, 4, None) == (b"", 4)
    wanted: list[Entry] = []

    def want(entry: Entry) -> bool:
        wanted.append(entry)
        return entry[RUN][ID] == "a"

    data, reached = board.log.piece(0, 4, want)
    assert (frames(data), reached) == (["a"], 4)
    assert len(wanted) == 3, "a stale entry is not even looked at"


def all_pieces(board: Board, after: int) -> list[tuple[bytes, int]]:
    pieces = []
    while after < board.seq:
        data, after = board.log.piece(after, board.seq, None)
        pieces.append((data, after))
    return pieces


@pytest.mark.parametrize("text", [10, 120, 300, 800])
def test_pieces_are_bounded_and_soon_shared(text: int) -> None:
    """Forty clients cut off at different seqs soon share one of two series of pieces."""
    rows = [run(f"r{i:05}", error="x" * text) for i in range(4000)]
    board = begun(PLENTY, *rows)
    everything = b"".join(message(row, T) for row in rows)
    size = len(everything) // len(rows)
    tracks = set()
    for after in range(0, 1000, 25):
        pieces = all_pieces(board, after)
        assert b"".join(data for data, _ in pieces) == everything[after * size :]
        assert all(PIECE // 2 < len(data) <= PIECE for data, _ in pieces[:-1])
        tracks.add(tuple(end for _, end in pieces if end >= 2000))
    assert len(tracks) <= 2


def test_a_full_piece_ends_before_the_roundest_seq_of_its_second_half() -> None:
    board = begun(PLENTY, *(run(f"r{i}", error="x" * 400) for i in range(300)))
    size = len(board.log.piece(0, 1, None)[0])
    assert PIECE // 2 // size < 64
    assert 96 < PIECE // size < 128
    assert [board.log.piece(after, 300, None)[1] for after in (0, 95, 100, 127, 250)] == [
        95,
        191,
        191,
        191,
        300,
    ]
    assert frames(board.log.piece(0, 300, None)[0]) == [f"r{i}" for i in range(95)]


def test_a_piece_of_large_frames_ends_before_it_is_too_long() -> None:
    board = begun(
        PLENTY,
        *(run(f"r{i}", error="x" * 30_000) for i in range(5)),
        run("huge", error="x" * 100_000),
    )
    sizes = [(data.count(b'"id"'), reached) for data, reached in all_pieces(board, 0)]
    assert sizes == [(2, 2), (2, 4), (1, 5), (1, 6)]


def test_the_collector_does_not_track_entries() -> None:
    board = begun(PLENTY, run("r"))
    change(board, "update", run("r", "running"))
    for _ in range(3):  # nested tuples are untracked from the inside out
        gc.collect()
    entry = board.get("r")
    assert entry is not None
    assert body(entry[RUN]) in entry[FRAME].decode("latin-1")
    assert not gc.is_tracked(entry)


# After a restart


def resumed(board: Board, **options: Any) -> Board:
    """Two unfinished runs from before the floor, and two changes since."""
    ended, new = run("ended", "completed", agent="a"), run("new", "running", agent="b")
    unchanged = [run("old", agent="a"), run("older", "running")]
    event = Resumed(unchanged, [(T + 5, ended), (T + 9, new)], T + 9, T, **options)
    assert board.apply(event) == []
    return board


def ids_since(board: Board, time: Micros) -> list[str]:
    seq = board.since(time)
    assert seq is not None, "a gap"
    return frames(board.log.piece(seq, board.seq, None)[0])


def test_resumed_runs_have_the_times_of_before() -> None:
    board = resumed(Board(PLENTY))
    assert board.begun
    assert board.since(T) is None
    assert ids_since(board, T + 1) == ["old", "older", "ended", "new"]
    assert ids_since(board, T + 2) == ids_since(board, T + 5) == ["ended", "new"]
    assert ids_since(board, T + 6) == ["new"]
    assert ids_since(board, T + 10) == []
    assert (board.time, board.last_time, board.floor_time) == (T + 10, T + 9, T)
    # Nobody knows what was deleted before: see T8.
    assert (board.dead_floor_time, board.since(T + 9, deleted=True)) == (T + 9, None)
    assert board.since(T + 10, deleted=True) is not None
    assert set(board.unfinished()) == {"old", "older", "new"}


def test_resumed_runs_may_have_been_anything() -> None:
    board = resumed(Board(PLENTY))
    for run_id in ("ended", "new"):
        entry = board.get(run_id)
        assert entry is not None
        assert set(ANYTHING) <= set(entry[FACETS])
    old = board.get("old")
    assert old is not None
    assert old[FACETS] == (facet(run("old", agent="a")),)


def test_time_goes_on_where_it_ended_before_the_restart() -> None:
    """The database's clock may have been set back."""
    board = Board(PLENTY)
    board.apply(Resumed([], [], T + 50, T))
    assert (board.time, board.last_time) == (T + 51, T)
    entry, _, _ = change(board, "insert", run("r"), T + 10)
    assert (entry[TIME], board.last_time) == (T + 51, T + 51)


def test_resumed_runs_beyond_the_memory_raise_the_floor() -> None:
    board = Board(1)
    rows = [(T + i, run(f"r{i}", "completed")) for i in range(1, 9)]
    board.apply(Resumed([run("active")], rows, T + 9, T))
    assert len(board) == 1
    assert board.since(T + 8) is None
    assert ids_since(board, T + 9) == []


def test_two_rows_of_one_id_are_one_run_after_a_restart() -> None:
    board = Board(PLENTY)
    board.apply(Resumed([run("r")], [(T + 5, run("r", "completed"))], T + 9, T))
    assert ids_since(board, T + 1) == ["r"]
    assert not board.unfinished()
    board.apply(Changes([("truncate", only_id(""))], T, 7))
    assert board.size == 0


def test_every_time_is_remembered_before_it_is_sent() -> None:
    """Also the one that the API answers, which is above the floor."""
    told: list[Micros] = []
    board = Board(1, remember=told.append)
    board.apply(Snapshot([run("r")], T))
    assert told[-1] == T
    change(board, "update", run("r", "running"), T + 3)
    assert told[-1] == board.time == T + 3
    change(board, "update", run("r", "completed"), T + 2)  # evicted at once
    assert board.floor_time == T + 3
    assert told[-1] == T + 4
    board.apply(Resumed([], [], T + 50, T))
    assert told[-1] == board.time == T + 51


def test_the_last_time_is_that_of_the_newest_change() -> None:
    """A poll that finds nothing moves the time alone."""
    board = begun(PLENTY, run("r"))
    assert board.last_time == T
    board.apply(Snapshot([], T + 5))
    assert (board.time, board.last_time) == (T + 5, T)
    change(board, "update", run("r", "running"), T + 7)
    board.apply(Changes([("truncate", only_id(""))], T + 9, 7))
    assert (board.time, board.last_time) == (T + 10, T + 7)


def test_of_an_empty_table_the_last_time_is_the_floor() -> None:
    board = begun()
    assert board.last_time == board.floor_time == T - 1
