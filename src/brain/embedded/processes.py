"""Other processes, as the system shows them: /proc on Linux, ps(1) on macOS."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HAS_PROC = sys.platform == "linux"

POLL_INTERVAL = 0.1 if HAS_PROC else 1.0
"""Seconds between two looks at a process that is not a child: ps takes some 10 ms."""


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    uid: int
    command: str
    """The command line, its arguments separated by spaces."""


def postmaster_folder(pid: int) -> Path | None:
    """The data folder of the postmaster `pid`; None if `pid` is no postmaster or has ended.

    The command line tells, because every account may read it: root in a container may not read
    /proc/PID/cwd. A zombie has no command line, and that of a backend begins with `postgres: `.
    """
    return _folder_from_proc(pid) if HAS_PROC else _folder_from_ps(pid)


def processes() -> Iterator[Process]:
    """All processes that have a command line."""
    return _from_proc() if HAS_PROC else _from_ps()


def _folder_from_proc(pid: int) -> Path | None:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        folder = arguments[arguments.index(b"-D") + 1]
    except (OSError, ValueError):
        return None
    return Path(os.fsdecode(folder)) if arguments[0].endswith(b"/postgres") else None


def _folder_from_ps(pid: int) -> Path | None:
    # ps does not mark where an argument ends. Brain starts `PATH/postgres -D FOLDER -c …`, pg_ctl
    # `PATH/postgres -D FOLDER`. The folder is the longest text after -D that is one.
    command = _ps("-o", "command=", "-p", str(pid)).rstrip()
    found = re.match(r"/.*?/postgres (?:.* )?-D (.+)", command, re.DOTALL)
    if found is None:
        return None
    ends = [end.start() for end in re.finditer(r" -|\Z", found[1])]
    folders = (found[1][:end] for end in reversed(ends))
    return next((Path(folder) for folder in folders if os.path.isdir(folder)), None)  # noqa: PTH112 - no error if closed to us


def _from_proc() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            arguments = (folder / "cmdline").read_bytes().rstrip(b"\0")
            command = os.fsdecode(arguments.replace(b"\0", b" "))
            yield Process(int(folder.name), folder.stat().st_uid, command)


def _from_ps() -> Iterator[Process]:
    for line in _ps("-ax", "-o", "pid=,uid=,command=").split("\n"):
        # A command line may be empty, or contain a line feed.
        if found := re.match(r" *(\d+) +(\d+) (.*)", line):
            yield Process(int(found[1]), int(found[2]), found[3].rstrip())


def _ps(*options: str) -> str:
    """What ps prints; empty if there is no such process."""
    # In the C locale, which a service has, ps replaces the characters of a path that are not ASCII.
    locale = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
    done = subprocess.run(  # noqa: S603 - the options are constants and a pid
        ["/bin/ps", "-ww", *options], env={"LC_ALL": locale}, capture_output=True, check=False
    )
    return os.fsdecode(done.stdout)
