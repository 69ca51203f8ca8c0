"""Spans of timestamps, against the set of all that were sent."""

import random

import pytest

from brain.postgres.sent_times import MAX_LEAD, SentTimes, Span

T = 1_700_000_000_000_000


def held(sent: SentTimes) -> list[Span]:
    return [*sent._sent, Span(sent._first, sent.high)]


def test_a_pause_begins_a_new_span() -> None:
    sent = SentTimes(None, 0)
    assert sent.leap(0, T)
    assert not sent.leap(T, T + MAX_LEAD)
    assert sent.leap(T + MAX_LEAD, T + 2 * MAX_LEAD + 1)
    assert sent._sent == [Span(T, T + MAX_LEAD)]
    assert sent._first == T + 2 * MAX_LEAD + 1


def test_unknown_spans_are_one() -> None:
    """As in a file of an older Brain."""
    sent = SentTimes(None, T)
    assert not sent.refuse(T, T - 10 * MAX_LEAD)


def test_the_spans_that_are_closest_become_one() -> None:
    sent, high = SentTimes(None, 0), 0
    for hour in (0, 1, 2, 3, 9_000, 9_001, 9_002, 9_003):
        time = T + hour * 3_600_000_000
        sent.leap(high, time)
        high = time
    now = T + 4 * 3_600_000_000
    assert sent.refuse(high, now)
    assert sent.refused == ((T + 9_000 * 3_600_000_000, high),)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_no_time_has_two_meanings(first: int) -> None:
    for seed in range(first, first + 50):
        no_time_has_two_meanings(seed)


def no_time_has_two_meanings(seed: int) -> None:
    """A clock that jumps, and a process that is restarted. Each time that was sent lies before
    those that follow, or is refused.
    """
    dice = random.Random(seed)
    sent, high = SentTimes(None, 0), 0
    now, wrong, used = T, 0, set[int]()
    for _ in range(dice.randrange(5, 40)):
        now += dice.choice((1, 1000, MAX_LEAD // 2, 2 * MAX_LEAD, 100 * MAX_LEAD))
        wrong = dice.choice((wrong, wrong, 0, 50 * MAX_LEAD, 10_000 * MAX_LEAD))
        if dice.random() < 0.3:
            sent = SentTimes(sent.numbers(), high)
            start = sent.allowed(now + wrong)
            if high - start > MAX_LEAD and sent.refuse(high, start):
                high = start
        time = sent.allowed(max(high, now + wrong))
        assert time == high or time not in used or sent.allowed(time) != time
        sent.leap(high, time)
        high = time
        used.add(time)
        later = [each for each in used if each > high]
        assert all(sent.allowed(each) != each for each in later)
        assert sent.allowed(high) == high
