"""What a board lacks of the log's (nodes/difference.py), and taking over a board."""

import random

import pytest

from brain.contract.events import Changes, Event, Image, Op, Snapshot, only_id
from brain.contract.messages import ID, STATUS, STATUSES, Run
from brain.delivery.board import Board
from brain.delivery.log import FACETS, FRAME, RUN, TIME, is_tombstone
from brain.nodes.difference import PIECE, difference, image, pieces

MEMORY = 1 << 24


def run(name: str, status: str = "running", agent: str | None = None, step: int = 0) -> Run:
    return (name, status, float(step), None, agent, None, None, None)


def changed(at: int, *rows: Run, op: Op = "update") -> Changes:
    return Changes([(op, row) for row in rows], at, at)


def board(*events: Event, memory: int = MEMORY) -> Board:
    found = Board(memory)
    found.apply(Snapshot([], 10))
    for event in events:
        found.apply(event)
    return found


def content(of: Board) -> list[tuple[object, ...]]:
    return [(entry[TIME], entry[RUN], entry[FRAME], entry[FACETS]) for entry in of.log.current()]


def history(dice: random.Random, at: int, count: int) -> list[Event]:
    events: list[Event] = []
    for _ in range(count):
        at += dice.randint(1, 5)
        name = f"r{dice.randrange(40)}"
        if dice.random() < 0.1:
            events.append(Changes([("delete", only_id(name))], at, at))
        elif dice.random() < 0.02:
            events.append(Changes([("truncate", only_id(""))], at, at))
        else:
            status = dice.choice(STATUSES)
            row = run(name, status, dice.choice((None, "a", "b")), dice.randrange(9))
            events.append(changed(at, row, op=dice.choice(("insert", "update"))))
    return events


SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.faults) for seed in range(6, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_empty_board_takes_over_another_as_it_is(seed: int) -> None:
    before = board(*history(random.Random(seed), 10, 300))
    after = Board(MEMORY)
    assert after.apply(image(before)) == []
    assert content(after) == content(before)
    assert image(after) == image(before)
    assert (after.size, after.tombstones, len(after)) == (
        before.size,
        before.tombstones,
        len(before),
    )
    assert set(after.unfinished()) == set(before.unfinished())
    for at in range(5, before.time + 2):
        for deleted in (False, True):
            expected, found = (each.since(at, deleted=deleted) for each in (before, after))
            assert (expected is None) == (found is None)
            if expected is not None and found is not None:
                assert (
                    after.log.piece(found, after.seq, deleted=deleted)[0]
                    == (before.log.piece(expected, before.seq, deleted=deleted)[0])
                )


def test_a_board_in_pieces_is_the_board() -> None:
    before = board(*(changed(20 + i, run(f"r{i}")) for i in range(2 * PIECE + 5)))
    after = Board(MEMORY)
    for piece in pieces(image(before)):
        after.apply(piece)
    assert content(after) == content(before)
    assert (after.time, after.floor_time) == (before.time, before.floor_time)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_board_that_was_behind_pushes_what_it_lacks_at_the_times_of_the_others(seed: int) -> None:
    dice = random.Random(seed)
    first = history(dice, 10, 100)
    live, ahead = board(*first), board(*first)
    newest = live.time
    for event in history(dice, ahead.time, 100):
        ahead.apply(event)
    changes = difference(live, ahead)
    assert all(isinstance(each, Image) for each in changes)
    pushed = [push for each in changes for push in live.apply(each)]
    assert all(entry[TIME] > newest for entry, _, _ in pushed)
    held = {entry[RUN][ID]: entry for entry in live.log.current()}
    for entry in ahead.log.current():
        assert held.pop(entry[RUN][ID])[:3][1:] == entry[:3][1:]
    assert all(
        is_tombstone(entry) or entry[RUN][STATUS] in ("completed", "failed")
        for entry in held.values()
    )
    assert (live.time, live.dead_floor_time) == (ahead.time, ahead.dead_floor_time)
    assert difference(live, ahead)[0] == Image(
        [], ahead.time, ahead.last_time, ahead.floor_time, ahead.dead_floor_time, ahead.ended_early
    )


def test_what_a_run_has_been_on_either_board_it_has_been() -> None:
    live = board(changed(20, run("x", agent="a")))
    loaded = board(changed(20, run("x", agent="a")), changed(21, run("x", agent="b")))
    loaded.apply(changed(22, run("x", agent="c")))
    ((entry, facets, _),) = live.apply(*difference(live, loaded))
    assert {agent for _, agent, _ in facets} >= {"a", "b", "c"}
    assert entry[FACETS] == facets


def test_a_run_that_the_log_s_board_has_not_is_gone() -> None:
    live = board(changed(20, run("x"), run("y", "completed")))
    loaded = board(changed(30, run("z")))
    pushed = live.apply(*difference(live, loaded))
    assert {(e[RUN][ID], e[RUN][STATUS]) for e, _, _ in pushed} == {
        ("x", "deleted"),
        ("y", "deleted"),
        ("z", "running"),
    }


def begins(live: Board, loaded: Board) -> None:
    """The board is the loaded one from then on, and nothing is pushed."""
    (event,) = difference(live, loaded)
    assert event.new
    before = live.seq
    assert live.apply(event) == []
    assert content(live) == content(loaded)
    assert image(live) == image(loaded)
    assert live.floor > before
    assert live.reached == loaded.reached
    live.apply(changed(loaded.time + 5, run("later")))
    assert "later" in live


def test_it_is_a_new_beginning_if_what_was_evicted_was_never_pushed() -> None:
    live = board(changed(20, run("x")))
    loaded = board(
        *(changed(30 + i, run(f"r{i}", "completed")) for i in range(3000)), memory=1 << 20
    )
    assert loaded.floor_time > live.time
    begins(live, loaded)


def test_it_is_a_new_beginning_if_times_would_go_back() -> None:
    """Clients of this node hold a later time than that of a change they have not seen."""
    live = board(changed(50, run("x")))
    loaded = board(changed(40, run("y")), changed(60, run("z")))
    begins(live, loaded)


def test_nothing_is_a_new_beginning_that_is_the_same() -> None:
    live, loaded = (board(changed(20, run("x"), run("y", "failed"))) for _ in range(2))
    assert live.apply(*difference(live, loaded)) == []
