"""/proc (Linux) and ps (macOS) say the same about other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brain.embedded import processes

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not Path("/bin/ps").exists(), reason="compares /proc with ps(1)"
)


def test_both_list_a_process_with_its_owner_and_command_line() -> None:
    command = ["/opt/my programs/postgres", "-c", "read line; :", "-D", "/srv/data"]
    with subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        wanted = processes.Process(process.pid, os.geteuid(), " ".join(command))
        assert wanted in list(processes._from_proc())
        assert wanted in list(processes._from_ps())


def test_another_program_has_no_data_folder() -> None:
    assert processes._folder_from_proc(os.getpid()) is None
    assert processes._folder_from_ps(os.getpid()) is None


def test_a_process_that_has_ended_has_no_data_folder() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    assert processes._folder_from_proc(process.pid) is None
    assert processes._folder_from_ps(process.pid) is None
