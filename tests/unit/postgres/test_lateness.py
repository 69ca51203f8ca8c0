"""Lateness: the age of the oldest question without an answer."""

import math

from brain.postgres.lateness import Lateness


def test_is_infinite_until_the_table_has_been_read() -> None:
    lateness = Lateness()
    lateness.ask(5)
    assert lateness.seconds(7) == math.inf
    lateness.answered()
    assert lateness.seconds(8) == 0


def test_counts_from_the_oldest_question_and_not_from_the_last_answer() -> None:
    lateness = Lateness()
    lateness.answered()
    assert lateness.seconds(100) == 0, "nobody has asked"
    lateness.ask(100)
    lateness.ask(103)
    assert lateness.seconds(104) == 4
    lateness.answered()
    assert lateness.seconds(104) == 0


def test_a_stream_answers_until_it_ends_and_what_it_owes_stays() -> None:
    owed: list[float | None] = [None]
    lateness = Lateness()
    lateness.answered()
    lateness.follow(lambda: owed[0])
    assert lateness.seconds(10) == 0
    owed[0] = 9
    assert lateness.seconds(10) == 1
    lateness.unfollow()
    owed[0] = None
    assert lateness.seconds(12) == 3
    lateness.ask(11)  # the source is lost
    assert lateness.seconds(12) == 3
    lateness.answered()
    lateness.unfollow()
    assert lateness.seconds(13) == 0


def test_a_clock_that_was_read_before_the_question_gives_no_negative_lateness() -> None:
    lateness = Lateness()
    lateness.answered()
    lateness.ask(2)
    assert lateness.seconds(1.9) == 0
