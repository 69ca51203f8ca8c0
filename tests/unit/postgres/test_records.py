"""The records of what clients have, rule by rule (postgres/records.py), and their file."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.contract.messages import Run
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.first_look import FirstLook
from brain.postgres.pgoutput import LSN
from brain.postgres.progress import Progress
from brain.postgres.record_file import SIZE, SLOTS, RecordFile
from brain.postgres.records import Records
from brain.postgres.snapshots import PgSnapshot
from tests.support.hints import followed, follows

T = 1_700_000_000_000_000
SECOND = 1_000_000
HERE = ("system", "timeline", "database", "table")


def at(xmin: int, xmax: int | None = None, **options: object) -> Checkpoint:
    visible = PgSnapshot(xmin, xmax or xmin + 2, frozenset({xmin}))
    given: dict[str, object] = {"flushed": LSN(1000), "epoch": "one", **options}
    return replace(Checkpoint(HERE, visible), **given)  # type: ignore[arg-type]


class Lives:
    """One process after another over one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: Records | None = None

    def __call__(self, checkpoint: Checkpoint, **options: Any) -> Records:
        """The next one, when it has opened the file."""
        self.end()
        self.last = records = Records(self.folder, **options)
        records._apart = 0
        records.open("table", checkpoint)
        return records

    def end(self) -> None:
        if self.last is not None:
            self.last.close()

    @property
    def path(self) -> Path:
        (path,) = self.folder.glob("*.records")
        return path


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path / "data" / "resume")
    yield lives
    lives.end()


def listed(records: Records) -> list[tuple[int, int]]:
    """Seconds after T, and xmin."""
    return [((record.time - T) // SECOND, record.xmin) for record in records._list]


def filled(lives: Lives, *pairs: tuple[int, int], **options: Any) -> Records:
    (time, xmin), *rest = pairs
    records = lives(at(xmin), **options)
    records.begin(T + time * SECOND, at(xmin))
    for time, xmin in rest:
        records.add(T + time * SECOND, at(xmin), T + time * SECOND)
    return records


def run(run_id: str, status: str = "completed") -> Run:
    return (run_id, status, None, None, None, None, None, None)


# 1


def test_a_record_sees_what_is_before_its_xmin(lives: Lives) -> None:
    """Also if its snapshot saw more: that may be by a subtransaction that no list names."""
    records = filled(lives, (0, 10), (1, 20), (2, 30))
    assert [records.first(xid) for xid in (9, 10, 19, 20, 29, 30, 31)] == [0, 1, 1, 2, 2, 3, 3]


# 3


def test_the_highest_time_is_there_before_anything_else(lives: Lives) -> None:
    records = lives(at(10))
    assert records.high == 0
    records.remember(T)
    assert lives(at(10)).high == T


def test_not_every_time_needs_a_write(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored one is a tenth of a second ahead."""
    records = filled(lives, (0, 10))
    writes: list[int] = []
    pwrite = os.pwrite

    def counted(fd: int, data: bytes, at: int) -> int:
        writes.append(at)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", counted)
    for each in range(1000):
        records.remember(T + each * 1000)
        assert records.high >= T + each * 1000
    assert len(writes) == 1 + 10  # the first begins a span
    records.close()
    assert lives(at(10)).high == T + 999_000


def test_the_highest_time_survives_when_the_records_do_not(lives: Lives) -> None:
    records = filled(lives, (0, 10))
    records.remember(T + 5)
    other = lives(replace(at(10), identity=("another",)))
    assert (listed(other), other.high) == ([], T + 5)


def test_the_highest_time_survives_sigkill(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from brain.postgres.record_file import RecordFile\n"
        "file = RecordFile(Path(sys.argv[1]), 'name')\nfile.high = 42\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    file = RecordFile(tmp_path, "name")
    assert file.high == 42
    file.close()


def sent(lives: Lives, *times: int) -> Records:
    """These, in seconds after T, with changes each minute between two of a pair."""
    records = filled(lives, (0, 10))
    for time in times:
        records.remember(T + time * SECOND)
    return records


YEAR = 365 * 86_400


def test_a_clock_that_was_far_ahead_does_not_hold_brain_in_the_future(lives: Lives) -> None:
    """What was sent meanwhile is refused, for ever."""
    sent(lives, 0, 60, YEAR, YEAR + 60, YEAR + 3600)
    for start in (120, 180):
        records = lives(at(30))
        with capture_logs() as logs:
            assert records.start(T + start * SECOND) == T + start * SECOND
        assert len(records) == (0 if start == 120 else 1)
        assert records.refused == ((T + YEAR * SECOND, T + (YEAR + 3600) * SECOND),)
        if start == 120:
            (line,) = logs
            assert line["detail"] == "the database's clock was 31539480 s ahead"
            assert (records.voided, records.voids) == (line["detail"], 1)
            records.begin(T + 121 * SECOND, at(30))
            records.remember(T + 121 * SECOND)
    # When the clock comes there, time skips them.
    records.remember(T + (YEAR - 1) * SECOND)
    assert records.high < T + YEAR * SECOND
    records.close()
    records = lives(at(40))
    beyond = T + (YEAR + 3600) * SECOND + 1
    assert records.start(T + (YEAR + 10) * SECOND) == beyond
    records.remember(beyond)
    records.close()
    assert lives(at(50)).start(T + (YEAR + 20) * SECOND) == beyond
    # Every `since` up to the oldest record is a gap anyway.
    records = lives(at(50))
    records.begin(beyond + SECOND, at(50))
    assert len(lives(at(60)).refused) == 0


def test_a_clock_that_was_a_little_ahead_is_waited_for(lives: Lives) -> None:
    sent(lives, 0, 299)
    assert lives(at(10)).start(T) == T + 299 * SECOND
    assert lives(at(10)).start(T + 400 * SECOND) == T + 400 * SECOND


def test_a_clock_that_went_ahead_in_small_steps_is_waited_for(lives: Lives) -> None:
    """Nobody can tell the times that were sent of the future from others."""
    sent(lives, *range(0, 3600, 60))
    assert lives(at(10)).start(T + 1800 * SECOND) == T + 3540 * SECOND
    assert len(lives(at(10))) == 1


def test_a_kill_while_brain_returns_to_the_clock_does_no_harm(lives: Lives) -> None:
    """At each write."""
    sent(lives, 0, YEAR)
    lives.end()
    whole, path = lives.path.read_bytes(), lives.path
    pwrite, kills = os.pwrite, 0
    while True:
        path.write_bytes(whole)
        records = lives(at(10))
        left = kills

        def killed(fd: int, data: bytes, at: int) -> int:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return pwrite(fd, data, at)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", killed)
            with contextlib.suppress(KeyboardInterrupt):
                records.start(T + 60 * SECOND)
        finished = left > 0
        assert records._file is not None
        records._file.close()
        records._file = None
        records = lives(at(10))
        assert records.start(T + 61 * SECOND) == T + 61 * SECOND
        assert records.refused == ((T + YEAR * SECOND, T + YEAR * SECOND),)
        assert len(records) == 0
        if finished:
            break
        kills += 1
    assert kills > 3


@follows("restart Brain: timestamps return to the clock, and clients start over")
def test_timestamps_that_are_far_ahead_of_the_clock_are_said_once(lives: Lives) -> None:
    records = sent(lives, 0, YEAR)
    assert records.warnings() == []
    with capture_logs() as logs:
        for second in (0, 1, 2, YEAR, 3):
            records.compare(T + second * SECOND)
    assert [each["event"] for each in logs] == ["clock", "clock"]
    (warning,) = records.warnings()
    assert f"is {YEAR - 3} s ahead of the database's clock" in warning["detail"]
    followed(warning["hint"])
    records = lives(at(10))
    now = records.start(T + 4 * SECOND)
    records.remember(now)
    records.compare(T + 5 * SECOND)
    assert (now, records.warnings()) == (T + 4 * SECOND, [])


# 4


def test_a_row_has_the_time_of_the_first_record_that_sees_it(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 30))
    look = FirstLook(records)
    for xid in (9, 15, 35, 20, 10):
        look.take(run(f"x{xid}"), xid)
    look.take(run("active", "running"), 9)
    look.take(run("late", "running"), 25)
    resumed = look.resumed(T + 60 * SECOND)
    assert resumed.floor_time == T
    assert [each[0] for each in resumed.unchanged] == ["active"]
    assert [((time - T) // SECOND, each[0]) for time, each in resumed.changed] == [
        (1, "x15"),
        (1, "x10"),
        (2, "x20"),
        (2, "late"),
        (60, "x35"),
    ]


def test_too_many_rows_drop_the_oldest_records(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 30), (3, 40), max_rows=8)
    look = FirstLook(records)
    for xid in (11, 12, 13, 21, 22, 23, 31, 32):
        look.take(run(f"x{xid}"), xid)
    look.take(run("active", "running"), 14)
    look.take(run("x41"), 41)
    look.take(run("x15"), 15)
    look.take(run("also active", "running"), 16)
    assert not look.failed
    resumed = look.resumed(T + 60 * SECOND)
    assert resumed.floor_time == T + 2 * SECOND
    assert [each[0] for each in resumed.unchanged] == ["active", "also active"]
    assert [each[0] for _, each in resumed.changed] == ["x31", "x32", "x41"]
    assert listed(records) == [(2, 30), (3, 40)]
    assert listed(lives(at(40))) == [(2, 30), (3, 40)]


def test_more_new_rows_than_fit_void_the_records(lives: Lives) -> None:
    look = FirstLook(filled(lives, (0, 10), (1, 20), max_rows=4))
    for xid in range(50, 60):
        look.take(run(f"x{xid}"), xid)
    assert look.failed


# 6


def test_records_outlive_the_process(lives: Lives) -> None:
    filled(lives, (0, 10), (1, 20), (2, 30))
    records = lives(at(35))
    assert listed(records) == [(0, 10), (1, 20), (2, 30)]
    assert records.detail == ""
    records.add(T + 3 * SECOND, at(40), T)
    assert listed(lives(at(40)))[-2:] == [(2, 30), (3, 40)]


def test_of_two_records_with_one_time_the_newer_counts(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (1, 30))
    assert listed(records) == listed(lives(at(30))) == [(0, 10), (1, 30)]


def test_of_two_records_with_one_xmin_the_older_counts(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 20), (3, 20))
    assert listed(records) == [(0, 10), (1, 20)]


def test_records_keep_apart(lives: Lives) -> None:
    """Between two that stay there is some time; the last one is always the newest."""
    records = filled(lives, (0, 10))
    records._apart = 10 * SECOND
    for second in range(1, 35):
        records.add(T + second * SECOND, at(10 + second), T + second * SECOND)
    assert [time for time, _ in listed(records)] == [0, 9, 18, 27, 34]
    assert listed(records)[-1] == (34, 44)


# 7


def test_the_oldest_record_is_kept_while_clients_may_hold_the_next_ones_time(lives: Lives) -> None:
    """They may hold the time of the last change, which on a quiet table is that of the next."""
    records = filled(lives, (0, 10), (1, 20), keep=100)
    for second in (500, 5000):
        records.add(T + SECOND, at(second), T + second * SECOND)
        assert listed(records) == [(0, 10), (1, second)]
    records.add(T + 6000 * SECOND, at(6000), T + 6000 * SECOND)
    assert listed(records) == [(1, 5000), (6000, 6000)]


def test_records_are_kept_for_their_time(lives: Lives) -> None:
    records = filled(lives, *((second, 10 + second) for second in range(0, 301, 10)), keep=100)
    assert listed(records)[0] == (190, 200)


def test_there_is_room_for_all_records(lives: Lives) -> None:
    records = filled(lives, *((second, 10 + second) for second in range(SLOTS + 50)), keep=1e6)
    assert len(records) == SLOTS - 1
    assert listed(lives(at(10_000))) == listed(records)
    assert lives.path.stat().st_size == SIZE


# 8


NAMES = ("system", "timeline", "database", "table", *("1 text",) * 8, None, "role")


@pytest.mark.parametrize(
    ("place", "to", "detail"),
    [
        (0, "another", "the server changed"),
        (3, "another", "the table changed"),
        (5, None, "the columns that Brain reads changed"),
        (13, "another", "the role changed"),
        (14, "2 8192 UTC [['a']]", "the version of Brain changed"),
        (14, "1 100 UTC [['a']]", "BRAIN_MAX_TEXT changed"),
        (14, "1 8192 UTC [['a', 'b']]", "BRAIN_STATUS_MAP changed"),
        (14, "1 8 CET [['a']]", "BRAIN_MAX_TEXT and BRAIN_TIMEZONE changed"),
    ],
)
def test_what_voids_the_records_is_named(
    lives: Lives, place: int, to: str | None, detail: str
) -> None:
    before = (*NAMES, "1 8192 UTC [['a']]")
    was = replace(at(10), identity=before)
    lives(was).begin(T, was)
    records = lives(replace(at(20), identity=(*before[:place], to, *before[place + 1 :])))
    assert records.voided == detail


@pytest.mark.parametrize(
    ("checkpoint", "detail"),
    [
        (replace(at(35), identity=("another", *HERE[1:])), "the server changed"),
        (replace(at(35), tree=frozenset({1})), "partitions"),
        (at(25, 27), "an older state"),
        (at(35, flushed=LSN(999)), "an older state"),
        (at(35, epoch="two"), "has crashed"),
    ],
    ids=["identity", "tree", "fewer transactions", "less log", "crash"],
)
def test_another_table_voids_the_records(lives: Lives, checkpoint: Checkpoint, detail: str) -> None:
    filled(lives, (0, 10), (1, 20), (2, 30))
    with capture_logs() as logs:
        records = lives(checkpoint)
        assert detail in records.detail
        assert detail in logs[0]["detail"]
    assert len(records) == 0
    records.begin(T, checkpoint)
    assert records.detail == ""
    assert listed(lives(checkpoint)) == [(0, checkpoint.visible.xmin)]


def test_records_older_than_32_bits_tell_do_not_count(lives: Lives) -> None:
    filled(lives, (0, 10), (1, 20), (2, 30))
    assert listed(lives(at(20 + 2**31))) == [(2, 30)]
    assert "2^31" in lives(at(30 + 2**31)).detail


def test_what_a_new_history_voids_does_not_come_back(lives: Lives) -> None:
    filled(lives, (0, 10), (1, 20)).void("another history")
    assert len(lives(at(20))) == 0


def test_a_partition_that_comes_starts_new_records(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20))
    grown = at(30, tree=frozenset({1, 2}))
    records.add(T + 2 * SECOND, grown, T)
    assert listed(records) == [(2, 30)]
    assert listed(lives(grown)) == [(2, 30)]


def test_a_correction_voids_the_records_since(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 30), (3, 40))
    records.correct(20)
    assert listed(records) == listed(lives(at(40))) == [(0, 10), (1, 20)]
    records = lives(at(40))
    records.correct(5)
    assert len(records) == 0
    records.add(T + 9 * SECOND, at(50), T)
    assert listed(records) == [(9, 50)]


# 9


@follows("set BRAIN_DATA_DIR to another folder")
def test_a_second_brain_neither_reads_nor_writes(lives: Lives) -> None:
    first = filled(lives, (0, 10), (1, 20))
    first.remember(T)
    second = Records(lives.folder)
    with capture_logs() as logs:
        for _ in range(3):
            second.open("table", at(20))
    assert [each["log_level"] for each in logs] == ["warning"]
    assert "in use by another Brain" in second.detail
    followed(logs[0]["hint"])
    with contextlib.closing(Records(lives.folder / "another")) as other:
        other.open("table", at(10))
        assert other.detail == ""
    assert (len(second), second.high) == (0, 0)
    second.begin(T, at(30))
    second.add(T, at(40), T)
    second.remember(T + 9)
    second.settle(at(40))
    assert listed(first) == listed(lives(at(20))) == [(0, 10), (1, 20)]
    assert lives(at(20)).high == T


def test_who_lacked_the_lock_begins_anew_when_it_is_free(lives: Lives) -> None:
    """As a Brain that starts while the one that it replaces still stops."""
    first = filled(lives, (0, 10), (1, 20))
    first.remember(T + 99 * SECOND)
    seconds = 0.0
    with contextlib.closing(Records(lives.folder, clock=lambda: seconds)) as second:
        second.open("table", at(20))
        second.remember(T + 1)
        second.add(T, at(25), T)
        first.close()
        second.add(T + SECOND, at(30), T + SECOND)
        assert len(second) == 0
        seconds = 1.0
        second.add(T + 2 * SECOND, at(40), T + 2 * SECOND)
        assert (listed(second), second.detail) == ([(2, 40)], "")
        assert second.high == T + 99 * SECOND
    assert listed(lives(at(40))) == [(2, 40)]
    assert lives(at(40)).high == T + 99 * SECOND


# Crashes of PostgreSQL


def progress(records: Records, checkpoint: Checkpoint) -> Progress:
    return Progress(checkpoint, records=records)


def test_a_crash_of_postgresql_voids_what_it_may_have_lost(lives: Lives) -> None:
    """What lies beyond the last mark; and everything, if a query has read rows since."""
    records = filled(lives, (0, 10), (1, 20), (2, 30), (3, 40))
    following = progress(records, at(40))
    following.settle(at(25, 27))
    crashed = at(50, 52, epoch="two")
    records = lives(crashed)
    assert listed(records) == [(0, 10), (1, 20), (2, 25)]
    assert listed(lives(crashed)) == [(0, 10), (1, 20), (2, 25)]
    progress(records := lives(crashed), crashed).read_rows()
    assert listed(lives(crashed)) == [(0, 10), (1, 20), (2, 25)]
    assert len(lives(at(60, epoch="three"))) == 0


def test_a_mark_at_a_record_leaves_that_record(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 30), (3, 40))
    progress(records, at(40)).settle(at(20))
    assert listed(lives(at(50, epoch="two"))) == [(0, 10), (1, 20)]


def test_a_crash_that_lost_transactions_before_the_mark_voids_all(lives: Lives) -> None:
    """That is no crash, but another server."""
    records = filled(lives, (0, 10), (1, 20))
    progress(records, at(20)).settle(at(20, 30))
    assert len(lives(at(20, 29, epoch="two"))) == 0


def test_a_crash_while_brain_lives_takes_it_back_to_the_mark(lives: Lives) -> None:
    records = filled(lives, (0, 10), (1, 20), (2, 30))
    following = progress(records, at(30))
    following.settle(at(20))
    following.notice("one")
    assert following.checkpoint == at(30)
    following.notice("two")
    assert following.checkpoint == at(20, epoch="two")
    assert listed(records) == [(0, 10), (1, 20)]
    assert listed(lives(at(40, epoch="two"))) == [(0, 10), (1, 20)]


def test_a_crash_after_rows_were_read_is_a_new_history(lives: Lives) -> None:
    following = progress(filled(lives, (0, 10), (1, 20)), at(20))
    following.settle(at(20))
    following.read_rows()
    following.notice("two")
    assert following.checkpoint == at(20)
    assert following.checkpoint.voided_by(HERE, PgSnapshot(30, 30, frozenset()), LSN(2000), "two")


def test_while_polling_a_mark_is_passed_when_the_log_is_flushed(lives: Lives) -> None:
    following = progress(filled(lives, (0, 10)), at(10))
    found: list[Checkpoint | None] = []

    def flushed(position: int, inserted: int) -> None:
        following.flushed(LSN(position), LSN(inserted))
        found.append(following.durable)

    flushed(100, 200)
    following.checkpoint = at(20)  # a poll without rows
    flushed(199, 300)
    flushed(200, 300)
    flushed(300, 300)
    following.read_rows()
    flushed(300, 300)
    flushed(0, 0)  # a read replica
    assert found == [None, None, at(10), at(20), None, None]


# The file


@follows("set BRAIN_DATA_DIR to a folder that Brain may write")
def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    records = Records(tmp_path / "file" / "resume")
    with capture_logs() as logs:
        records.open("table", at(10))
        records.open("table", at(10))
    assert len(logs) == 1
    assert "cannot be written" in records.detail
    followed(logs[0]["hint"])
    with contextlib.closing(Records(tmp_path / "resume")) as other:
        other.open("table", at(10))
        assert other.detail == ""
    records.begin(T, at(10))
    records.add(T, at(20), T)
    records.remember(T)
    records.settle(None)
    records.crashed(at(10))
    records.void("")
    records.correct(0)
    records.close()
    assert len(records) == 0


def test_without_a_folder_nothing_is_said(tmp_path: Path) -> None:
    records = Records()
    with capture_logs() as logs:
        records.open("table", at(10))
        records.unavailable("a view has no xmin")
    assert not logs
    assert records.detail == "BRAIN_RESUME is 0"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"brain records 1", b"brain records 2"),
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda _: b"text",
        lambda data: data[:64] + bytes(40) + data[104:],
    ],
    ids=["another version", "shorter", "longer", "another file", "a torn header"],
)
def test_a_file_that_brain_cannot_read_is_ignored(
    lives: Lives, change: Callable[[bytes], bytes]
) -> None:
    filled(lives, (0, 10), (1, 20))
    lives.end()
    lives.path.write_bytes(change(lives.path.read_bytes()))
    records = lives(at(30))
    assert len(records) == 0
    records.begin(T, at(30))
    assert listed(lives(at(30))) == [(0, 30)]


@pytest.mark.parametrize("high", [2**63 - 1, 253_402_300_799_999_999, -1, -(2**63)])
def test_a_time_that_no_message_can_have_is_no_time_of_before(lives: Lives, high: int) -> None:
    """Brain would end with an error at each start, until somebody removes the file."""
    filled(lives, (0, 10), (1, 20))
    lives.end()
    data = lives.path.read_bytes()
    lives.path.write_bytes(data[:16] + high.to_bytes(8, sys.byteorder, signed=True) + data[24:])
    with capture_logs() as logs:
        records = lives(at(30))
    assert len(records) == records.high == 0
    assert "is damaged" in logs[0]["detail"]
    records.begin(T, at(30))
    assert listed(lives(at(30))) == [(0, 30)]


def test_a_torn_record_is_ignored(lives: Lives) -> None:
    """Each byte of each record, one after another."""
    filled(lives, (0, 10), (1, 20), (2, 30))
    lives.end()
    whole = lives.path.read_bytes()
    for byte in range(256, 256 + 3 * 40):
        if (byte - 256) % 40 >= 36:
            continue  # padding
        torn = bytearray(whole)
        torn[byte] ^= 0x10
        lives.path.write_bytes(torn)
        records = lives(at(30))
        place = (byte - 256) // 40
        assert [xmin for _, xmin in listed(records)] == [
            xmin for i, xmin in enumerate((10, 20, 30)) if i != place
        ]
        lives.end()
