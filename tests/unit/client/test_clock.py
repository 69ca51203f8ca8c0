"""The database's clock, as a client can know it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from brain.client.clock import DatabaseClock, duration
from tests.unit.client.cases import Step, cases

CASES = cases("clock.json")


def moment(ms: float) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


class Hands:
    """The two clocks of a machine, which a test moves; and a database's clock made of them."""

    def __init__(self) -> None:
        self.at = self.wall = 0.0
        self.clock = DatabaseClock(self.monotonic, lambda: self.wall / 1000)

    def monotonic(self) -> float:
        return self.at / 1000

    def play(self, step: Step) -> None:
        self.at = step["at"]
        self.wall = step.get("wall", self.at)
        if "ask" in step:
            self.clock.ask(moment(step["ask"]))
        for name in ("hear", "push"):
            if name in step:
                self.clock.hear(moment(step[name]), pushed=name == "push")


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_the_table_that_javascript_has_too(steps: list[Step]) -> None:
    hands = Hands()
    for step in steps:
        hands.play(step)
        found: dict[str, Any] = {
            "now": round(hands.clock.now() * 1000, 3),
            "doubtful": hands.clock.is_doubtful,
        }
        expected = {name: value for name, value in step.items() if name in found}
        assert found | expected == found, step


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
