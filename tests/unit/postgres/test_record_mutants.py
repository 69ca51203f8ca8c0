"""Each rule of the records (postgres/checkpoints.py) has a test that fails without it."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from brain.delivery import board
from brain.postgres import checkpoints, first_look, record_file
from tests.unit.delivery import test_board
from tests.unit.delivery.mutants import variant
from tests.unit.postgres import test_records
from tests.unit.postgres.test_records import Lives


class Mutant(NamedTuple):
    module: ModuleType
    old: str
    new: str
    test: str
    name: str
    """Of the class that is replaced."""


MUTANTS = {
    "1 xmin": Mutant(
        checkpoints,
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
        "self._words[_HIGH] = time",
        "pass",
        "test_the_highest_time_is_there_before_anything_else",
        "RecordFile",
    ),
    "3 before it is sent": Mutant(
        board,
        "else self.floor_time + 1",
        "else self.floor_time",
        "test_every_time_is_remembered_before_it_is_sent",
        "Board",
    ),
    "3 where the next one starts": Mutant(
        board,
        "self.time = event.at + 1\n        self.begun",
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
        "self.time = event.floor_time + 1",
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
        checkpoints,
        "time == last.time or",
        "",
        "test_of_two_records_with_one_time_the_newer_counts",
        "Records",
    ),
    "6 one xmin": Mutant(
        checkpoints,
        "if record.xmin > last.xmin:",
        "if True:",
        "test_of_two_records_with_one_xmin_the_older_counts",
        "Records",
    ),
    "7": Mutant(
        checkpoints,
        "self._list[1].time < time and (",
        "(",
        "test_the_oldest_record_is_kept_while_clients_may_hold_the_next_ones_time",
        "Records",
    ),
    "8 corrections": Mutant(
        checkpoints,
        "while self._list and self._list[-1].xmin > xmin:",
        "while False:",
        "test_a_correction_voids_the_records_since",
        "Records",
    ),
    "8 new histories": Mutant(
        checkpoints,
        "self._file.clear()\n            self._set([])\n            self.detail = detail",
        "self._set([])",
        "test_what_a_new_history_voids_does_not_come_back",
        "Records",
    ),
    "8 partitions": Mutant(
        checkpoints,
        "not self._list or _dependencies(checkpoint) != self._counts_for",
        "not self._list",
        "test_a_partition_that_comes_starts_new_records",
        "Records",
    ),
    "9": Mutant(
        record_file,
        "fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_a_second_brain_neither_reads_nor_writes",
        "RecordFile",
    ),
    "a crash: what was read": Mutant(
        checkpoints,
        "self.records.settle(None)",
        "pass",
        "test_a_crash_of_postgresql_voids_what_it_may_have_lost",
        "Progress",
    ),
    "a crash: up to the mark": Mutant(
        checkpoints,
        "place = self.first(durable[0])",
        "place = len(self)",
        "test_a_crash_of_postgresql_voids_what_it_may_have_lost",
        "Records",
    ),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_test_fails_without(rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mutant = MUTANTS[rule]
    tests: Any = test_board if mutant.module is board else test_records
    changed = getattr(variant(mutant.module, (mutant.old, mutant.new)), mutant.name)
    monkeypatch.setattr(
        checkpoints if mutant.module is record_file else tests, mutant.name, changed
    )
    test = getattr(tests, mutant.test)
    lives = Lives(tmp_path / "data" / "resume")
    try:
        with pytest.raises((AssertionError, ValueError)):
            test(lives) if tests is test_records else test()
    finally:
        lives.end()


def test_each_rule_is_stated_once_and_names_a_test() -> None:
    theory = checkpoints.__doc__ or ""
    rules = re.split(r"^(\d+) +(?=[A-Z])", theory, flags=re.MULTILINE)[1:]
    assert rules[::2] == [str(number) for number in range(1, 11)]
    root = Path(__file__).parents[2]
    files = [
        root / "unit/postgres/test_records.py",
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
