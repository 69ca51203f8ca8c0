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
    """The limit of each cgroup that this process is in: its CPU time, in cores.

    In a container, a path may be that of the host, and the files those of the container's root.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # macOS
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, read = cgroups, _limit
        elif "cpu" in controllers.split(","):
            root, read = cgroups / controllers, _limit_v1
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            # The root of a machine has no such file.
            with contextlib.suppress(OSError, ValueError):
                quota, period = read(group)
                if quota > 0:
                    yield math.ceil(quota / period)
            group = group.parent


def _limit(group: Path) -> tuple[int, int]:
    """µs of CPU time in a period of so many. ValueError: "max", which is no limit."""
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota), int(period)


def _limit_v1(group: Path) -> tuple[int, int]:
    """The same; -1 is no limit."""
    quota, period = (
        int((group / f"cpu.cfs_{each}_us").read_text()) for each in ("quota", "period")
    )
    return quota, period
