"""The oracle (torture.py) for seconds, for a minute, and with faults that it has to detect."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.torture import plan
from tests.support import ROOT
from tests.support.mutant import mutant

pytestmark = pytest.mark.long

PROGRAM = [sys.executable, "-m", "tests.oracle.torture"]


def verdict(source: Path | None, seed: int, *, minutes: float, patience: float) -> tuple[int, str]:
    """The exit status and output of the oracle. `source`: a mutant's, or None for Brain itself."""
    command = [
        *PROGRAM,
        "--minutes",
        str(minutes),
        "--seed",
        str(seed),
        "--patience",
        str(patience),
    ]
    # Not measured for coverage, which would take a third of what the oracle can do in its time.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=minutes * 60 + 180,
        check=False,
    )
    print(done.stdout)
    return done.returncode, done.stdout


def converges(seed: int, minutes: float, **least: int) -> None:
    """The schedule is always the same; what it meets is not. `make torture` draws a new schedule.

    `least`: of changes, messages and final states that were checked. Fewer could detect nothing, so
    a machine that is too busy for them gets more time.
    """
    for factor in (1, 2, 4):
        status, output = verdict(None, seed, minutes=minutes * factor, patience=60)
        assert status == 0, output
        counts = {name: _count(name, output) for name in least}
        if all(counts[name] > least[name] for name in least):
            return
    pytest.fail(f"only {counts}")


def _count(name: str, output: str) -> int:
    found = re.search(rf"(\d+) {name.replace('_', ' ')}", output)
    assert found, name
    return int(found[1])


@pytest.mark.cheap
def test_every_client_converges_after_random_kills_of_clients_brain_and_postgresql() -> None:
    """A seed whose schedule has 11 of the 13 kinds of events in these seconds."""
    converges(31, 1 / 3, changes=700, messages=7_000, final_states_checked=350)


def test_every_client_converges_after_a_minute_of_random_kills() -> None:
    converges(2, 1, changes=2_000, messages=20_000, final_states_checked=1_000)


FAULTS = {
    "a client that lagged is live again without a catch-up": (
        "delivery.hub",
        "and (client.seq == group.position) and",
        "and",
    ),
    "changes during an outage are not pushed": (
        "delivery.board",
        "self._delete_unnamed()\n            return pushes\n",
        "self._delete_unnamed()\n            return [] if event.unless_after is None else pushes\n",
    ),
    "since starts at the present": (
        "delivery.hub",
        "client.seq = seq\n",
        "client.seq = self.board.seq\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_oracle_detects(fault: str, tmp_path: Path) -> None:
    """A run of seconds does not always trigger the fault, so it is repeated, for longer each
    time.
    """
    source = mutant(tmp_path, *FAULTS[fault])
    for attempt in range(4):
        status, output = verdict(source, 88 + attempt, minutes=0.2 * 2**attempt, patience=8)
        if status:
            break
    assert status == 1
    assert re.search(r"^WRONG .* (is missing|is \{.*\}, not)", output, re.MULTILINE), (
        "the oracle failed before it compared anything"
    )


def test_the_oracle_detects_a_4410_without_a_reason(tmp_path: Path) -> None:
    source = mutant(tmp_path, "postgres.records", "self._set(file.records())", "self._set([])")
    status, output = verdict(source, 2, minutes=0.7, patience=20)
    assert status == 1
    assert re.search(r"^WRONG .*4410 without a reason", output, re.MULTILINE), output


def test_the_oracle_accepts_an_unchanged_copy(tmp_path: Path) -> None:
    unchanged = "and (client.seq == group.position) and"
    source = mutant(tmp_path, "delivery.hub", unchanged, unchanged)
    status, output = verdict(source, 88, minutes=0.2, patience=60)
    assert status == 0, output


@pytest.mark.cheap
def test_the_schedule_depends_on_the_seed_alone() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


@pytest.mark.cheap
@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_never_hits_an_actor_that_is_down_and_ends_quietly(seed: int) -> None:
    until: dict[str, float] = {}
    for event in plan(seed, 120):
        actor = event.what.partition(":")[0]
        assert actor == "a client" or event.at >= until.get(actor, 0)
        until[actor] = event.at + event.lasts
        assert until[actor] <= 118
