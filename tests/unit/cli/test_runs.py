"""The runs that `brain watch` shows, in their order."""

from datetime import UTC, datetime, timedelta

import pytest

from brain.cli import runs as module
from brain.cli.runs import Overview, fitting, gist
from brain.client.events import Message
from brain.contract.messages import TYPES, RunData, Status

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def message(run_id: str, status: Status, at: float = 0, **fields: object) -> Message:
    data = RunData(id=run_id, status=status, **fields)  # type: ignore[arg-type]
    return Message(TYPES[status], data, NOON + timedelta(seconds=at), "")


def told(*messages: Message, statuses: tuple[str, ...] = ()) -> Overview:
    runs = Overview(statuses)
    for each in messages:
        runs.take(each)
    return runs


def order(runs: Overview, now: float = 0, quiet: float = 300) -> list[list[str]]:
    return [[row.run.id for row in rows] for rows in runs.ordered(NOON.timestamp() + now, quiet)]


def started(minutes: float) -> datetime:
    return NOON - timedelta(minutes=minutes)


def test_who_needs_somebody_comes_first() -> None:
    runs = told(
        message("done-1", "completed", 1),
        message("done-2", "completed", 2),
        message("queued", "queued"),
        message("old", "running", 900, started_at=started(30)),
        message("new", "running", 900, started_at=started(1)),
        message("mute", "running", 10),
        message("muter", "running", 0),
        message("failed-1", "failed", 1),
        message("failed-2", "failed", 2),
    )
    assert order(runs, now=900) == [
        ["failed-2", "failed-1", "muter", "mute"],
        ["new", "old", "queued", "done-2", "done-1"],
    ]


def test_a_change_of_progress_moves_no_row() -> None:
    runs = told(*(message(f"r{i}", "running", started_at=started(i)) for i in range(5)))
    before = order(runs)
    runs.take(message("r3", "running", 5, progress=50, started_at=started(3)))
    assert order(runs) == before == [[], ["r0", "r1", "r2", "r3", "r4"]]


def test_a_run_that_leaves_the_status_asked_for_leaves() -> None:
    runs = told(message("r", "running"), statuses=("running",))
    assert len(runs) == 1
    runs.take(message("r", "completed"))
    assert len(runs) == 0
    assert runs.ended["completed"] == 1


def test_an_end_that_is_sent_again_counts_once() -> None:
    for statuses in ((), ("running",)):
        runs = told(*3 * [message("r", "failed")], statuses=statuses)
        assert runs.ended["failed"] == 1
        runs.take(message("r", "queued"))
        runs.take(message("r", "failed"))
        assert runs.ended["failed"] == 2


def test_what_was_seen_stays_counted_when_the_view_begins_again() -> None:
    runs = told(message("r", "failed", error="bad luck"), message("other", "running"))
    runs.clear()
    assert (len(runs), runs.ended["failed"], list(runs.failures)) == (0, 1, ["r"])


def test_the_finished_and_the_failures_are_bounded() -> None:
    runs = told(*(message(f"r{i}", "failed", i) for i in range(module.MAX_FINISHED + 5)))
    runs.take(message("active", "running"))
    assert len(runs) == module.MAX_FINISHED + 1
    assert runs.counts()["failed"] == module.MAX_FINISHED
    assert list(runs.failures)[-1] == f"r{module.MAX_FINISHED + 4}"
    assert len(runs.failures) == module.MAX_FAILURES
    assert "r0" not in order(runs)[0]


def test_failures_leave_room_for_what_runs() -> None:
    failures = [message(f"f{i:02}", "failed", i, error="bad luck") for i in range(20)]
    active = [message(f"r{i:02}", "running") for i in range(20)]
    urgent, others = told(*failures, *active).ordered(NOON.timestamp(), 300)
    for lines in range(30):
        shown = fitting(urgent, others, lines)
        assert sum(map(module.height, shown)) <= lines
        failed = sum(row.run.status == "failed" for row in shown)
        assert failed == (lines - lines // 2) // 2
    assert len(fitting(urgent, [], 10)) == 5, "failures alone get it all"
    assert len(fitting([], others, 10)) == 10
    assert len(fitting(urgent, others[:2], 10)) == 6


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("no disk", "no disk"),
        ("first\nsecond", "first\nsecond"),
        (f"{TRACEBACK}ValueError: no currency\n", "ValueError: no currency"),
        (f"{TRACEBACK}… [cut]", f"{TRACEBACK}… [cut]"),
    ],
)
def test_the_line_of_a_traceback_is_the_one_that_says_what_went_wrong(
    error: str, shown: str
) -> None:
    assert gist(error) == shown
