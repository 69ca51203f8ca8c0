"""client.js follows the same tables of cases as the client for Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.unit.client.cases import cases

STATIC = ROOT / "src" / "brain" / "page" / "static"


@pytest.mark.skipif(
    shutil.which("node") is None and not os.environ.get("CI"), reason="Node is not installed"
)
def test_javascript_plays_the_tables_that_python_plays() -> None:
    run = subprocess.run(
        ["node", Path(__file__).parent / "cases.mjs", STATIC],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    played = [*cases("clock.json").values(), *cases("freshness.json").values()]
    assert run.stdout == f"{sum(map(len, played))} steps\n"
