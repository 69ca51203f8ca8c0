"""Tests in forks (tests/support/forks.py) end as they do in one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.patience import PATIENCE

CONFTEST = """
import os
import pytest
from tests.support import forks

def pytest_addoption(parser):
    forks.add_option(parser)

@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    return forks.run(session) or None

@pytest.fixture(scope="session")
def once(tmp_path_factory):
    yield os.getpid()
    print("left", os.getpid())
"""

pytestmark = pytest.mark.long

FEW = [f"-pno:{name}" for name in ("anyio", "asyncio", "hypothesispytest", "schemathesis", "xdist")]
"""Plugins that these tests do not need."""

MODULES = {
    "test_ends.py": """
import os, sys
import pytest

def test_fails(): print("said"); assert 1 == 2
def test_is_skipped(): pytest.skip("why")
@pytest.mark.parametrize("number", range(50))
def test_passes(number, tmp_path): assert tmp_path.is_dir()
""",
    **{
        f"test_shares_{name}.py": """
import os

def test_one(once): assert once == os.getpid()
def test_two(once): assert once == os.getpid()
"""
        for name in "abc"
    },
}


def outcome(folder: Path, *options: str) -> tuple[int, str]:
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *FEW, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_all_tests_run_and_are_reported_once(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, "--forks", "3", "-ra")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^=+ 1 failed, 56 passed, 1 skipped in ", output, re.MULTILINE), output
    assert "FAILED test_ends.py::test_fails - assert 1 == 2" in output
    assert re.search(r"Captured stdout call -+\nsaid\n", output)
    assert "SKIPPED [1] test_ends.py:6: why" in output


def test_a_worker_that_dies_fails_the_test_that_it_ran(tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text("import os\ndef test_dies(): os.kill(os.getpid(), 9)\n")
    status, output = outcome(tmp_path, "--forks", "2")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "FAILED test_dies.py::test_dies" in output
    assert "the worker ended with -9" in output
    assert re.search(r"^=+ 2 failed, 56 passed, 1 skipped in ", output, re.MULTILINE), output


def test_after_maxfail_the_workers_stop(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, "--forks", "1", "-x")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^=+ 1 failed in ", output, re.MULTILINE), output
