"""Each rule of the records (postgres/records.py) has a test that fails without it."""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from brain.delivery import board
from brain.postgres import checkpoints, first_look, progress, record_file, records, sent_times, void
from tests.unit.delivery import test_board
from tests.unit.delivery.mutants import variant
from tests.unit.postgres import test_record_file, test_records, test_sent_times
from tests.unit.postgres.test_records import Lives

pytestmark = pytest.mark.usefixtures("unmeasured")


class Mutant(NamedTuple):
    module: ModuleType
    old: str
    new: str
    test: str
    name: str
    """Of the class that is replaced."""


MUTANTS = {
    "1 xmin": Mutant(
        records,
        "key=lambda record: record.xmin",
        "key=lambda record: record.xmax",
        "test_a_record_sees_what_is_before_its_xmin",
        "Records",
    ),
    "2 the last change": Mutant(
        board,
        "self.last_time = max(self.last_time, self.log.times[-1])",
        "self.last_time = self.time",
        "test_the_last_time_is_that_of_the_newest_change",
        "Board",
    ),
    "3 stored": Mutant(
        record_file,
        "self._store(_HIGH_AT, _NUMBER.pack(time))",
        "pass",
        "test_the_highest_time_is_there_before_anything_else",
        "RecordFile",
    ),
    "3 before it is sent": Mutant(
        board,
        "else self._allowed(self.floor_time + 1)",
        "else self.floor_time",
        "test_every_time_is_remembered_before_it_is_sent",
        "Board",
    ),
    "3 where the next one starts": Mutant(
        board,
        "self.time = self._allowed(event.at + 1)\n        self.begun",
        "self.begun",
        "test_time_goes_on_where_it_ended_before_the_restart",
        "Board",
    ),
    "4 the first that sees it": Mutant(
        first_look,
        "records.time(place, at)",
        "records.time(place + 1, at)",
        "test_a_row_has_the_time_of_the_first_record_that_sees_it",
        "FirstLook",
    ),
    "4 what even the oldest sees": Mutant(
        board,
        "self.time = self._allowed(event.floor_time + 1)",
        "self.time = event.floor_time",
        "test_resumed_runs_have_the_times_of_before",
        "Board",
    ),
    "4 a bound": Mutant(
        first_look,
        "self._base = places[half]",
        "pass",
        "test_too_many_rows_drop_the_oldest_records",
        "FirstLook",
    ),
    "5": Mutant(
        board,
        "self._put(run, 0, None, ANYTHING)",
        "self._put(run, 0, None, FINISHED)",
        "test_resumed_runs_may_have_been_anything",
        "Board",
    ),
    "6 one time": Mutant(
        records,
        "time == last.time or",
        "",
        "test_of_two_records_with_one_time_the_newer_counts",
        "Records",
    ),
    "6 one xmin": Mutant(
        records,
        "if record.xmin > last.xmin:",
        "if True:",
        "test_of_two_records_with_one_xmin_the_older_counts",
        "Records",
    ),
    "7": Mutant(
        records,
        "self._list[1].time < time and (",
        "(",
        "test_the_oldest_record_is_kept_while_clients_may_hold_the_next_ones_time",
        "Records",
    ),
    "8 corrections": Mutant(
        records,
        "while self._list and self._list[-1].xmin > xmin:",
        "while False:",
        "test_a_correction_voids_the_records_since",
        "Records",
    ),
    "8 new histories": Mutant(
        records,
        "self._file.clear()\n            self._set([])\n            self.detail = self.voided",
        "self._set([])\n            self.detail = self.voided",
        "test_what_a_new_history_voids_does_not_come_back",
        "Records",
    ),
    "8 partitions": Mutant(
        records,
        "not self._list or _dependencies(checkpoint) != self._counts_for",
        "not self._list",
        "test_a_partition_that_comes_starts_new_records",
        "Records",
    ),
    "9": Mutant(
        record_file,
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_a_second_brain_neither_reads_nor_writes",
        "RecordFile",
    ),
    "3 a tenth of a second ahead": Mutant(
        records,
        "before_refused(time, time + AHEAD)",
        "before_refused(time, time - AHEAD)",
        "test_not_every_time_needs_a_write",
        "Records",
    ),
    "3 of another Brain too": Mutant(
        records,
        "max(self._time, self._found)",
        "self._time",
        "test_who_lacked_the_lock_begins_anew_when_it_is_free",
        "Records",
    ),
    "a clock that was far ahead": Mutant(
        records,
        "if high - now <= MAX_LEAD:",
        "if True:",
        "test_a_clock_that_was_far_ahead_does_not_hold_brain_in_the_future",
        "Records",
    ),
    "a clock that was far ahead: its times are refused": Mutant(
        sent_times,
        "Span(ahead[0].first, ahead[-1].last)",
        "Span(high, high)",
        "test_a_clock_that_was_far_ahead_does_not_hold_brain_in_the_future",
        "SentTimes",
    ),
    "a clock that was far ahead: in small steps": Mutant(
        sent_times,
        "if not ahead or ahead[0].first <= now:",
        "if not ahead:",
        "test_a_clock_that_went_ahead_in_small_steps_is_waited_for",
        "SentTimes",
    ),
    "a clock that was far ahead: time skips what is refused": Mutant(
        board,
        "self._allowed(max(self.time, at, self.floor_time + 1))",
        "max(self.time, at, self.floor_time + 1)",
        "test_time_skips_what_is_refused_and_a_since_there_is_a_gap[0]",
        "Board",
    ),
    "a clock that was far ahead: a since there is a gap": Mutant(
        board,
        "or self._allowed(time) != time",
        "",
        "test_time_skips_what_is_refused_and_a_since_there_is_a_gap[0]",
        "Board",
    ),
    "8 the identity": Mutant(
        void,
        "if found.identity != wanted.identity:",
        "if False:",
        "test_another_table_voids_the_records[0]",
        "why_void",
    ),
    "8 the tree": Mutant(
        void,
        "if found.tree != wanted.tree:",
        "if False:",
        "test_another_table_voids_the_records[1]",
        "why_void",
    ),
    "8 xmax went back": Mutant(
        void,
        "behind = found.epoch == wanted.epoch and checkpoint.visible.xmax < records[-1].xmax",
        "behind = False",
        "test_another_table_voids_the_records[2]",
        "why_void",
    ),
    "8 the log went back": Mutant(
        void,
        "0 < checkpoint.flushed < max((record.flushed for record in records))",
        "False",
        "test_another_table_voids_the_records[3]",
        "why_void",
    ),
    "8 2^31": Mutant(
        records,
        "checkpoint.visible.xmax - self.oldest.xmin >= 2 ** 31",
        "False",
        "test_records_older_than_32_bits_tell_do_not_count",
        "Records",
    ),
    "8 a torn header": Mutant(
        void,
        "return f'the header of {file.path} is torn'",
        "return ''",
        "test_a_torn_header_is_said_and_counted[70]",
        "why_void",
    ),
    "9 what others do": Mutant(
        records,
        "elif (done := self._file.repair()):",
        "elif (done := ''):",
        "test_what_others_do_to_the_file_is_undone[0]",
        "Records",
    ),
    "9 a file that cannot be written": Mutant(
        records,
        "self._file.abandon()",
        "self._file.close()",
        "test_a_file_that_can_no_longer_be_written_is_emptied[remember-28]",
        "Records",
    ),
    "10": Mutant(
        board,
        "time <= floor or",
        "time <= floor or time > self.time or",
        "test_since_at_its_boundaries",
        "Board",
    ),
    "P1 the epoch": Mutant(
        records,
        "found.epoch != wanted.epoch",
        "False",
        "test_another_table_voids_the_records[4]",
        "Records",
    ),
    "P1 while Brain lives": Mutant(
        progress,
        "self.checkpoint.epoch == epoch",
        "True",
        "test_a_crash_while_brain_lives_takes_it_back_to_the_mark",
        "Progress",
    ),
    "P1 a new history": Mutant(
        checkpoints,
        "or epoch != self.epoch",
        "",
        "test_a_crash_after_rows_were_read_is_a_new_history",
        "Checkpoint",
    ),
    "P2 not without a mark": Mutant(
        records,
        "if durable is None or checkpoint.visible.xmax < durable[1]:",
        "if durable is None:",
        "test_a_crash_that_lost_transactions_before_the_mark_voids_all",
        "Records",
    ),
    "P2 a mark is flushed": Mutant(
        progress,
        "self.mark[0] <= flushed",
        "True",
        "test_while_polling_a_mark_is_passed_when_the_log_is_flushed",
        "Progress",
    ),
    "a crash: what was read": Mutant(
        progress,
        "self.records.settle(None)",
        "pass",
        "test_a_crash_of_postgresql_voids_what_it_may_have_lost",
        "Progress",
    ),
    "a crash: up to the mark": Mutant(
        records,
        "place = self.first(durable[0])",
        "place = len(self)",
        "test_a_crash_of_postgresql_voids_what_it_may_have_lost",
        "Records",
    ),
}


TESTS = (test_records, test_record_file, test_sent_times, test_board)
USERS = (*TESTS, records, progress)
"""Where a class is replaced."""


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_test_fails_without(rule: str, tmp_path: Path) -> None:
    mutant = MUTANTS[rule]
    changed = getattr(variant(mutant.module, (mutant.old, mutant.new)), mutant.name)
    name, _, number = mutant.test.partition("[")
    (module,) = (each for each in TESTS if hasattr(each, name))
    lives = Lives(tmp_path / "data" / "resume")
    with pytest.MonkeyPatch.context() as patch:
        for user in USERS:
            if hasattr(user, mutant.name):
                patch.setattr(user, mutant.name, changed)
        test = getattr(module, name)
        case = _case(test, number.rstrip("]"), patch)
        given = {"lives": lives, "monkeypatch": patch, **case}
        wanted = inspect.signature(test).parameters
        try:
            with pytest.raises((AssertionError, ValueError)):
                test(**{name: given[name] for name in wanted})
        finally:
            lives.end()


def _case(test: Any, case: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of one case of a test that has several."""
    match test.__name__, case:
        case _, "":
            return {}
        case "test_a_file_that_can_no_longer_be_written_is_emptied", _:
            return {
                "what": "remember",
                "number": 28,
                "fail": test_record_file.failing(patch),
            }
        case "test_a_torn_header_is_said_and_counted", _:
            return {"byte": int(case)}
    (mark,) = test.pytestmark
    names = mark.args[0] if not isinstance(mark.args[0], str) else (mark.args[0],)
    values = mark.args[1][int(case)]
    return dict(zip(names, values if isinstance(values, tuple) else (values,), strict=True))


def test_each_rule_is_stated_once_and_names_a_test() -> None:
    theory = records.__doc__ or ""
    rules = re.split(r"^(\d+) +(?=[A-Z])", theory, flags=re.MULTILINE)[1:]
    assert rules[::2] == [str(number) for number in range(1, 11)]
    root = Path(__file__).parents[2]
    files = [
        root / "unit/postgres/test_records.py",
        root / "unit/postgres/test_record_file.py",
        root / "unit/postgres/test_sent_times.py",
        root / "unit/delivery/test_board.py",
        root / "integration/test_resume.py",
        root / "integration/postgres/test_resuming.py",
    ]
    tests = "".join(path.read_text() for path in files)
    for text in rules[1::2]:
        names = re.findall(r"\btest_\w+", text)
        assert names
        for name in names:
            assert re.search(rf"def {name}\(", tests), name
