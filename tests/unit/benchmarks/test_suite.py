"""Which loads a comparison asks of which server, and what it makes of failures."""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import machine, versions
from benchmarks import suite as suites
from benchmarks.peers import Peer
from benchmarks.suite import Job, Suite

LOADS = [
    Job("light", 100, 10, 10),
    Job("heavy", 1_000, 10, 10),
    Job("heaviest", 1_000, 10, 100),
    Job("as heavy", 10_000, 10, 10),
]
LIGHT, HEAVY, HEAVIEST, AS_HEAVY = LOADS


class Answering:
    """A place whose server falls behind at some loads."""

    def __init__(self, name: str, *behind: Job) -> None:
        self.peer = argparse.Namespace(name=name)
        self.behind = {job.rate * 1000 + job.clients for job in behind}
        self.clients = 0

    def trial(self, _: int, rate: float) -> dict[str, float | bool]:
        return {"per_second": 1.0, "behind": rate * 1000 + self.clients in self.behind}


@pytest.fixture
def suite() -> Suite:
    return Suite("latency", argparse.Namespace(runs=3, quick=True, only="", compare=None))


def measured(suite: Suite, name: str, *behind: Job) -> list[str]:
    place = Answering(name, *behind)
    asked = []
    for job in LOADS:
        place.clients = job.clients
        if not suite.hopeless(name, job):
            suite.sustain(place, job)  # type: ignore[arg-type]
            asked.append(job.name)
    return asked


def test_a_server_that_keeps_up_is_asked_for_each_load_again(suite: Suite) -> None:
    everything = [job.name for job in LOADS]
    assert measured(suite, "brain") == everything
    assert measured(suite, "brain") == everything
    assert suite.absent == {}


def test_a_server_that_fell_behind_is_not_asked_again_nor_for_more(suite: Suite) -> None:
    assert measured(suite, "node_ws", HEAVY) == ["light", "heavy"]
    assert measured(suite, "node_ws", HEAVY) == ["light"]
    assert suite.absent == {
        "heaviest": {"node_ws": "fell behind at heavy"},
        "as heavy": {"node_ws": "fell behind at heavy"},
    }


def test_a_server_that_fell_behind_is_still_asked_for_as_much(suite: Suite) -> None:
    loads = ["light", "heavy", "heaviest", "as heavy"]
    assert measured(suite, "socketify", HEAVIEST, AS_HEAVY) == loads


def test_an_unknown_server_is_named_with_those_that_there_are() -> None:
    options = argparse.Namespace(runs=1, quick=True, only="brain,nginx", compare=None)
    with pytest.raises(SystemExit, match="--only nginx: the servers are brain, socketify"):
        Suite("latency", options)


def test_an_unknown_commit_is_named() -> None:
    with pytest.raises(SystemExit, match="--compare nowhere: git knows no such commit"):
        versions.tree("nowhere")


def test_a_commit_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "COPIES", tmp_path)
    versions.tree.cache_clear()
    try:
        tree = versions.tree("HEAD")
        assert (tree / "src" / "brain" / "__init__.py").is_file()
        assert versions.source("HEAD") == tree / "src"
        assert list(tmp_path.iterdir()) == [tree]
    finally:
        versions.tree.cache_clear()


def failing(times: int) -> Callable[[], dict[str, float]]:
    """Fails so often, and is well afterwards."""
    left = [times]

    def measure() -> dict[str, float]:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("it did not start:\nlong log")
        return {"tps": 1.0}

    return measure


def test_a_measurement_that_fails_is_made_again_once() -> None:
    found = machine.interleaved(2, {"first": failing(1), "other": failing(0)})
    assert {name: len(runs) for name, runs in found.items()} == {"first": 2, "other": 2}
    with pytest.raises(RuntimeError, match="it did not start"):
        machine.interleaved(1, {"first": failing(2)})


def test_a_measurement_that_fails_twice_does_not_end_the_others() -> None:
    failed: dict[str, str] = {}
    measures = {"first": failing(0), "other": failing(9), "last": failing(0)}
    found = machine.interleaved(2, measures, failed)
    assert {name: len(runs) for name, runs in found.items()} == {"first": 2, "last": 2}
    assert failed == {"other": "RuntimeError: it did not start"}


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError("latency"), ZeroDivisionError()])
def test_no_failure_of_a_server_ends_a_comparison(suite: Suite, error: Exception) -> None:
    def measure() -> None:
        raise error

    suite.measure("node_ws", "light", measure)
    assert list(suite.failed) == ["node_ws: light"]
    assert suite.failed["node_ws: light"].startswith(type(error).__name__)


def test_a_server_that_does_not_start_is_tried_again_and_then_named(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def place(peer: Peer, *_: object, **__: object) -> None:
        tries.append(peer.name)
        raise RuntimeError("it did not start")

    monkeypatch.setattr(suites, "Place", place)
    monkeypatch.setattr(suite, "database", lambda _: nullcontext())
    monkeypatch.setattr(suite, "url", "", raising=False)
    with suite.place("node_ws", clients=200) as found:
        assert found is None
    assert tries == ["node_ws", "node_ws"]
    assert suite.failed == {"node_ws: 200 clients": "RuntimeError: it did not start"}


def test_a_figure_that_could_not_be_measured_is_not_reached() -> None:
    assert machine.target("p99 ms", math.nan, most=70) == {
        "what": "p99 ms",
        "reached": None,
        "rule": "at most 70",
        "met": False,
    }
