"""The file of records, and what others do to it while Brain uses it."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.postgres.record_file import SIZE, RecordFile
from brain.postgres.records import Records
from tests.support.hints import followed, follows
from tests.unit.postgres.test_records import SECOND, Lives, T, at, filled, listed


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path / "data" / "resume")
    yield lives
    lives.end()


def truncated(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, 100)


def overwritten(path: Path) -> None:
    path.write_bytes(b"x" * SIZE)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def removed(path: Path) -> None:
    path.unlink()


def removed_with_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replaced(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes()[:200])
    copy.rename(path)


OTHERS = [truncated, cut, overwritten, appended, removed, removed_with_the_folder, replaced]


@pytest.mark.parametrize("harm", OTHERS, ids=lambda harm: harm.__name__)
def test_what_others_do_to_the_file_is_undone(lives: Lives, harm: Callable[[Path], None]) -> None:
    """And said once. What Brain has recorded before is not lost."""
    seconds = 0.0
    records = filled(lives, (0, 10), (1, 20), clock=lambda: seconds)
    records.remember(T + SECOND)
    path = lives.path
    harm(path)
    records.remember(T + 2 * SECOND)  # a store into a mapped file would be a SIGBUS
    records.settle(at(20))
    with capture_logs() as logs:
        for second in (2, 3):
            seconds += 1
            records.add(T + second * SECOND, at(10 * second + 10), T)
    assert [each["event"] for each in logs] == ["the records are written again"]
    assert str(path) in logs[0]["detail"]
    records.close()
    found = lives(at(40))
    assert listed(found) == [(0, 10), (1, 20), (2, 30), (3, 40)]
    assert (found.high, found.voids) == (T + 2 * SECOND, 0)


def test_a_truncated_file_does_not_end_the_process(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from brain.postgres.record_file import RecordFile\n"
        "file = RecordFile(Path(sys.argv[1]), 'name')\nos.truncate(file.path, 0)\n"
        "file.high = 42\nfile.clear()\nassert file.repair()\nassert not file.repair()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == 0, signal.Signals(-done.returncode)


def test_a_file_that_another_brain_made_instead_is_left_to_it(lives: Lives) -> None:
    seconds = 0.0
    with contextlib.closing(Records(lives.folder, clock=lambda: seconds)) as records:
        records.open("table", at(10))
        records.begin(T, at(10))
        lives.path.unlink()
        other = lives(at(30))
        other.begin(T, at(30))
        seconds = 1.0
        records.add(T + SECOND, at(40), T)
        assert "in use by another Brain" in records.detail
        assert len(records) == 0
        assert listed(lives(at(30))) == [(0, 30)]


# Errors of the disk. `fail` makes each write fail from now on, as a full disk does.


def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def fail(number: int) -> None:
        def pwrite(*_: Any) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pwrite", pwrite)

    return fail


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return failing(monkeypatch)


def change(records: Records, what: str) -> None:
    match what:
        case "remember":
            records.remember(T + 9 * SECOND)
        case "add":
            records.add(T + 9 * SECOND, at(90), T + 9 * SECOND)
        case "begin":
            records.begin(T, at(90))
        case "void":
            records.void("another history")
        case "correct":
            records.correct(10)
        case "settle":
            records.settle(at(20))
        case "drop_before":
            records.drop_before(1)
        case "crashed":
            records.crashed(at(50, epoch="two"))
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(
    "what", ["remember", "add", "begin", "void", "correct", "settle", "drop_before", "crashed"]
)
def test_a_file_that_can_no_longer_be_written_is_emptied(
    lives: Lives, fail: Callable[[int], None], what: str, number: int, monkeypatch: Any
) -> None:
    """What it says of times and of crashes would be wrong. Brain works on, and says it once."""
    pwrite = os.pwrite
    seconds = 0.0
    records = filled(lives, (0, 10), (1, 20), clock=lambda: seconds)
    records.remember(T)
    path = lives.path
    fail(number)
    with capture_logs() as logs:
        change(records, what)
        for each in ("remember", "add", "begin", "void", "correct", "settle", "drop_before"):
            seconds += 1
            change(records, each)
    assert [each["event"] for each in logs] == ["no resume over restarts"]
    assert os.strerror(number) in records.detail
    assert len(records) == records.high == 0
    assert path.stat().st_size == 0
    monkeypatch.setattr(os, "pwrite", pwrite)
    seconds += 1
    records.add(T + 10 * SECOND, at(100), T)
    assert (listed(records), records.detail) == ([(10, 100)], "")
    assert records.high >= T + 9 * SECOND
    records.close()
    found = lives(at(100))
    assert listed(found) == [(10, 100)]
    assert found.high == T + 9 * SECOND


def test_a_folder_that_becomes_read_only_does_no_harm(lives: Lives) -> None:
    """The file is open."""
    records = lives(at(10))
    records.begin(T, at(10))
    lives.folder.chmod(0o555)
    try:
        records.add(T + SECOND, at(20), T)
        assert records.detail == ""
        records.close()
        assert listed(lives(at(20))) == [(0, 10), (1, 20)]
    finally:
        lives.folder.chmod(0o755)


@follows("set BRAIN_DATA_DIR to a folder on a local disk")
def test_a_folder_without_locks_has_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS has none where no lock daemon runs."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    records = Records(tmp_path / "nfs")
    with capture_logs() as logs:
        records.open("table", at(10))
    assert "cannot be locked: No locks available" in records.detail
    followed(logs[0]["hint"])
    monkeypatch.undo()
    with contextlib.closing(Records(tmp_path / "disk")) as other:
        other.open("table", at(10))
        assert other.detail == ""


@pytest.mark.parametrize("byte", range(64, 116))
def test_a_torn_header_is_said_and_counted(lives: Lives, byte: int) -> None:
    records = lives(at(10))
    records.begin(T, at(10))
    lives.end()
    torn = bytearray(lives.path.read_bytes())
    torn[byte] ^= 0x10
    lives.path.write_bytes(torn)
    with capture_logs() as logs:
        records = lives(at(30))
    assert len(records) == 0
    assert [each["event"] for each in logs] == ["clients from before start over"]
    assert "is torn" in logs[0]["detail"]
    assert (records.voids, records.voided) == (1, logs[0]["detail"])
    records.begin(T, at(30))
    assert records.voided == logs[0]["detail"]  # for /readyz
    assert listed(lives(at(30))) == [(0, 30)]


def test_a_kill_while_new_records_begin_is_said(lives: Lives) -> None:
    records = lives(at(10))
    records.begin(T, at(10))
    assert records._file is not None
    records._file.header = None
    records.close()
    assert "is torn" in lives(at(30)).voided


def test_a_torn_span_is_one_of_all_times(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, "name")
    numbers = list(range(11))
    file.spans = numbers
    assert file.spans == numbers
    file.close()
    data = bytearray(file.path.read_bytes())
    data[170] ^= 1
    file.path.write_bytes(data)
    torn = RecordFile(tmp_path, "name")
    assert torn.spans is None
    torn.close()


def test_tables_have_files_of_their_own(tmp_path: Path) -> None:
    one, two = RecordFile(tmp_path, ("system", "a")), RecordFile(tmp_path, ("system", "b"))
    assert one.path != two.path
    one.close()
    two.close()


def test_the_file_is_no_link(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, "name")
    file.close()
    target = tmp_path / "target"
    file.path.rename(target)
    file.path.symlink_to(target)
    before = target.read_bytes()
    records = Records(tmp_path)
    records.open("name", at(10))
    assert "cannot be written" in records.detail
    assert target.read_bytes() == before


def test_the_file_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(tmp_path, 12345, 12345)
    file = RecordFile(tmp_path / "resume", "name")
    file.close()
    assert file.path.stat().st_uid == file.path.parent.stat().st_uid == 12345
