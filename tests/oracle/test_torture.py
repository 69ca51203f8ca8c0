"""Line 52 of the list of faults: a minute of the oracle; and Brains that were given a fault, which it has to find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.torture import plan
from tests.support import ROOT
from tests.support.mutant import mutant

PROGRAM = [sys.executable, "-m", "tests.oracle.torture"]


def verdict(source: Path | None, seed: int, *, minutes: float, patience: float) -> tuple[int, str]:
    """The exit status of the oracle, and what it said, of the Brain whose source this is."""
    command = [
        *PROGRAM,
        "--minutes",
        str(minutes),
        "--seed",
        str(seed),
        "--patience",
        str(patience),
    ]
    environment = os.environ if source is None else os.environ | {"PYTHONPATH": str(source)}
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


@pytest.mark.cheap
def test_52_random_kills_of_client_server_and_database_and_all_converge() -> None:
    """The schedule is always the same, and what it meets never is. `make torture` makes a new one."""
    status, said = verdict(None, 2, minutes=1, patience=60)
    assert status == 0, said
    for name, least in (("changes", 2_000), ("messages", 20_000), ("final states checked", 1_000)):
        counted = re.search(rf"(\d+) {name}", said)
        assert counted, name
        assert int(counted[1]) > least, f"only {counted[0]}: it has hardly looked"


FAULTS = {
    "who lagged is live again, and not brought up to date": (
        "delivery.hub",
        "if client.intact and client.seq == self.flushed:",
        "if client.intact:",
    ),
    "what changed during an outage is not pushed": (
        "delivery.board",
        "        if not self.begun:\n            pushes = []",
        "        if not self.begun or event.unless_after is None:\n            pushes = []",
    ),
    "since begins now": (
        "delivery.hub",
        "client.seq = min(seq, self.flushed)",
        "client.seq = self.flushed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_oracle_finds_what_is_wrong(fault: str, tmp_path: Path) -> None:
    """Not in every run of seconds does the one thing happen that brings a fault to light: so again, and for longer."""
    source = mutant(tmp_path, *FAULTS[fault])
    for attempt in range(4):
        status, said = verdict(source, 88 + attempt, minutes=0.2 * 2**attempt, patience=8)
        if status:
            break
    assert status == 1
    assert re.search(r"^WRONG .* (is missing|is \{.*\}, not)", said, re.MULTILINE), (
        "it broke, and has not looked"
    )


def test_the_oracle_finds_nothing_wrong_with_a_copy(tmp_path: Path) -> None:
    status, said = verdict(
        mutant(tmp_path, "delivery.hub", "# (R14)", ""), 88, minutes=0.2, patience=60
    )
    assert status == 0, said


@pytest.mark.cheap
def test_a_seed_gives_a_schedule_and_another_seed_another() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


@pytest.mark.cheap
@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_does_nothing_to_who_is_away_and_ends_in_peace(seed: int) -> None:
    until: dict[str, float] = {}
    for event in plan(seed, 120):
        actor = event.what.partition(":")[0]
        assert actor == "a client" or event.at >= until.get(actor, 0)
        until[actor] = event.at + event.lasts
        assert until[actor] <= 118
