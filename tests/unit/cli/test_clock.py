"""The database's clock, as a client can know it."""

from datetime import UTC, datetime, timedelta

import pytest

from brain.cli.clock import DatabaseClock, duration

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Hands:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def clock(hands: Hands) -> DatabaseClock:
    return DatabaseClock(hands)


def after_noon(clock: DatabaseClock) -> float:
    now = clock.now()
    assert now is not None
    return round(now - NOON.timestamp(), 3)


def test_it_is_unknown_before_anything_came(clock: DatabaseClock) -> None:
    assert clock.now() is None


def test_it_goes_on_from_the_latest_bound(clock: DatabaseClock, hands: Hands) -> None:
    clock.received(NOON, pushed=True)
    hands.time += 5
    assert after_noon(clock) == 5
    clock.received(NOON + timedelta(seconds=2), pushed=True)  # on its way for 3 s
    assert after_noon(clock) == 5
    clock.received(NOON + timedelta(seconds=6), pushed=True)
    assert after_noon(clock) == 6


def test_the_servers_clock_counts_while_only_old_changes_came(
    clock: DatabaseClock, hands: Hands
) -> None:
    clock.received(NOON - timedelta(hours=3), pushed=False)
    clock.guess(NOON)
    hands.time += 1
    assert after_noon(clock) == 1


def test_a_change_that_was_just_pushed_counts_more_than_the_servers_clock(
    clock: DatabaseClock,
) -> None:
    clock.guess(NOON + timedelta(hours=1))  # of a server whose clock is wrong
    assert after_noon(clock) == 3600
    clock.received(NOON, pushed=True)
    assert after_noon(clock) == 0


def test_it_stands_still_while_there_is_no_connection(clock: DatabaseClock, hands: Hands) -> None:
    clock.received(NOON, pushed=True)
    clock.freeze()
    hands.time += 60
    clock.freeze()
    assert clock.frozen
    assert after_noon(clock) == 0
    clock.thaw()
    assert after_noon(clock) == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m 00s"),
        (192, "3m 12s"),
        (3600, "1h 00m"),
        (7500, "2h 05m"),
        (86400, "1d 00h"),
        (273600, "3d 04h"),
    ],
)
def test_a_duration_is_two_units_and_never_negative(seconds: float, text: str) -> None:
    assert duration(seconds) == text
