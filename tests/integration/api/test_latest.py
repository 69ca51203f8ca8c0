"""`GET /api/runs?order=changed`: what changed last, where Brain's memory ends, and how many."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from brain.api import latest, totals
from brain.contract.events import Changes, Op, Snapshot
from brain.contract.messages import Run, iso
from brain.delivery.board import Board
from tests.support.api import fields, problem, serving
from tests.support.issuer import SECRET, token
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE

T = 1_700_000_000_000_000


def run(run_id: str, status: str = "running", agent: str | None = None) -> Run:
    return (run_id, status, None, None, agent, None, None, None)


def change(board: Board, at: int, *rows: Run, op: Op = "update") -> None:
    board.apply(Changes([(op, row) for row in rows], at, 5))


@pytest.fixture
def board() -> Board:
    board = Board(1 << 20)
    board.apply(Snapshot([run("old1"), run("old2", agent="a")], T))
    return board


@pytest.fixture
async def api(database: str, board: Board) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(database, board=board) as client:
        yield client


async def listed(api: httpx.AsyncClient, query: str = "") -> dict[str, Any]:
    answer = await api.get(f"/api/runs?order=changed{query}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def ids(document: dict[str, Any]) -> list[str]:
    return [each["id"] for each in document["runs"]]


async def test_the_run_that_changed_last_is_first(api: httpx.AsyncClient, board: Board) -> None:
    for i, run_id in enumerate(("a", "b", "a")):
        change(board, T + 10 + i, run(run_id, "completed" if i == 2 else "running"))
    page = await listed(api)
    assert ids(page)[:2] == ["a", "b"]
    assert set(ids(page)[2:]) == {"old1", "old2"}
    assert page["runs"][0] == {"id": "a", "status": "completed"}
    assert page["timestamp"] == iso(T + 12)
    assert page["next_cursor"] is None


async def test_a_list_that_the_limit_ends_is_complete_if_brain_saw_each_change(
    api: httpx.AsyncClient, board: Board
) -> None:
    change(board, T + 10, run("a"), run("b"))
    assert (await listed(api, "&limit=2"))["complete"] is True
    beyond = await listed(api, "&limit=3")
    assert len(beyond["runs"]) == 3
    assert beyond["complete"] is False, "when a run of the first read changed is not known"


async def test_a_list_that_memory_ends_is_complete_for_active_runs_only(
    api: httpx.AsyncClient, board: Board
) -> None:
    change(board, T + 10, run("done", "completed"))
    assert (await listed(api))["complete"] is False
    assert (await listed(api, "&status=completed"))["complete"] is False
    active = await listed(api, "&status=running&status=queued")
    assert (set(ids(active)), active["complete"]) == ({"old1", "old2"}, True)
    assert (await listed(api, "&status=queued"))["complete"] is True


async def test_beyond_evicted_runs_the_list_is_not_complete(database: str) -> None:
    board = Board(4000)
    board.apply(Snapshot([], T))
    async with serving(database, board=board) as api:
        for i in range(1, 10):
            change(board, T + 10 * i, run(str(i), "completed"))
        held = len(board)
        assert 1 < held < 9
        assert (await listed(api, "&limit=1"))["complete"] is True
        assert ids(await listed(api)) == [str(9 - i) for i in range(held)]
        assert (await listed(api))["complete"] is False
        # An active run that is older than evicted ones ends what is sure.
        change(board, T + 100, run("active"))
        for i in range(20):
            change(board, T + 200 + 10 * i, run(f"x{i}", "failed"))
        assert "active" in ids(await listed(api))
        assert (await listed(api, "&limit=1"))["complete"] is True
        assert (await listed(api, f"&limit={len(board) - 1}"))["complete"] is True
        assert (await listed(api, f"&limit={len(board)}"))["complete"] is False


async def test_the_filters_are_those_of_the_list_by_id(
    api: httpx.AsyncClient, board: Board
) -> None:
    change(board, T + 10, run("a", agent="a"), run("b", "failed", agent="b"))
    assert ids(await listed(api, "&agent=a")) == ["a", "old2"]
    assert ids(await listed(api, "&agent=a&agent=b&status=failed")) == ["b"]
    assert ids(await listed(api, "&run_id=b&run_id=old1")) == ["b", "old1"]
    assert ids(await listed(api, "&task_id=none")) == []
    # What a run was does not count, as in the list by id.
    change(board, T + 20, run("a", agent="b"))
    assert ids(await listed(api, "&agent=a")) == ["old2"]


async def test_a_deleted_run_is_not_listed(api: httpx.AsyncClient, board: Board) -> None:
    change(board, T + 10, run("a"))
    change(board, T + 20, run("a", ""), op="delete")
    assert "a" not in ids(await listed(api))


async def test_many_windows_give_the_same_list(
    database: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest, "WINDOW", 7)
    for i in range(60):
        change(board, T + 10 + i, run(str(i % 40), agent=str(i % 3)))
    async with serving(database, board=board) as api:
        expected = [str(i % 40) for i in range(59, 19, -1)]
        assert ids(await listed(api))[:40] == expected
        assert ids(await listed(api, "&limit=13")) == expected[:13]
        for run_id in ("0", "19", "20"):
            assert ids(await listed(api, f"&run_id={run_id}")) == [run_id]


async def test_a_list_has_at_most_a_mebibyte(database: str) -> None:
    board = Board(1 << 30)
    board.apply(Snapshot([], T))
    long = ("x" * 300_000,)
    for i in range(6):
        change(board, T + 10 + i, (*run(str(i), "failed")[:7], *long))
    async with serving(database, board=board) as api:
        page = await listed(api)
        assert ids(page) == ["5", "4", "3"]
        assert page["complete"] is True


async def test_each_run_has_the_time_of_its_last_change(
    api: httpx.AsyncClient, board: Board
) -> None:
    change(board, T + 10, run("a"))
    change(board, T + 20, run("b", "failed"), run("c"))
    page = await listed(api)
    times = dict(zip(ids(page), page["changed_at"], strict=True))
    assert times | {"a": iso(T + 10), "b": iso(T + 20), "c": iso(T + 20)} == times
    # Nobody knows when these changed before Brain read them: not since then, at least.
    assert times["old1"] == times["old2"] == page["exact_after"] == iso(T)


async def pages(api: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    found = [await listed(api, query)]
    while cursor := found[-1]["next_cursor"]:
        found.append(await listed(api, f"{query}&cursor={cursor}"))
    return found


async def test_a_cursor_continues_the_list_to_the_end_of_memory(
    api: httpx.AsyncClient, board: Board
) -> None:
    for i in range(9):
        change(board, T + 10 + i // 3, run(f"r{i}", "completed"))
    found = await pages(api, "&limit=2")
    assert [each for page in found for each in ids(page)] == ids(await listed(api))
    assert [page["complete"] for page in found] == [True] * 4 + [False] * 2
    for query in ("&status=completed", "&status=running&status=queued"):
        listing = [each for page in await pages(api, f"{query}&limit=3") for each in ids(page)]
        assert listing == ids(await listed(api, query))


async def test_a_run_that_changes_between_two_pages_comes_with_since(
    api: httpx.AsyncClient, board: Board
) -> None:
    for i in range(4):
        change(board, T + 10 + i, run(f"r{i}", "completed"))
    first = await listed(api, "&status=completed&limit=2")
    change(board, T + 20, run("r0", "failed"))
    rest = await listed(api, f"&status=completed&limit=2&cursor={first['next_cursor']}")
    assert (ids(first), ids(rest)) == (["r3", "r2"], ["r1"])
    assert first["timestamp"] == iso(T + 13), "since brings r0"


async def test_after_a_restart_a_cursor_continues_by_its_time(
    api: httpx.AsyncClient, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        change(board, T + 10 + i // 3, run(f"r{i}", "completed"))
    first = await listed(api, "&status=completed&limit=1")
    assert ids(first) == ["r5"]
    monkeypatch.setattr(latest, "PROCESS", "00000000")
    rest = await listed(api, f"&status=completed&cursor={first['next_cursor']}")
    assert ids(rest) == ["r5", "r4", "r3", "r2", "r1", "r0"], "nothing is lost"


async def test_a_cursor_of_the_other_order_is_refused(
    api: httpx.AsyncClient, board: Board, database: str
) -> None:
    """By the order of the ids it would be an id, and the list would go on at some other run."""
    execute(database, "INSERT INTO runs (id) VALUES ('a'), ('1 1 00000000'), ('z')")
    for each in "ab":
        change(board, T + 10, run(each, "completed"))
    changed = (await listed(api, "&limit=1"))["next_cursor"]
    by_id = (await api.get("/api/runs?limit=1")).json()["next_cursor"]
    for order, cursor in (("id", changed), ("changed", by_id)):
        answer = await api.get(f"/api/runs?order={order}&cursor={cursor}")
        assert "of a page in this order" in problem(answer, 422)["detail"]
    assert (await api.get(f"/api/runs?cursor={by_id}")).status_code == 200


async def test_bad_parameters_are_a_422_that_names_them(api: httpx.AsyncClient) -> None:
    for query, field in (
        ("order=time", "order"),
        ("order=changed&cursor=YQ", "cursor"),
        ("order=changed&cursor=%C3%A9", "cursor"),
        ("order=changed&cursor=" + "MSA" * 99, "cursor"),
    ):
        assert fields(problem(await api.get(f"/api/runs?{query}"), 422)) == [field]
    assert "id or changed" in (await api.get("/api/runs?order=time")).json()["detail"]
    assert (await api.get("/api/runs?order=id")).json().keys() == {
        "runs",
        "next_cursor",
        "timestamp",
    }


async def test_before_the_first_read_it_is_a_503(database: str) -> None:
    async with serving(database, board=Board(1 << 20)) as api:
        problem(await api.get("/api/runs?order=changed"), 503)


# How many


async def test_the_total_is_counted_where_that_is_cheap(
    api: httpx.AsyncClient, database: str
) -> None:
    execute(
        database,
        "INSERT INTO runs (id, status, agent) SELECT i::text, 'completed', 'a' || i % 3 "
        "FROM generate_series(1, 90) AS i",
    )
    for query, total in (("", 90), ("&agent=a1", 30), ("&status=queued", 0), ("&run_id=7", 1)):
        page = await listed(api, query)
        assert (page["total"], page["total_is_estimate"]) == (total, False), query


async def test_the_total_counts_by_the_columns_that_the_fields_have(
    database: str, board: Board
) -> None:
    execute(database, 'CREATE TABLE jobs ("Run %s" text, state text, worker text)')
    execute(
        database,
        "INSERT INTO jobs SELECT i::text, 'queued', 'a' || i % 3 FROM generate_series(1, 9) AS i"
        " UNION ALL VALUES (NULL, 'queued', 'a1')",
    )
    columns = 'id="Run %s",status=state,agent=worker'
    async with serving(database, board=board, table="jobs", columns=columns) as api:
        for query, total in (("", 9), ("&agent=a1", 3), ("&run_id=7", 1), ("&task_id=t", 0)):
            assert (await listed(api, query))["total"] == total, query


async def test_the_total_is_an_estimate_where_counting_costs_much(
    api: httpx.AsyncClient, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "INSERT INTO runs (id) SELECT i::text FROM generate_series(1, 5000) AS i")
    execute(database, "ANALYZE runs")
    monkeypatch.setattr(totals, "MAX_COST", 1.0)
    page = await listed(api)
    assert (page["total"], page["total_is_estimate"]) == (5000, True)


async def test_without_a_database_there_is_a_list_and_no_total(board: Board) -> None:
    async with serving("postgresql://nobody@127.0.0.1:1/none", board=board) as api:
        page = await listed(api)
        assert len(page["runs"]) == 2
        assert (page["total"], page["total_is_estimate"]) == (None, False)


# With tokens, and with types


@pytest.fixture(scope="module")
def brain(postgres: Postgres) -> Iterator[Brain]:
    name = postgres.create_database(TEMPLATE, ROLE)
    url = postgres.url(name, ROLE)
    execute(url, "DROP TABLE runs")
    execute(url, "CREATE TABLE runs (id bigint PRIMARY KEY, status text, agent text)")
    execute(
        url, "INSERT INTO runs VALUES (1, 'queued', 'a'), (2, 'queued', 'b'), (3, 'queued', 'a')"
    )
    with served(database_url=url, jwt_secret=SECRET) as brain:
        yield brain


def asked(brain: Brain, query: str, **claims: Any) -> httpx.Response:
    return httpx.get(
        f"http://127.0.0.1:{brain.port}/api/runs?order=changed{query}",
        headers={"Authorization": f"Bearer {token(**claims)}"},
        trust_env=False,
    )


def test_a_token_bounds_the_list_and_its_total(brain: Brain) -> None:
    page = asked(brain, "", agent="a").json()
    assert (sorted(ids(page)), page["total"]) == (["1", "3"], 2)
    assert asked(brain, "&agent=b", agent="a").status_code == 403
    assert asked(brain, "", scope="write").status_code == 403
    assert len(ids(asked(brain, "").json())) == 3


def test_values_are_compared_as_the_column_prints_them(brain: Brain) -> None:
    page = asked(brain, "&run_id=0003&run_id=x").json()
    assert (ids(page), page["total"]) == (["3"], 1)
