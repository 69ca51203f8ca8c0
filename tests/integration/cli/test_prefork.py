"""A forked `brain` is the command: the same output, exit status, signals and streams."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE, wait_until
from tests.support.served import BRAIN

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get("BRAIN_TEST_PREFORK") == "0",
    reason="every command is started without a fork",
)

ANEW = ["/usr/bin/env", *BRAIN]
"""The same command through another program, and so not forked."""


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def forked(process: subprocess.Popen[str]) -> bool:
    return "tests.support.prefork" in command_line(process.pid)


def start(*command: str, **options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | options,
    )


WAITING = ("wait", "run", "--url", "127.0.0.1:1")
"""Waits for a server until it gets a signal."""


def test_only_the_exact_command_is_forked() -> None:
    for command, expected in ((BRAIN, True), (ANEW, False)):
        with start(*command, *WAITING) as process:
            assert process.stderr
            process.stderr.readline()
            assert forked(process) == expected
            process.kill()


@pytest.mark.parametrize(
    "variables", [{"PYTHONWARNINGS": "error"}, {"LC_ALL": "xx_XX"}, {"PYTHONPATH": "/nowhere"}]
)
def test_an_environment_that_python_reads_at_its_start_is_not_forked(
    variables: dict[str, str],
) -> None:
    with start(*BRAIN, *WAITING, **variables) as process:
        assert process.stderr
        process.stderr.readline()
        assert not forked(process)
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--help"], {}),
        (["serve"], {"BRAIN_PORT": "nonsense"}),
        (["wait", "代理", "--timeout", "1", "--url", "127.0.0.1:1"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_output_and_exit_status_are_those_of_the_command(
    arguments: list[str], variables: dict[str, str], tmp_path: Path
) -> None:
    ends = [
        subprocess.run(
            [*command, *arguments],
            capture_output=True,
            env=os.environ | variables,
            cwd=tmp_path,
            timeout=PATIENCE,
            check=False,
        )
        for command in (BRAIN, ANEW)
    ]
    assert ends[0].returncode == ends[1].returncode
    assert ends[0].stdout == ends[1].stdout
    assert ends[0].stderr == ends[1].stderr
    assert ends[0].stdout or ends[0].stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_it_with_the_usual_status(number: signal.Signals, status: int) -> None:
    with start(*BRAIN, *WAITING) as process:
        assert process.stderr
        assert "127.0.0.1:1" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(PATIENCE) == status


def test_it_is_a_child_of_the_test_and_of_nobody_else() -> None:
    with start(*BRAIN, *WAITING) as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" in status
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: not Path(f"/proc/{process.pid}").exists())


def files(pid: int) -> set[str]:
    """The pipes and sockets that a process has open."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(str(each.readlink()))
    return {name for name in found if name.startswith(("pipe:", "socket:"))}


def test_it_has_only_the_three_streams_and_those_that_it_opens() -> None:
    """An inherited socket would keep a connection open that the test has closed."""
    with start(*BRAIN, *WAITING) as process:
        assert process.stderr
        process.stderr.readline()
        shared = files(process.pid) & files(os.getpid())
        process.kill()
        assert len(shared) == 3, shared


def test_it_has_its_own_session_if_that_is_wanted() -> None:
    for own in (True, False):
        process = subprocess.Popen(
            [*BRAIN, *WAITING], stderr=subprocess.PIPE, start_new_session=own
        )
        assert (os.getsid(process.pid) == process.pid) == own
        process.kill()
        process.communicate()


async def test_asyncio_starts_it_too() -> None:
    process = await asyncio.create_subprocess_exec(*BRAIN, "version", stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert (process.returncode, output[:2]) == (0, b"0.")
