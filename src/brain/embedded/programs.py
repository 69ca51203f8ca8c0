"""Programs of the PostgreSQL wheel: start one, wait for one, read what it printed."""

import asyncio
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from brain.contract.errors import BrainError

ALTERNATIVE = "or set BRAIN_DATABASE_URL to a PostgreSQL of your own"
"""How the hint of each EmbeddedError ends."""

RUN_SECONDS = 120.0
"""Deadline of `run`: initdb takes 1 s on a quiet machine."""


class EmbeddedError(BrainError):
    """The embedded PostgreSQL is not available. The text gives the cause and what to do."""


def spawn(
    arguments: list[str],
    account: pwd.struct_passwd | None,
    output: IO[bytes],
    stdin: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, as `account` (None: as this process)."""
    # Without the caller's PG* variables, which PostgreSQL would obey, and without its secrets.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(  # noqa: S603 - programs of the wheel
        arguments,
        stdin=stdin or subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env={**kept, "LC_ALL": "C"},
        umask=0o077,
        start_new_session=True,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )


async def run(arguments: list[str], account: pwd.struct_passwd | None, text: str = "") -> None:
    """Run a program to its end, with `text` as standard input. Raises EmbeddedError if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        process = spawn(arguments, account, output, stdin)
        try:
            ended = await until(lambda: process.poll() is not None, RUN_SECONDS)
        finally:  # also on cancellation: the children of initdb are in its session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not ended or process.returncode:
            name = Path(arguments[0]).name
            detail = "failed" if ended else f"did not finish within {RUN_SECONDS:.0f} s"
            raise EmbeddedError(f"{name} {detail} ({last_lines(output)}): fix that, {ALTERNATIVE}.")


def last_lines(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-5:])


async def until(condition: Callable[[], bool], seconds: float, every: float = 0.02) -> bool:
    """Wait for the condition; False after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every)
    return True
