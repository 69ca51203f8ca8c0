"""Lists of one of several nodes (api/logged.py)."""

import asyncio

import pytest

from brain.api.errors import NodeBehind
from brain.api.logged import Logged
from brain.api.overlay import Overlay
from brain.api.pages import Page
from brain.contract.events import Changes, Snapshot, only_id
from brain.contract.messages import ACTIVE, Micros
from brain.delivery.board import Board
from tests.unit.api.test_pages import Table, row, run


async def always(_: Micros) -> bool:
    return True


async def never(_: Micros) -> bool:
    return False


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log brings nothing more."""
    monkeypatch.setattr("brain.api.pages.PATIENCE", 0.0)


def shown(page: Page) -> list[tuple[str, str]]:
    return [(text.split('"')[3], text.split('"')[7]) for text in page.runs]


def begun() -> Board:
    board = Board(1 << 20)
    board.apply(Snapshot([run("a"), run("b")], at=1000))
    return board


@pytest.mark.usefixtures("impatient")
async def test_a_list_shows_what_the_log_contains() -> None:
    """Every run as another node has it, too, or not at all; but runs that have ended were evicted.
    And nothing is noted that this node alone could know.
    """
    board = begun()
    board.apply(Changes([("delete", only_id("b"))], 2000, 7))
    rows = [row("a", "running"), row("b"), row("c", "queued"), row("d", "failed")]
    for status, wanted in (
        ("", [("a", "queued"), ("d", "failed")]),
        ("running", [("d", "failed")]),  # which the query would not return
        ("queued", [("a", "queued"), ("d", "failed")]),
    ):
        page = await Table(*rows).page(board, status=status, overlay=Logged(board, always))
        assert shown(page) == wanted
    assert not board._shown
    (alone,) = (await Table(rows[0]).page(begun(), overlay=Overlay(begun()))).runs
    assert "running" in alone


async def test_before_the_first_read_a_list_shows_the_table() -> None:
    board = Board(1 << 20)
    page = await Table(row("a"), row("b", "failed")).page(board, overlay=Logged(board, always))
    assert shown(page) == [("a", "queued"), ("b", "failed")]
    assert page.since is None


async def test_a_list_waits_for_what_the_query_has_seen() -> None:
    board = begun()
    table = Table(row("a", "running"), row("b"), row("c", "running"))
    asked = asyncio.create_task(table.page(board, overlay=Logged(board, always)))
    while not table.queries:
        await asyncio.sleep(0)
    board.apply(Snapshot([run("a", "running")], at=2000))
    board.apply(Snapshot([run("c", "running")], at=3000))
    assert shown(await asked) == [("a", "running"), ("b", "queued"), ("c", "running")]


async def test_what_the_board_has_newer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its transaction is not visible to the query yet."""

    async def sleep(_: float) -> None:
        raise AssertionError

    board = begun()
    board.apply(Changes([("update", run("a", "running"))], at=2000, xid=100))
    table = Table(row("a"), row("b"), row("x", "failed"), snapshot="100:101:100")
    monkeypatch.setattr(asyncio, "sleep", sleep)
    page = await table.page(board, overlay=Logged(board, always))
    assert shown(page) == [("a", "running"), ("b", "queued"), ("x", "failed")]
    assert page.since == 2000


async def test_a_later_page_waits_for_what_the_first_one_had_read() -> None:
    """It says which time that was, over all pages."""
    board = begun()
    overlay = Logged(board, always)
    table = Table(row("a"), row("b"))
    first = await table.page(board, limit=1, overlay=overlay)
    assert (first.last, first.seen, first.since) == ("a", 1000, 1000)
    assert (await table.page(board, limit=1)).seen is None
    await overlay.reach(1000)
    with pytest.raises(NodeBehind):
        await Logged(board, never).reach(1000)


def test_only_runs_that_have_ended_may_be_unknown() -> None:
    assert {"queued", "running"} == ACTIVE
