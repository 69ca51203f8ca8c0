"""systemd itself checks the unit. It does not start it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.hints import followed, follows
from tests.support.patience import PATIENCE
from tests.support.served import BRAIN, served

UNIT = ROOT / "deploy" / "brain.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program and a user that exist everywhere, because systemd checks that."""
    text = UNIT.read_text().replace("/opt/brain/.venv/bin/brain serve", "/bin/true")
    unit = tmp_path / "brain.service"
    unit.write_text(re.sub(r"^(User|Group)=brain$", r"\1=daemon", text, flags=re.MULTILINE))
    return unit


@needs_systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "brain.service" not in result.stderr, result.stderr


@needs_systemd
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


@follows("no database is configured, and BRAIN_EMBEDDED=false forbids the embedded PostgreSQL")
def test_a_service_without_a_database_refuses_to_start(tmp_path: Path, database: str) -> None:
    """With what the unit sets, and without BRAIN_DATABASE_URL. With it, it starts."""
    (line,) = re.findall(r"^Environment=(.*)$", UNIT.read_text(), re.MULTILINE)
    given = dict(each.split("=", 1) for each in line.split()) | {"BRAIN_DATA_DIR": str(tmp_path)}
    result = subprocess.run(
        [*BRAIN, "serve"],
        env={"PATH": os.environ["PATH"], "BRAIN_PORT": "0"} | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert result.returncode == 2
    assert "no database is configured" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [], "no database was made"
    followed(result.stderr.strip())
    with served(database_url=database, embedded=given["BRAIN_EMBEDDED"]):
        pass
    # The settings must be there, and the installation has no PostgreSQL to start.
    assert re.findall(r"^EnvironmentFile=(.*)$", UNIT.read_text(), re.MULTILINE) == [
        "/etc/brain.env"
    ]
    steps = (ROOT / "docs" / "how-to" / "operations.md").read_text()
    assert "-r requirements-server.lock" in steps
    assert "pgserver" not in (ROOT / "requirements-server.lock").read_text()
