"""Run all benchmarks, one after another, and write the report: `make bench`.

`python -m benchmarks [--quick] [NAME …]`. A program that fails, or takes far too long, does not
stop the others. It is run again at the end, if the half hour is not over. If it fails again, the
report says so; name it alone later, and its figures become a part of the same report.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from benchmarks import machine
from benchmarks.peers import build_all
from benchmarks.plan import LIMIT_MINUTES, PLAN, Step

QUICK_MINUTES = 0.3
CLEANING_SECONDS = 20
"""For a program that is ended."""


def minutes(step: Step, *, quick: bool) -> float:
    """What the last run on a machine like this one took; without one, what the plan says."""
    folder = machine.QUICK_RESULTS if quick else machine.RESULTS
    try:
        last = json.loads((folder / f"{step.name}.json").read_text())
        seconds = float(last["seconds"])
    except (OSError, ValueError, KeyError):
        return QUICK_MINUTES if quick else step.minutes
    same = last["machine"]["cpu"] == machine.describe()["machine"]["cpu"]
    whole = last["command"] == f"python -m benchmarks.{step.name}{' --quick' if quick else ''}"
    return seconds / 60 if same and whole else step.minutes


def chosen(names: Sequence[str]) -> list[Step]:
    """Raises SystemExit for a name that the plan lacks."""
    known = {step.name for step in PLAN}
    if unknown := set(names) - known:
        raise SystemExit(f"{', '.join(unknown)}: the programs are {', '.join(sorted(known))}")
    return [
        step
        for step in PLAN
        if (not names or step.name in names) and importlib.util.find_spec(f"benchmarks.{step.name}")
    ]


def run(step: Step, quick: Sequence[str], estimate: float) -> str:
    """Why it failed; "" if it did not."""
    command = [sys.executable, "-m", f"benchmarks.{step.name}", *quick]
    return within(2 * estimate + 2, command)


def within(minutes: float, command: Sequence[str]) -> str:
    """Why the program failed; "" if it did not."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            end(process)
            return f"it was ended after {minutes:.2g} min"
    return f"it ended with {code}" if code else ""


def end(process: "subprocess.Popen[bytes]") -> None:
    """With all that it has started. It may clean up first: its PostgreSQL is in memory."""
    everything = machine.tree(process.pid)
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(CLEANING_SECONDS)
    for pid in everything:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smoke tests, to benchmarks/build")
    parser.add_argument("names", nargs="*", help="some programs instead of all")
    options = parser.parse_args()
    steps = chosen(options.names)
    quick = ["--quick"] if options.quick else []
    print("building the peers (minutes, the first time)", flush=True)
    for name, reason in build_all().items():
        print(f"{name} will be skipped: {reason}", flush=True)
    estimates = {step.name: minutes(step, quick=options.quick) for step in steps}
    began = time.monotonic()

    def gone() -> float:
        return (time.monotonic() - began) / 60

    failed: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        left = sum(estimates[each.name] for each in steps[number - 1 :])
        print(
            f"\n== {step.name} ({number} of {len(steps)}): about {estimates[step.name]:.1f} min; "
            f"{gone():.0f} min gone, about {left:.0f} left",
            flush=True,
        )
        if why := run(step, quick, estimates[step.name]):
            failed[step.name] = why
    for step in [step for step in steps if step.name in failed]:
        if gone() + estimates[step.name] <= LIMIT_MINUTES:
            print(f"\n== {step.name} once more: {failed[step.name]}", flush=True)
            failed[step.name] = run(step, quick, estimates[step.name])
    failed = {name: why for name, why in failed.items() if why}
    for name, why in failed.items():
        machine.missed(name, why, quick=options.quick)
    print(f"\n{gone():.1f} min in all", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report", *quick], check=True)
    if failed:
        for name, why in failed.items():
            print(f"failed: {name}: {why}")
        raise SystemExit(f'again: make bench ONLY="{" ".join(failed)}"')


if __name__ == "__main__":
    main()
