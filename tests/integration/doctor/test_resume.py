"""What the doctor says of the records: whether clients resume over the next restart."""

import os
from pathlib import Path

import pytest

from brain.doctor.checks import examine
from brain.doctor.report import Finding
from brain.postgres.decoder import Decoder
from brain.postgres.table import Table
from tests.integration.postgres.test_resuming import files, recorded
from tests.support.hints import followed, follows
from tests.support.postgres import execute


async def found(url: str, folder: Path | None, max_text: int = 2_000_000) -> list[Finding]:
    report = await examine(
        url, Table("public", "runs"), Decoder({}, max_text), stream=False, records=folder
    )
    return [finding for finding in report.findings if finding.check == "resume"]


async def record(url: str, folder: Path) -> Path:
    """Let a Brain make records. Returns their file."""
    async with recorded(url, folder) as f:
        await f.sql("INSERT INTO runs VALUES ('a', 'running')")
        await f.pushed("a", "running")
        assert await found(url, folder) == [], "while it runs, too"
    (path,) = files(folder)
    return path


async def test_records_that_count_are_no_finding(any_database: str, tmp_path: Path) -> None:
    assert await found(any_database, None) == []
    assert await found(any_database, tmp_path / "missing" / "resume") == []
    assert files(tmp_path) == [], "the doctor changes nothing"
    path = await record(any_database, tmp_path)
    before = path.read_bytes()
    assert await found(any_database, tmp_path) == []
    assert path.read_bytes() == before


async def test_what_makes_clients_start_over_is_found_before(database: str, tmp_path: Path) -> None:
    path = await record(database, tmp_path)
    (finding,) = await found(database, tmp_path, max_text=100)
    assert (finding.level, finding.what) == ("note", "BRAIN_MAX_TEXT changed")
    assert "start over" in finding.detail
    execute(database, "ALTER TABLE runs ALTER agent TYPE varchar(9)")
    (finding,) = await found(database, tmp_path)
    assert finding.what == "the columns that Brain reads changed"
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + b"\xff" + whole[71:])
    (finding,) = await found(database, tmp_path)
    assert finding.what == f"the header of {path} is torn"
    path.write_bytes(b"something else")
    (finding,) = await found(database, tmp_path)
    assert finding.what == f"{path} was not written by this version of Brain"


@follows("GRANT EXECUTE ON FUNCTION pg_control_system() TO {};")
async def test_a_server_that_is_not_identified_has_no_records(
    database: str, superuser_url: str, tmp_path: Path
) -> None:
    execute(superuser_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    (finding,) = await found(database, tmp_path)
    assert "pg_control_system" in finding.what
    execute(superuser_url, followed(finding.hint))
    assert await found(database, tmp_path) == []


@follows("set BRAIN_DATA_DIR to a folder that Brain may write")
async def test_a_folder_that_cannot_be_written(database: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = await found(database, tmp_path / "file" / "resume")
    assert (finding.level, "cannot be written" in finding.what) == ("better", True)
    followed(finding.hint)
    assert await found(database, tmp_path / "another") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_of_somebody_else(database: str, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o555)  # noqa: PTH101
    (finding,) = await found(database, tmp_path / "resume")
    assert finding.level == "better"
