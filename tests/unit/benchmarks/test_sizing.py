"""The tables of docs/explanation/sizing.md are those that `python -m benchmarks.sizing` prints."""

import pytest

from benchmarks.sizing import assumptions, log_table, measured, size, tables
from tests.support import ROOT


def test_the_page_has_what_the_program_prints() -> None:
    page = (ROOT / "docs" / "explanation" / "sizing.md").read_text()
    for table in (assumptions(), tables(), log_table()):
        assert table in page


@pytest.mark.parametrize("figure", ["write", "change", "idle"])
def test_what_was_measured_is_not_far_from_what_is_assumed(figure: str) -> None:
    value, assumed = measured()[figure]
    assert assumed / 2 < value < assumed * 1.5


def test_a_million_clients_with_ten_changes_a_second_fill_three_ports_before_their_cores() -> None:
    found = size(1_000_000, 10)
    assert (found.gigabits, found.ports, found.processes, found.machines) == (16, 3, 20, 5)


def test_no_process_has_more_than_its_share_of_a_core() -> None:
    assert all(size(clients, rate).core <= 0.6 for clients in (10, 10**6) for rate in (1, 999))
