"""What the exit status of `brain wait` is made of."""

import pytest

from brain.cli.wait import Exit, Waiting, check_runs, is_success
from brain.client.pages import MAX_QUERY, portions
from brain.client.wait import Ended, Gone
from brain.contract.messages import RunData, Status


@pytest.mark.parametrize(
    ("asked", "succeed"),
    [
        ((), {"completed"}),
        (("completed",), {"completed"}),
        (("failed",), {"failed"}),
        (("completed", "failed"), {"completed", "failed"}),
        (("running",), {"running", "completed"}),
        (("queued",), {"queued", "completed"}),
    ],
)
def test_a_run_succeeds_with_the_status_that_was_asked_for(
    asked: tuple[Status, ...], succeed: set[str]
) -> None:
    ends: set[Status] = {"completed", "failed", *asked}
    assert {s for s in ends if is_success(RunData(id="r", status=s), asked)} == succeed


def ended(run_id: str, status: Status) -> Ended:
    return Ended(run_id, RunData(id=run_id, status=status))


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([ended("a", "completed"), ended("b", "completed")], Exit.COMPLETED),
        ([ended("a", "failed"), ended("b", "completed")], Exit.FAILED),
        ([ended("a", "failed"), Gone("b", existed=True)], Exit.GONE),
        ([Gone("a", existed=False), ended("b", "completed")], Exit.GONE),
        ([ended("a", "failed")], Exit.TIMEOUT),
    ],
)
def test_the_worst_of_several_runs_counts(outcomes: list[Ended | Gone], status: Exit) -> None:
    waiting = Waiting(["a", "b"], ())
    for outcome in outcomes:
        waiting.take(outcome)
    assert waiting.status() is status


@pytest.mark.parametrize("run_ids", [["a", ""], ["é" * 513], ["\udcff"], ["r"] * 1001])
def test_an_id_that_no_run_can_have_is_refused(run_ids: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^(run|1001 runs) "):
        check_runs(run_ids)


def test_a_subscription_fits_into_a_url() -> None:
    long = [f"{i}{'é' * 500}" for i in range(20)]
    many = [str(i) for i in range(250)]
    for run_ids in (long, many, ["é" * 512]):
        groups = list(portions(run_ids))
        assert [run_id for group in groups for run_id in group] == run_ids
        assert all(len(group) <= 100 for group in groups)
        assert all(sum(6 * len(run_id) for run_id in group) <= MAX_QUERY for group in groups)
    assert [len(group) for group in portions(many, 60)] == [60, 60, 60, 60, 10]
