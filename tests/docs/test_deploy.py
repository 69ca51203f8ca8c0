"""The systemd unit, as systemd itself reads it; nothing is started."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

UNIT = ROOT / "deploy" / "brain.service"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program and a user that are on every machine: systemd looks whether they are there."""
    text = UNIT.read_text().replace("/opt/brain/.venv/bin/brain serve", "/bin/true")
    unit = tmp_path / "brain.service"
    unit.write_text(re.sub(r"^(User|Group)=brain$", r"\1=daemon", text, flags=re.MULTILINE))
    return unit


def test_systemd_understands_every_line(unit: Path) -> None:
    said = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "brain.service" not in said.stderr, said.stderr


def test_it_has_next_to_no_rights(unit: Path) -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, f"an exposure above 1.5 of 10: {said.stdout[-3000:]}{said.stderr}"
