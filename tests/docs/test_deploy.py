"""systemd itself checks the unit; nothing is started."""

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
    """The unit with a program and a user that exist everywhere, because systemd checks that."""
    text = UNIT.read_text().replace("/opt/brain/.venv/bin/brain serve", "/bin/true")
    unit = tmp_path / "brain.service"
    unit.write_text(re.sub(r"^(User|Group)=brain$", r"\1=daemon", text, flags=re.MULTILINE))
    return unit


def test_systemd_understands_every_line(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "brain.service" not in result.stderr, result.stderr


def test_its_exposure_is_below_one_and_a_half_of_ten(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (
        f"an exposure above 1.5 of 10: {result.stdout[-3000:]}{result.stderr}"
    )
