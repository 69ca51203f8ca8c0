"""What the board does with a comparison of the table, and how the source learns it."""

from brain.contract.events import Outcome, Snapshot
from brain.contract.messages import Run
from brain.delivery.board import Board


def run(run_id: str, status: str = "running") -> Run:
    return (run_id, status, None, None, None, None, None, None)


def compared(board: Board, *rows: Run, gone: tuple[str, ...] = (), after: int) -> Outcome:
    outcome = Outcome()
    board.apply(Snapshot(rows, 2, gone, unless_after=after, outcome=outcome))
    return outcome


def test_the_outcome_counts_what_differed_and_what_was_removed() -> None:
    board = Board(1 << 20)
    board.apply(Snapshot([run("same"), run("other"), run("gone")], 1))
    rows = (run("same"), run("other", "failed"), run("new"))
    outcome = compared(board, *rows, gone=("gone", "unknown"), after=board.seq)
    assert outcome == Outcome(pushed=2, removed=1, skipped=0)


def test_the_outcome_counts_rows_that_the_board_takes_for_deleted() -> None:
    board = Board(1 << 20)
    board.apply(Snapshot([run("a")], 1))
    board.dead_floor = 1 << 60
    assert compared(board, run("a"), run("new"), after=board.seq) == Outcome(skipped=1)


def test_the_outcome_counts_rows_that_the_board_evicts_at_once() -> None:
    board = Board(0)
    board.apply(Snapshot([], 1))
    found = compared(board, run("done", "failed"), after=board.seq)
    assert found == Outcome(pushed=1, skipped=1)


def test_rows_that_the_stream_has_overtaken_do_not_count() -> None:
    board = Board(1 << 20)
    board.apply(Snapshot([run("a"), run("b")], 1))
    outcome = compared(board, run("a", "failed"), gone=("b",), after=0)
    assert outcome == Outcome()
    assert {"a", "b"} <= set(board.unfinished())
