"""How many cores this process may use."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def cores(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """At least one. A container with the time of 1.5 cores has two.

    A worker for each core of the machine, where a container may use two of 64, would only cost
    memory.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([usable or 1, *_limits(membership, cgroups)]))


def _limits(membership: Path, cgroups: Path) -> Iterator[int]:
    """The limit of each cgroup (v2) that this process is in: its CPU time, in cores."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # macOS
        return
    for path in [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]:
        group = cgroups / path
        while group.is_relative_to(cgroups):
            # The root has none; "max" is no limit.
            with contextlib.suppress(OSError, ValueError):
                quota, period = (group / "cpu.max").read_text().split()
                yield math.ceil(int(quota) / int(period))
            group = group.parent
