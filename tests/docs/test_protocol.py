"""The two tables of docs/reference/protocol.md are those of the code, cell by cell."""

import re

import pytest

from brain.access.limits import MAX_BODY
from brain.access.rejections import REJECTION_CODES, REJECTIONS, RejectionCode
from brain.access.tokens import MAX_TOKEN
from brain.contract.close_codes import (
    CLOSE_CODES,
    FLOOD,
    MESSAGE_TOO_BIG,
    UNAUTHORIZED,
    Retry,
    retry,
)
from brain.server.limits import Limits
from tests.support import ROOT

PAGE = (ROOT / "docs" / "reference" / "protocol.md").read_text()
LIMITS = Limits()


def table(page: str, first_heading: str) -> list[tuple[str, ...]]:
    """The cells of each row of the table whose first column has this heading."""
    head, _, *rows = (
        page[page.index(f"| {first_heading} |") :].split("\n\n", maxsplit=1)[0].splitlines()
    )
    columns = len(cells(head))
    found = [cells(row) for row in rows]
    assert all(len(row) == columns for row in found)
    return found


def cells(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in row.strip().strip("|").split("|"))


WHY_4410 = (
    ("forgotten a change", "unit/delivery/test_hub.py", "a_since_beyond_memory_is_closed"),
    ("had not sent yet", "unit/delivery/test_hub.py", "a_lagging_client_beyond_memory_is_closed"),
    ("before the first read", "integration/test_resume.py", "a_since_before_the_records_is_a_gap"),
    ("far ahead", "integration/test_resume.py", "a_clock_that_was_far_ahead_ends_with_a_restart"),
    (
        "NATS has lost the log",
        "integration/nodes/test_lost_logs.py",
        "a_client_that_has_seen_what_the_log_has_lost",
    ),
    ("no longer the one", "integration/test_app.py", "a_replaced_table_closes_every_client"),
    (
        "a TRUNCATE",
        "integration/server/test_include.py",
        "a_truncate_ends_clients_that_include_deletes",
    ),
    ("a stream begins", "integration/server/test_include.py", "a_stream_that_is_interrupted_ends"),
    (
        "a lost stream",
        "integration/postgres/test_deletes.py",
        "a_lost_stream_that_cannot_be_joined",
    ),
    (
        "another node leads",
        "integration/nodes/test_served.py",
        "a_node_that_is_stopped_is_replaced_at_once",
    ),
    ("Brain was restarted", "integration/server/test_include.py", "over_a_restart_deletes_are"),
)
"""Words of each reason for 4410, and the test that meets it."""


def test_each_reason_for_4410_has_a_test() -> None:
    rows = table(PAGE, "reason")
    assert len(rows) == len(WHY_4410)
    for (reason, _), (words, path, name) in zip(rows, WHY_4410, strict=True):
        assert words in reason
        assert f"def test_{name}" in (ROOT / "tests" / path).read_text()


def test_only_these_two_places_send_4410() -> None:
    """The hub for what it cannot tell a client, and the reset of all clients by a new history."""
    sources = (ROOT / "src" / "brain").rglob("*.py")
    using = {path.name for path in sources if re.search(r"\bGAP\b(?! =|:)", path.read_text())}
    assert using == {"app.py", "hub.py", "close_codes.py"}


def close_code_rows() -> list[tuple[str, ...]]:
    rows = [(str(each.code), each.meaning, each.retry.value) for each in CLOSE_CODES.values()]
    return [
        *rows,
        (
            "the rest of 4400 to 4499",
            "as HTTP's 400 to 499: the same request gets the same answer",
            retry(4499).value,
        ),
        ("any other", "", retry(3000).value),
    ]


def rejection_rows() -> list[tuple[str, ...]]:
    rows = [
        (str(row.status), row.meaning, row.retry.value)
        for row in REJECTIONS.values()
        if row.status is not None
    ]
    return sorted(rows, key=lambda row: row[0])


def test_the_table_of_close_codes_is_that_of_the_code() -> None:
    assert table(PAGE, "close code") == close_code_rows()


def test_the_table_before_the_upgrade_is_that_of_the_code() -> None:
    assert PAGE.index("## Before the upgrade") < PAGE.index("| status |")
    assert table(PAGE, "status") == rejection_rows()


@pytest.mark.parametrize("row", [*close_code_rows(), *rejection_rows()], ids=lambda row: row[0])
def test_a_row_that_is_removed_is_noticed(row: tuple[str, ...]) -> None:
    """The tests above would fail: without this row, the table is another one."""
    line = f"| {' | '.join(row)} |\n"
    assert PAGE.count(line) == 1
    without = PAGE.replace(line, "")
    found = table(without, "close code"), table(without, "status")
    assert found != (close_code_rows(), rejection_rows())


@pytest.mark.parametrize("code", REJECTION_CODES)
def test_a_rejection_is_whole(code: RejectionCode) -> None:
    row = REJECTIONS[code]
    assert (row.status, row.close_code) != (None, None)
    assert "|" not in row.meaning
    assert (row.retry_after is None) == (row.status not in (429, 503))
    if row.status is not None:
        same = [each for each in REJECTIONS.values() if each.status == row.status]
        assert all(
            (each.headers, each.retry_after) == (row.headers, row.retry_after) for each in same
        )
    assert row.retry_after is None or row.retry is Retry.BACK_OFF
    if row.close_code is not None:
        assert row.close_code in CLOSE_CODES.values()
        assert row.retry is row.close_code.retry, "both ways say the same"


def test_the_tables_hold_every_code_once() -> None:
    assert tuple(REJECTIONS) == REJECTION_CODES
    assert all(code == each.code for code, each in CLOSE_CODES.items())


def test_the_figures_in_the_tables_are_the_limits() -> None:
    def number(code: RejectionCode) -> int:
        return int(re.findall(r"\d+", REJECTIONS[code].meaning)[-1])

    assert number("url_size") * 1024 == LIMITS.max_url
    assert number("head_size") * 1024 == LIMITS.max_head
    assert number("body_size") * 1024 * 1024 == MAX_BODY
    assert number("deadline") == LIMITS.request_deadline
    assert f"{LIMITS.frames.rate:.0f} frames" in FLOOD.meaning
    assert f"{LIMITS.max_message} bytes" in MESSAGE_TOO_BIG.meaning
    assert f"{LIMITS.token_deadline:.0f} s" in UNAUTHORIZED.meaning
    assert LIMITS.max_message >= MAX_TOKEN, "a token fits into the first message"
