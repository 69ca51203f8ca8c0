"""/proc (Linux) and ps (macOS) describe other processes alike."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from brain.embedded import processes
from tests.support.patience import PATIENCE, wait_until

FolderOf: TypeAlias = Callable[[int], Path | None]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


@contextlib.contextmanager
def process(name: str, *arguments: object) -> Iterator[int]:
    """The pid of a process with this command line, apart from a script that sleeps."""
    shell = subprocess.Popen(
        [name, "-c", "echo; sleep 3600; :", *map(str, arguments)],
        executable="/bin/sh",
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert shell.stdout is not None
    try:
        shell.stdout.readline()
        yield shell.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate(timeout=PATIENCE)


@pytest.fixture(params=[pytest.param("proc", marks=LINUX), "ps"])
def folder_of(request: pytest.FixtureRequest) -> FolderOf:
    found: FolderOf = getattr(processes, f"_folder_from_{request.param}")
    return found


@pytest.mark.parametrize("name", ["postgres", "a folder -c with spaces", "データ"])
def test_a_postmaster_is_known_by_its_folder(
    folder_of: FolderOf, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for arguments in (("-c", "port=1", "-c", "cluster_name=x"), ()):
        with process("/opt/my programs/postgres", "-D", folder, *arguments) as pid:
            assert folder_of(pid) == folder


@pytest.mark.parametrize(
    "command", [("/bin/sleep", "-D", "/tmp"), ("postgres: brain-1-2: checkpointer",)]
)
def test_another_process_has_no_data_folder(folder_of: FolderOf, command: tuple[str, ...]) -> None:
    with process(*command) as pid:
        assert folder_of(pid) is None


def test_a_process_that_has_ended_has_no_data_folder(folder_of: FolderOf) -> None:
    with process("/bin/postgres", "-D", "/") as pid:
        assert folder_of(pid) == Path("/")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: folder_of(pid) is None, lambda: "a zombie has no command line")
    assert folder_of(pid) is None


@pytest.mark.parametrize("way", [pytest.param("proc", marks=LINUX), "ps"])
def test_a_process_is_listed_with_its_owner_and_command_line(way: str) -> None:
    listed: Callable[[], Iterator[processes.Process]] = getattr(processes, f"_from_{way}")
    with process("postgres: brain-1-2: cecelia", "データ") as pid:
        found = next(each for each in listed() if each.pid == pid)
    assert found.uid == os.geteuid()
    assert found.command.startswith("postgres: brain-1-2: cecelia -c ")
    assert found.command.endswith(" データ")
