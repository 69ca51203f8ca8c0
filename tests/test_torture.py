"""Line 52 of the list of faults: a minute of the oracle; and Brains that were given a fault, which it has to find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mutant import mutant
from torture import plan

PROGRAM = [sys.executable, str(Path(__file__).with_name("torture.py"))]


def test_52_random_kills_of_client_server_and_database_and_all_converge() -> None:
    """The schedule is always the same, and what it meets never is. `make torture` makes a new one."""
    done = subprocess.run(
        [*PROGRAM, "--minutes", "1", "--seed", "2", "--patience", "60"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, least in (("changes", 2_000), ("messages", 20_000), ("final states checked", 1_000)):
        counted = re.search(rf"(\d+) {name}", done.stdout)
        assert counted, name
        assert int(counted[1]) > least, f"only {counted[0]}: it has hardly looked"


FAULTS = {
    "none": ("hub", "R14", "R14"),
    "who lagged is live again, and not brought up to date": (
        "hub",
        "if client.intact and client.seq == self.flushed:",
        "if client.intact:",
    ),
    "what changed during an outage is not pushed": (
        "board",
        "        if not self.begun:\n            pushes = []",
        "        if not self.begun or event.unless_after is None:\n            pushes = []",
    ),
    "since begins now": ("hub", "client.seq = min(seq, self.flushed)", "client.seq = self.flushed"),
}


def test_the_oracle_finds_what_is_wrong(tmp_path: Path) -> None:
    """All at once: a process each."""
    running = {}
    for number, (name, fault) in enumerate(FAULTS.items()):
        environment = os.environ | {"PYTHONPATH": str(mutant(tmp_path / str(number), *fault))}
        command = [*PROGRAM, "--minutes", "0.2", "--seed", "88", "--rate", "400", "--patience", "4"]
        running[name] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    said = {name: process.communicate(timeout=120)[0] for name, process in running.items()}
    for name, process in running.items():
        print(name, said[name][:1000], sep="\n")
        if name == "none":
            assert process.returncode == 0, said[name]
        else:
            assert process.returncode == 1, f"not found: {name}"
            assert "WRONG" in said[name], "it broke, and has not looked"


def test_a_seed_gives_a_schedule_and_another_seed_another() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_does_nothing_to_who_is_away_and_ends_in_peace(seed: int) -> None:
    until: dict[str, float] = {}
    for event in plan(seed, 120):
        actor = event.what.partition(":")[0]
        assert actor == "a client" or event.at >= until.get(actor, 0)
        until[actor] = event.at + event.lasts
        assert until[actor] <= 118
