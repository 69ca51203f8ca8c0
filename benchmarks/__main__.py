"""Run all benchmarks, one after another, and write the report: `make bench`.

`python -m benchmarks [--quick] [NAME …]`. A program that fails does not stop the others.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.peers import build_all
from benchmarks.plan import PLAN, Step

QUICK_MINUTES = 0.3


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
    began, failed = time.monotonic(), []
    for number, step in enumerate(steps, 1):
        left = sum(estimates[each.name] for each in steps[number - 1 :])
        gone = (time.monotonic() - began) / 60
        print(
            f"\n== {step.name} ({number} of {len(steps)}): about {estimates[step.name]:.1f} min; "
            f"{gone:.0f} min gone, about {left:.0f} left",
            flush=True,
        )
        command = [sys.executable, "-m", f"benchmarks.{step.name}", *quick]
        if subprocess.run(command, check=False).returncode:
            failed.append(step.name)
    print(f"\n{(time.monotonic() - began) / 60:.1f} min in all", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report", *quick], check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
