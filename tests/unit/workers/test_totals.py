"""The metrics of several workers as one."""

import math

import pytest

from brain.contract.families import Family, Merge
from brain.workers.totals import Totals


def family(name: str, value: float, merge: Merge, *, gauge: bool = False, **labels: str) -> Family:
    kind = "gauge" if gauge else "counter"
    return Family(name=name, type=kind, help="", merge=merge, samples=[(name, labels, value)])


def value(totals: Totals, name: str = "n", *answered: int) -> float:
    (found,) = [each for each in totals.merged(answered) if each["name"] == name]
    ((_, _, number),) = found["samples"]
    return number


@pytest.mark.parametrize(
    ("merge", "expected"), [("sum", 7), ("max", 4), ("min", 3)], ids=["sum", "max", "min"]
)
def test_a_gauge_is_merged_by_its_rule(merge: Merge, expected: float) -> None:
    totals = Totals()
    totals.note(1, [family("n", 3, merge, gauge=True)])
    totals.note(2, [family("n", 4, merge, gauge=True)])
    assert value(totals, "n", 1, 2) == expected


def test_the_gauge_of_a_silent_worker_does_not_count() -> None:
    totals = Totals()
    totals.note(1, [family("n", 3, "sum", gauge=True)])
    totals.note(2, [family("n", 4, "sum", gauge=True)])
    assert value(totals, "n", 1) == 3


def test_a_lag_that_is_infinite_stays_so() -> None:
    totals = Totals()
    totals.note(1, [family("n", math.inf, "max", gauge=True)])
    totals.note(2, [family("n", 0, "max", gauge=True)])
    assert value(totals, "n", 1, 2) == math.inf


def test_each_combination_of_labels_is_merged_by_itself() -> None:
    totals = Totals()
    totals.note(1, [family("n", 1, "sum", code="a")])
    totals.note(2, [family("n", 2, "sum", code="b")])
    totals.note(3, [family("n", 4, "sum", code="a")])
    assert totals.merged([1, 2, 3])[0]["samples"] == [
        ("n", {"code": "a"}, 5),
        ("n", {"code": "b"}, 2),
    ]


def test_a_sum_keeps_what_a_worker_had_counted_that_has_ended_or_is_silent() -> None:
    totals = Totals()
    totals.note(1, [family("n", 10, "sum")])
    totals.note(2, [family("n", 5, "sum")])
    assert value(totals, "n", 2) == 15
    totals.end(1)
    assert value(totals, "n", 2) == 15
    totals.note(3, [family("n", 1, "sum")])
    assert value(totals, "n", 2, 3) == 16


def test_what_every_worker_sees_is_counted_once() -> None:
    totals = Totals()
    totals.note(1, [family("n", 10, "most")])
    totals.note(2, [family("n", 9, "most")])  # a moment later or earlier
    assert value(totals, "n", 1, 2) == 10
    totals.note(1, [family("n", 12, "most")])
    totals.note(2, [family("n", 13, "most")])
    assert value(totals, "n", 1, 2) == 13


def test_what_every_worker_sees_goes_on_when_they_are_replaced_one_by_one() -> None:
    totals = Totals()
    totals.note(1, [family("n", 10, "most")])
    totals.note(2, [family("n", 10, "most")])
    assert value(totals) == 10
    # The third begins at 12, and has seen 3 of the 15 when both are asked.
    totals.note(2, [family("n", 15, "most")])
    totals.note(3, [family("n", 3, "most")])
    assert value(totals) == 15
    totals.end(1)
    totals.note(2, [family("n", 16, "most")])  # its last words
    totals.end(2)
    assert value(totals) == 16
    totals.note(3, [family("n", 5, "most")])
    assert value(totals) == 17


def test_what_every_worker_sees_goes_on_when_all_have_died() -> None:
    totals = Totals()
    totals.note(1, [family("n", 10, "most")])
    assert value(totals) == 10
    totals.end(1)
    totals.note(2, [family("n", 2, "most")])
    assert value(totals) == 12


def test_a_counter_never_falls() -> None:
    """Whatever ends and begins."""
    totals = Totals()
    seen = {"s": 0.0, "m": 0.0}
    counts: dict[int, float] = {}
    for step in range(200):
        if step % 7 == 0:
            counts[step] = 0
        if step % 11 == 10 and counts:
            ended = min(counts)
            del counts[ended]
            totals.end(ended)
        for process, before in list(counts.items()):
            count = counts[process] = before + process % 3
            if (process + step) % 5:
                totals.note(process, [family("s", count, "sum"), family("m", count, "most")])
        for name, last in seen.items():
            if any(each["name"] == name for each in totals.merged(list(counts))):
                seen[name] = value(totals, name, *counts)
                assert seen[name] >= last
    assert seen["s"] > seen["m"] > 0
