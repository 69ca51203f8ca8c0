"""Which changes of status are allowed."""

from brain.contract.messages import STATUSES, TRANSITIONS


def test_finished_statuses_are_final_and_every_status_may_stay() -> None:
    assert TRANSITIONS.keys() == set(STATUSES)
    assert all(status in allowed for status, allowed in TRANSITIONS.items())
    assert TRANSITIONS["completed"] == {"completed"}
    assert TRANSITIONS["failed"] == {"failed"}
