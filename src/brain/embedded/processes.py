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
    # ps does not mark where an argument ends. Brain always starts `PATH/postgres -D FOLDER -c …`.
    command = _ps("-o", "command=", "-p", str(pid))
    found = re.match(r"/.*?/postgres -D (.+?) -c ", command)
    return Path(found[1]) if found else None


def _from_proc() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            arguments = (folder / "cmdline").read_bytes().rstrip(b"\0")
            command = os.fsdecode(arguments.replace(b"\0", b" "))
            yield Process(int(folder.name), folder.stat().st_uid, command)


def _from_ps() -> Iterator[Process]:
    for line in _ps("-ax", "-o", "pid=,uid=,command=").splitlines():
        pid, uid, command = line.split(maxsplit=2)
        yield Process(int(pid), int(uid), command)


def _ps(*options: str) -> str:
    """What ps prints; empty if there is no such process. It takes about 5 ms."""
    return subprocess.run(  # noqa: S603
        ["/bin/ps", "-ww", *options], capture_output=True, text=True, errors="replace", check=False
    ).stdout
