"""The `brain` on the PATH of a test's shell is the script: what it prints, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import script
from tests.support.patience import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get("BRAIN_TEST_PREFORK") == "0",
    reason="every command is started without a fork",
)

WAITING = ("wait", "run", "--url", "127.0.0.1:1")
"""Waits for a server until it gets a signal."""


def shell(folder: Path, line: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-c", line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "line",
    [
        "brain --help",
        "brain serve; echo $?",
        "exec brain serve",
        "echo 'SELECT 1' | brain psql | head -n 1",
        "cd / && brain wait 'a b' '' --timeout 0.1 2>&1 | sed 's/^/said: /'",
    ],
)
def test_it_prints_what_the_script_prints_and_ends_as_it_does(line: str) -> None:
    ends = []
    for folder in (script.folder(), script.REAL.parent):
        with shell(folder, line, BRAIN_PORT="nonsense", BRAIN_URL="127.0.0.1:1") as process:
            ends.append((*process.communicate(timeout=PATIENCE), process.returncode))
    assert ends[0] == ends[1]
    assert any(ends[0][:2])


def commands() -> list[psutil.Process]:
    """Those that wait, without the scripts."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie: it ends just now
            if "tests.support.prefork" in each.cmdline() and each.parent() == psutil.Process():
                found.append(each)
    return found


@contextlib.contextmanager
def waiting() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A shell whose `brain` waits, and the process of that command."""
    before = set(commands())  # one of the test before may be ending
    with shell(script.folder(), f"exec brain {' '.join(WAITING)}") as process:
        try:
            assert process.stderr
            assert "127.0.0.1:1" in process.stderr.readline()
            (command,) = set(commands()) - before
            yield process, command
        finally:
            process.kill()


def test_ctrl_c_in_the_shell_ends_both() -> None:
    with waiting() as (process, command):
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        wait_until(lambda: command not in commands())


def test_the_command_ends_when_the_script_is_killed() -> None:
    with waiting() as (process, command):
        process.kill()
        wait_until(lambda: command not in commands())


def test_it_ends_by_the_signal_that_ends_the_command() -> None:
    with waiting() as (process, command):
        command.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
