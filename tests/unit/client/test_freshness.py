"""How fresh a client's runs are: the rule that the page, brain.Runs and `brain watch` share."""

import pytest

from brain.client.events import Source
from brain.client.freshness import Evidence, Freshness
from tests.unit.client.cases import Step, cases
from tests.unit.client.test_clock import Hands, moment

CASES = cases("freshness.json")


def play(evidence: Evidence, step: Step) -> None:
    if "report" in step:
        name, lag, code, detail = [*step["report"], None, None][:4]
        evidence.report(Source(name, code, detail, lag, moment(0), ""))
    if "ready" in step:
        evidence.ready()
    if "leave" in step:
        evidence.leave(step["leave"])
    if "end" in step:
        evidence.end(*step["end"])


def shown(fresh: Freshness) -> dict[str, object]:
    until = None if fresh.at is None else round(fresh.at.timestamp() * 1000, 3)
    return {
        "state": fresh.state,
        "until": until,
        "age": round(fresh.age * 1000, 3),
        "code": fresh.code,
        "reason": fresh.reason,
    }


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_the_table_that_javascript_has_too(steps: list[Step]) -> None:
    hands = Hands()
    evidence = Evidence(hands.clock, hands.monotonic)
    for step in steps:
        hands.play(step)
        play(evidence, step)
        found = shown(evidence.freshness)
        expected = {name: value for name, value in step.items() if name in found}
        assert found | expected == found, step


def test_it_says_when_it_will_be_doubted() -> None:
    hands = Hands()
    evidence = Evidence(hands.clock, hands.monotonic)
    assert evidence.doubted_in is None
    for lag, seconds in ((0.5, 8.0), (4.0, 6.0)):
        hands.at = hands.wall = hands.at + 100_000
        play(evidence, {"ready": True, "report": ["replication", lag]})
        assert evidence.doubted_in == pytest.approx(seconds)
        hands.at = hands.wall = hands.at + 1000 * seconds
        assert evidence.freshness.is_current
        hands.at = hands.wall = hands.at + 1
        assert evidence.freshness.state == "behind"
        assert evidence.doubted_in is None
