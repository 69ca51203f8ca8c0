"""Which loads a comparison asks of which server."""

import argparse
from pathlib import Path

import pytest

from benchmarks import versions
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
