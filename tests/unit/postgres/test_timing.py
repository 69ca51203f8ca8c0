"""How long polling pauses after a scan, and how long a scan may take."""

import pytest

from brain.postgres.timing import PollTiming

TIMING = PollTiming(share=20, page=1e-6, max_pause=60, first_scan=600, later_scan=60)
GB = 1024**3


def test_the_shorter_of_two_scans_counts() -> None:
    assert TIMING.pause(0.01, 3.0, GB) == TIMING.pause(3.0, 0.01, GB) == pytest.approx(0.2)


def test_the_size_of_the_table_bounds_what_a_scan_may_cost() -> None:
    assert TIMING.pause(3.0, 3.0, 8192 * 1000) == pytest.approx(20 * 0.001)


def test_a_table_of_unknown_size_is_bounded_by_the_clock_alone() -> None:
    assert TIMING.pause(2.0, 2.0, 0) == pytest.approx(40)


def test_no_pause_is_longer_than_the_bound() -> None:
    assert TIMING.pause(9.0, 9.0, 1000 * GB) == 60


def test_a_first_scan_may_take_longer() -> None:
    assert TIMING.deadline(0.0, first=True) == TIMING.deadline(0.0, first=False) == 600
    assert TIMING.deadline(2.0, first=False) == 60 + 20 * 2
