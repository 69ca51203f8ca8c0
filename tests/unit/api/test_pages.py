"""Pages: where they end, and what the board lays over the rows of a query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.api import pages
from brain.api.errors import CursorInvalid
from brain.api.overlay import Overlay
from brain.api.pages import Cursor, Page, Rows, decode_cursor, encode_cursor, read_page
from brain.contract.events import Changes, Snapshot
from brain.contract.messages import STATUSES, Run
from brain.delivery.board import Board
from brain.postgres.decoder import Decoder

NONE: tuple[None, ...] = (None,) * 8


def row(run_id: str, status: str = "queued", error: str | None = None) -> tuple[str | None, ...]:
    return (run_id, status, None, None, None, None, None, error)


def run(run_id: str, status: str = "queued") -> Run:
    return (run_id, status, None, None, None, None, None, None)


class Table:
    """Rows in the order of their ids, and the snapshot with which a query sees them."""

    def __init__(self, *rows: tuple[str | None, ...], snapshot: str = "100:100:") -> None:
        self.rows, self.snapshot, self.queries = rows, snapshot, 0

    async def query(self, after: str | None, limit: int) -> Rows:
        self.queries += 1
        found = [row for row in self.rows if after is None or str(row[0]) > after]
        return [(self.snapshot, *row) for row in found[:limit]] or [(self.snapshot, *NONE)]

    async def page(
        self,
        board: Board,
        after: str | None = None,
        limit: int = 1000,
        *,
        status: str = "",
        overlay: Overlay | None = None,
    ) -> Page:
        return await read_page(
            self.query,
            Decoder({}, 10_000_000),
            overlay or Overlay(board),
            wanted={"status": [status] if status else STATUSES},
            after=None if after is None else Cursor(after),
            limit=limit,
        )


def ids(page: Page) -> list[str]:
    return [text.split('"')[3] for text in page.runs]


@pytest.mark.parametrize("limit", [1, 7, pages.BATCH, pages.BATCH + 1, 349, 350, 351])
async def test_pages_hold_each_row_once(limit: int) -> None:
    table = Table(*(row(f"{i:03}") for i in range(350)))
    found: list[str] = []
    last: str | None = None
    while True:
        page = await table.page(Board(1 << 20), last, limit)
        assert len(page.runs) <= limit
        found += ids(page)
        last = page.last
        if last is None:
            break
    assert found == [f"{i:03}" for i in range(350)]


async def test_a_page_ends_at_its_bytes_and_reads_no_further() -> None:
    table = Table(*(row(f"{i:03}", error="x" * 100_000) for i in range(350)))
    page = await table.page(Board(1 << 20))
    assert ids(page) == [f"{i:03}" for i in range(10)]
    assert page.last == "009"
    assert table.queries == 1


async def test_a_run_above_the_bytes_of_a_page_is_a_page_of_its_own() -> None:
    table = Table(*(row(each, error="x" * pages.MAX_PAGE) for each in "ab"))
    first = await table.page(Board(1 << 20))
    second = await table.page(Board(1 << 20), first.last)
    assert [ids(first), ids(second)] == [["a"], ["b"]]
    assert (first.last, second.last) == ("a", None)


async def test_a_row_outside_the_contract_is_left_out() -> None:
    page = await Table(row("a"), row("b", "odd"), row("c")).page(Board(1 << 20), limit=2)
    assert (ids(page), page.last) == (["a"], "b")


async def test_an_empty_table_is_one_empty_page() -> None:
    assert await Table().page(Board(1 << 20)) == Page([], None, None)


async def test_a_run_that_the_board_has_newer_is_shown_and_filtered_as_the_board_has_it() -> None:
    board = Board(1 << 20)
    board.apply(Snapshot([run("a"), run("b")], at=1000))
    board.apply(Changes([("update", run("a", "running"))], at=2000, xid=100))
    table = Table(row("a"), row("b"), snapshot="100:101:100")
    page = await table.page(board)
    assert [text.split('"')[7] for text in page.runs] == ["running", "queued"]
    assert ids(await table.page(board, status="queued")) == ["b"]


async def test_the_time_of_a_page_is_that_of_the_first_change_it_lacks() -> None:
    board = Board(1 << 20)
    assert (await Table().page(board)).since is None
    board.apply(Snapshot([run("a")], at=1000))
    board.apply(Changes([("insert", run("b"))], at=2000, xid=99))
    board.apply(Changes([("insert", run("c"))], at=3000, xid=100))
    board.apply(Changes([("insert", run("d"))], at=4000, xid=101))
    assert (await Table(snapshot="100:102:100,101").page(board)).since == 3000
    assert (await Table(snapshot="102:102:").page(board)).since == 4000


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    st.none() | st.integers(0, 10**17 - 1),
)
def test_a_cursor_is_decoded_to_what_it_was_made_of(run_id: str, seen: int | None) -> None:
    cursor = encode_cursor(Cursor(run_id, seen))
    assert decode_cursor(cursor) == (run_id, seen)
    assert "=" not in cursor


@pytest.mark.parametrize("cursor", ["", "%%", "AA", "ä", "_w", "A", "YQA", "YQAxeA", "YQDZoQ"])
def test_a_cursor_of_no_page_is_refused(cursor: str) -> None:
    with pytest.raises(CursorInvalid) as caught:
        decode_cursor(cursor)
    assert caught.value.fields[0][0] == "cursor"
