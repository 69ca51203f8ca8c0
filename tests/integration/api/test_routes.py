"""The HTTP API on a real socket, with a real PostgreSQL."""

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import psycopg
import pytest

from brain.access.limits import MAX_BODY
from brain.access.rejections import RejectionCounter
from brain.api import concurrency
from brain.contract.events import Changes, Op, Snapshot
from brain.contract.messages import ACTIVE, STATUSES, TRANSITIONS, Run, Status, body, iso, message
from brain.delivery.board import Board
from brain.postgres.decoder import Decoder
from tests.support.api import fields, problem, serving
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import Postgres, committed_but_unseen, execute, running
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = pytest.mark.long

FIRST = ("first", "running", None, None, None, None, None, None)


@pytest.fixture
async def api(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(database) as client:
        yield client


# Creating


async def test_a_new_run_has_the_fields_of_the_request(
    api: httpx.AsyncClient, database: str
) -> None:
    given = {
        "id": "run/1 ü?",
        "status": "running",
        "progress": 12.5,
        "task_id": "t",
        "agent": "a",
        "started_at": "2026-11-21T10:30:00+01:00",
        "error": "none yet 🙂",
    }
    answer = await api.post("/api/runs", json=given)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == given | {"started_at": "2026-11-21T09:30:00Z"}
    assert answer.headers["location"] == "/api/runs/run%2F1%20%C3%BC%3F"
    assert (await api.get(answer.headers["location"])).content == answer.content
    assert execute(database, "SELECT id, progress FROM runs") == [("run/1 ü?", 12.5)]


@pytest.mark.parametrize(
    ("status", "times"),
    [
        ("queued", set()),
        ("running", {"started_at"}),
        ("completed", {"completed_at"}),
        ("failed", {"completed_at"}),
    ],
)
async def test_a_new_run_gets_the_time_of_its_status(
    api: httpx.AsyncClient, status: str, times: set[str]
) -> None:
    run = (await api.post("/api/runs", json={"status": status})).json()
    assert run.keys() == {"id", "status"} | times
    assert len(run["id"]) == 36
    given = {"started_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-02T00:00:00.5Z"}
    run = (await api.post("/api/runs", json={"status": status, **given})).json()
    assert (run["started_at"], run["completed_at"]) == (
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00.5Z",
    )


async def test_a_new_run_is_queued_by_default(api: httpx.AsyncClient) -> None:
    assert (await api.post("/api/runs", json={"id": "a", "agent": None})).json() == {
        "id": "a",
        "status": "queued",
    }


async def test_a_second_run_with_the_same_id_is_a_409(api: httpx.AsyncClient) -> None:
    await api.post("/api/runs", json={"id": "a", "status": "running"})
    document = problem(await api.post("/api/runs", json={"id": "a"}), 409)
    assert "'a'" in document["detail"]
    assert (await api.get("/api/runs/a")).json()["status"] == "running"


# Changing

MOVES = [(old, new) for old in STATUSES for new in STATUSES]


@pytest.mark.parametrize(("old", "new"), MOVES)
async def test_only_allowed_transitions_change_a_run(
    api: httpx.AsyncClient, old: Status, new: Status
) -> None:
    before = (await api.post("/api/runs", json={"id": "a", "status": old})).json()
    answer = await api.patch("/api/runs/a", json={"status": new, "agent": "me"})
    if old == new and old not in ACTIVE:
        assert "an end is final" in problem(answer, 409)["detail"]
        assert (await api.get("/api/runs/a")).json() == before
        assert (await api.patch("/api/runs/a", json={"status": new})).json() == before
    elif new in TRANSITIONS[old]:
        run = answer.json()
        assert run.pop("agent") == "me"
        expected = before | {"status": new}
        for name in {
            "running": ["started_at"],
            "completed": ["completed_at"],
            "failed": ["completed_at"],
        }.get(new, []):
            if old != new:
                expected[name] = run[name]  # now present
        assert run == expected
    else:
        detail = problem(answer, 409)["detail"]
        assert f"is {old} and cannot become {new}" in detail
        for other in TRANSITIONS[old] - {old}:
            assert other in detail.partition(":")[2]
        assert ("is final" in detail) == (len(TRANSITIONS[old]) == 1)
        assert (await api.get("/api/runs/a")).json() == before


async def test_a_run_that_starts_keeps_the_started_at_it_has(api: httpx.AsyncClient) -> None:
    await api.post("/api/runs", json={"id": "a", "started_at": "2026-01-01T00:00:00Z"})
    run = (await api.patch("/api/runs/a", json={"status": "running"})).json()
    assert run["started_at"] == "2026-01-01T00:00:00Z"


async def test_a_repeated_end_keeps_the_completed_at_of_the_first(api: httpx.AsyncClient) -> None:
    first = (await api.post("/api/runs", json={"id": "a", "status": "failed"})).json()
    again = (await api.patch("/api/runs/a", json={"status": "failed"})).json()
    assert again == first


async def test_a_patch_changes_only_its_fields_and_null_empties_one(api: httpx.AsyncClient) -> None:
    await api.post(
        "/api/runs", json={"id": "a", "progress": 5, "agent": "x", "task_id": "t", "error": "e"}
    )
    run = (await api.patch("/api/runs/a", json={"progress": 99.5})).json()
    assert run == {
        "id": "a",
        "status": "queued",
        "progress": 99.5,
        "agent": "x",
        "task_id": "t",
        "error": "e",
    }
    nothing = dict.fromkeys(["progress", "agent", "task_id", "error"])
    assert (await api.patch("/api/runs/a", json=nothing)).json() == {"id": "a", "status": "queued"}


async def test_one_of_two_concurrent_ends_wins(api: httpx.AsyncClient) -> None:
    for number in range(10):
        path = f"/api/runs/{number}"
        await api.post("/api/runs", json={"id": str(number), "status": "running"})
        answers = await asyncio.gather(
            *(api.patch(path, json={"status": ("completed", "failed")[i % 2]}) for i in range(6))
        )
        run = (await api.get(path)).json()
        for i, answer in enumerate(answers):
            if ("completed", "failed")[i % 2] == run["status"]:
                assert answer.json() == run  # the first set the time, the others left it
            else:
                problem(answer, 409)


async def test_a_change_waits_for_a_concurrent_one_and_sees_it(
    api: httpx.AsyncClient, database: str
) -> None:
    await api.post("/api/runs", json={"id": "a", "status": "running"})
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("UPDATE runs SET status = 'failed'")
        change = asyncio.create_task(api.patch("/api/runs/a", json={"status": "completed"}))
        await asyncio.sleep(0.1)
        assert not change.done()
        await other.commit()
    assert "is failed" in problem(await change, 409)["detail"]


async def test_a_missing_run_is_a_404(api: httpx.AsyncClient) -> None:
    for path in ("/api/runs/nobody", "/api/runs/x%2Fy", "/api/runs/%FF"):
        problem(await api.get(path), 404)
        problem(await api.patch(path, json={"progress": 1}), 404)
        problem(await api.patch(path, json={"status": "running"}), 404)


# Reading


async def pages(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get("/api/runs", params={**query, **cursor})).json()
        found += page["runs"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def test_pages_miss_no_row_while_others_are_inserted_and_deleted(
    api: httpx.AsyncClient, database: str
) -> None:
    execute(database, "INSERT INTO runs (id) SELECT 'ü ' || i FROM generate_series(1, 500) i")

    async def disturb() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
            for i in range(10_000):
                await other.execute("INSERT INTO runs (id) VALUES (md5(%s::text))", (i,))
                await other.execute("DELETE FROM runs WHERE id = md5(%s::text)", (i - 20,))

    disturbance = asyncio.create_task(disturb())
    await asyncio.sleep(0.05)
    ids = [run["id"] for run in await pages(api, limit=7)]
    disturbance.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await disturbance
    assert len(ids) == len(set(ids))
    assert {f"ü {i}" for i in range(1, 501)} <= set(ids)


async def test_limit_bounds_the_rows_of_a_page(api: httpx.AsyncClient, database: str) -> None:
    execute(database, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 1001) i")
    assert len((await api.get("/api/runs")).json()["runs"]) == 100
    page = (await api.get("/api/runs?limit=1000")).json()
    assert len(page["runs"]) == 1000
    rest = (await api.get("/api/runs", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert (len(rest["runs"]), rest["next_cursor"]) == (1, None)


async def test_values_of_a_field_are_alternatives_and_fields_narrow(
    api: httpx.AsyncClient, database: str
) -> None:
    execute(
        database,
        "INSERT INTO runs (id, status, agent, task_id) VALUES "
        "('1', 'queued', 'a', 't'), ('2', 'running', 'a', 'u'), "
        "('3', 'running', 'b', 't'), ('4', 'failed', NULL, NULL), ('5', 'completed', '', 't,u')",
    )
    expected = {
        "": "12345",
        "status=running": "23",
        "status=running&status=queued": "123",
        "agent=a": "12",
        "agent=a&agent=b&task_id=t": "13",
        "task_id=t,u": "5",
        "agent=nobody": "",
        "agent=%27%3B%20DROP%20TABLE%20runs": "",
        "status=failed&agent=a": "",
    }
    for query, ids in expected.items():
        assert (
            "".join(run["id"] for run in (await api.get(f"/api/runs?{query}")).json()["runs"])
            == ids
        ), query
    assert [run["id"] for run in await pages(api, status="running", limit=1)] == ["2", "3"]


async def test_rows_without_an_id_are_not_listed(database: str) -> None:
    execute(database, "CREATE TABLE loose (id text, status text)")
    execute(database, "INSERT INTO loose SELECT NULL, 'queued' FROM generate_series(1, 250)")
    execute(database, "INSERT INTO loose VALUES ('x', 'queued'), ('y', 'queued')")
    async with serving(database, table="public.loose") as api:
        ids = [each["id"] for each in await pages(api, limit=1000)]
        assert ids == ["x", "y"]


async def test_timestamp_is_null_until_the_board_has_begun(database: str) -> None:
    board = Board(1 << 20)
    async with serving(database, board=board) as api:
        assert (await api.get("/api/runs")).json() == {
            "runs": [],
            "next_cursor": None,
            "timestamp": None,
        }
        board.apply(Snapshot(rows=[FIRST], at=1_700_000_000_123_456))
        page = (await api.get("/api/runs")).json()
        assert page == {"runs": [], "next_cursor": None, "timestamp": "2023-11-14T22:13:20.123456Z"}


async def test_a_run_has_the_same_json_as_in_a_message(
    api: httpx.AsyncClient, database: str
) -> None:
    texts = [
        "a",
        "failed",
        "3e-07",
        "t",
        "</script>\u2028🙂",
        "2026-11-21 09:30:00.5+00",
        "infinity",
        "x" * 10_001,
    ]
    execute(database, "INSERT INTO runs VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", *texts)
    expected = Decoder({}, 10_000)(texts)
    assert expected is not None
    assert (await api.get("/api/runs/a")).text == body(expected)


# The later of the board and the table


async def test_a_change_that_a_query_cannot_see_yet_is_taken_from_the_board() -> None:
    """A synchronous standby does not answer: the commit is in the stream, but no query sees it."""
    with running(synchronous_standby_names="nobody", synchronous_commit="local") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(url, "INSERT INTO runs (id, status) VALUES ('a', 'queued'), ('b', 'queued')")
        board = Board(1 << 20)
        board.apply(Snapshot(rows=[run("a", "queued"), run("b", "queued")], at=1000))
        async with (
            serving(url, board=board) as api,
            await psycopg.AsyncConnection.connect(url) as writer,
        ):
            await writer.execute("SET synchronous_commit = on")
            await writer.execute("UPDATE runs SET status = 'running' WHERE id = 'a'")
            await writer.execute("INSERT INTO runs (id) VALUES ('c')")
            cursor = await writer.execute("SELECT pg_current_xact_id()::text::bigint")
            (xid,) = await cursor.fetchone() or (0,)
            async with committed_but_unseen(writer, server):
                assert (await api.get("/api/runs/a")).json()["status"] == "queued"
                problem(await api.get("/api/runs/c"), 404)
                rows: list[tuple[Op, Run]] = [
                    ("update", run("a", "running")),
                    ("insert", run("c", "queued")),
                ]
                board.apply(Changes(rows, at=2000, xid=xid))
                board.apply(Changes([("update", run("b", "running"))], at=3000, xid=1))
                assert (await api.get("/api/runs/a")).json()["status"] == "running"
                assert (await api.get("/api/runs/c")).json() == {"id": "c", "status": "queued"}
                # The query sees that transaction, so the table is right.
                assert (await api.get("/api/runs/b")).json()["status"] == "queued"

                page = (await api.get("/api/runs")).json()
                assert [each["status"] for each in page["runs"]] == ["running", "queued"]
                assert page["timestamp"] == iso(2000)  # since then, /ws sends c
                page = (await api.get("/api/runs?status=queued")).json()
                assert [each["id"] for each in page["runs"]] == ["b"]
                # Sessions with another synchronous_commit do not wait for the standby.
                many: list[tuple[Op, Run]] = [
                    ("insert", run(f"x{i}", "queued")) for i in range(10_000)
                ]
                board.apply(Changes(many, at=4000, xid=1))
                for _ in range(2):
                    page = (await api.get("/api/runs")).json()
                    assert [each["status"] for each in page["runs"]] == ["running", "queued"]
                    assert page["timestamp"] == iso(2000)

            page = (await api.get("/api/runs")).json()
            assert [each["id"] for each in page["runs"]] == ["a", "b", "c"]
            assert page["timestamp"] == iso(4000)
            execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'a'")
            assert (await api.get("/api/runs/a")).json()["status"] == "failed"


async def test_a_slow_query_shows_a_change_that_a_later_query_saw(
    database: str,
) -> None:
    """While the first query takes a second, a run changes, and a second query sees that."""
    execute(database, "CREATE TABLE naps AS SELECT 1.0 AS seconds")
    execute(
        database,
        "CREATE VIEW slow AS "
        "SELECT r.* FROM runs r, (SELECT pg_sleep(seconds) FROM naps OFFSET 0) n",
    )
    execute(database, "INSERT INTO runs (id) VALUES ('a')")
    board = Board(1 << 20)
    board.apply(Snapshot(rows=[run("a", "queued")], at=1000))
    async with serving(database, board=board, table="public.slow") as api:
        first = asyncio.create_task(api.get("/api/runs"))
        await asyncio.sleep(0.5)
        async with await psycopg.AsyncConnection.connect(database) as writer:
            await writer.execute("UPDATE runs SET status = 'running'")
            await writer.execute("UPDATE naps SET seconds = 0")
            cursor = await writer.execute("SELECT pg_current_xact_id()::text::bigint")
            (xid,) = await cursor.fetchone() or (0,)
        board.apply(Changes([("update", run("a", "running"))], at=2000, xid=xid))
        page = (await api.get("/api/runs")).json()
        assert [each["status"] for each in page["runs"]] == ["running"]
        assert not first.done()
        page = (await first).json()
        assert [each["status"] for each in page["runs"]] == ["running"]


def run(run_id: str, status: str) -> Run:
    return (run_id, status, None, None, None, None, None, None)


# Tables that Brain did not create


async def test_the_status_map_translates_in_both_directions(database: str) -> None:
    execute(database, "ALTER TABLE runs DROP CONSTRAINT runs_status_check")
    statuses: dict[str, Status] = {"done": "completed", "ok": "completed", "new": "queued"}
    async with serving(database, statuses=statuses) as api:
        assert (await api.post("/api/runs", json={"id": "a"})).json()["status"] == "queued"
        assert execute(database, "SELECT status FROM runs") == [("new",)]
        assert (await api.patch("/api/runs/a", json={"status": "running"})).json()[
            "status"
        ] == "running"
        assert execute(database, "SELECT status FROM runs") == [("running",)]
        assert (await api.patch("/api/runs/a", json={"status": "completed"})).json()[
            "status"
        ] == "completed"
        # Two words of the map mean it, so Brain writes the contract's.
        assert execute(database, "SELECT status FROM runs") == [("completed",)]
        execute(
            database,
            "INSERT INTO runs (id, status) VALUES ('b', 'ok'), ('c', 'completed'), ('d', 'odd')",
        )
        found = (await api.get("/api/runs?status=completed")).json()["runs"]
        assert [each["id"] for each in found] == ["a", "b", "c"]
        assert (
            "'ok'"
            not in problem(await api.patch("/api/runs/b", json={"status": "running"}), 409)[
                "detail"
            ]
        )
        assert "'odd'" in problem(await api.get("/api/runs/d"), 404)["detail"]
        assert (
            "'odd'"
            in problem(await api.patch("/api/runs/d", json={"status": "running"}), 409)["detail"]
        )
        assert [each["id"] for each in await pages(api, limit=1)] == ["a", "b", "c"]


async def test_columns_may_have_other_types(database: str) -> None:
    execute(
        database,
        """
        CREATE TYPE state AS ENUM ('queued', 'running', 'completed', 'failed');
        CREATE TABLE jobs (
            error varchar(20), id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
            status state NOT NULL, progress int, task_id uuid, agent char(5), started_at timestamp,
            completed_at text, extra jsonb
        )""",
    )
    async with serving(database, table="jobs") as api:
        new = await api.post(
            "/api/runs",
            json={"status": "running", "progress": 12.0, "started_at": "2026-01-01T01:00:00+01:00"},
        )
        assert new.json() == {
            "id": "1",
            "status": "running",
            "progress": 12,
            "started_at": "2026-01-01T00:00:00Z",
        }
        ended = (await api.patch("/api/runs/1", json={"status": "completed", "agent": "x"})).json()
        assert ended["completed_at"].endswith("Z")
        assert ended["agent"] == "x", "the padding of char(n) has no meaning"
        for agent in ("x", "x    ", "x" + " " * 9):
            found = (await api.get("/api/runs", params={"agent": agent})).json()["runs"]
            assert [each["id"] for each in found] == ["1"]
        for _ in range(12):
            await api.post("/api/runs", json={})
        assert [each["id"] for each in await pages(api, limit=5)] == [str(i) for i in range(1, 14)]
        assert len((await api.get("/api/runs?status=queued&task_id=no-uuid")).json()["runs"]) == 0
        assert len((await api.get("/api/runs?status=queued")).json()["runs"]) == 12

        assert (
            "12.5" in problem(await api.post("/api/runs", json={"progress": 12.5}), 422)["detail"]
        )
        assert (
            "12.5"
            in problem(await api.patch("/api/runs/2", json={"progress": 12.5}), 422)["detail"]
        )
        assert (
            "nope"
            in problem(await api.patch("/api/runs/2", json={"task_id": "nope"}), 422)["detail"]
        )
        assert (
            "20" in problem(await api.patch("/api/runs/2", json={"error": "x" * 21}), 422)["detail"]
        )
        assert "x" in problem(await api.post("/api/runs", json={"id": "x"}), 422)["detail"]
        for nobody in ("x", "99999999999999999999999", "-1"):
            problem(await api.get(f"/api/runs/{nobody}"), 404)
            problem(await api.patch(f"/api/runs/{nobody}", json={"status": "running"}), 404)
        assert fields(problem(await api.get("/api/runs", params={"cursor": "eA"}), 422)) == [
            "cursor"
        ]


UNFIT: dict[str, tuple[object, str, str]] = {
    # A field, a value that the table's column cannot hold, and how the sentence goes on.
    "progress": (12.5, "'12.5'", 'invalid input syntax for type integer: "12.5"'),
    "task_id": ("nope", "'nope'", 'invalid input syntax for type uuid: "nope"'),
    "agent": ("x" * 6, "'xxxxxx'", "value too long for type character varying(5)"),
    "error": ("9999", "'9999'", "numeric field overflow"),
}


@pytest.mark.parametrize("column_map", ["", "agent=worker"])
async def test_a_value_that_the_column_cannot_hold_is_a_422_that_names_field_value_and_rule(
    any_database: str, column_map: str
) -> None:
    agent = "worker" if column_map else "agent"
    execute(
        any_database,
        "CREATE TABLE jobs (id bigint PRIMARY KEY, status text, progress int, task_id uuid,"
        f" {agent} varchar(5), error numeric(5, 2), started_at text[])",
    )
    async with serving(any_database, table="jobs", columns=column_map) as api:
        assert (await api.post("/api/runs", json={"id": "1"})).status_code == 201
        await api.post("/api/runs", json={"id": "2", "status": "failed"})
        for field, (value, shown, rule) in UNFIT.items():
            body = {"task_id": None, field: value}
            for answer in (
                await api.post("/api/runs", json={"id": "3", **body}),
                await api.patch("/api/runs/1", json=body),
                await api.patch("/api/runs/2", json={field: value}),
            ):
                document = problem(answer, 422)
                assert fields(document) == [field], document
                assert document["detail"].startswith(f"{field} cannot be {shown}: {rule}")
        document = problem(await api.post("/api/runs", json={"id": "x"}), 422)
        assert document["detail"].startswith("id cannot be 'x': ")


async def test_id_and_status_are_all_the_columns_a_table_needs(database: str) -> None:
    execute(
        database,
        'CREATE SCHEMA "My"; CREATE TABLE "My"."Ru""ns; {x}" (id uuid PRIMARY KEY, status text)',
    )
    async with serving(database, table='My.Ru"ns; {x}') as api:
        new = (await api.post("/api/runs", json={"status": "running"})).json()
        assert new.keys() == {"id", "status"}
        path = f"/api/runs/{new['id']}"
        assert (await api.patch(path, json={"status": "completed"})).json() == new | {
            "status": "completed"
        }
        assert fields(problem(await api.patch(path, json={"progress": 1, "agent": "x"}), 422)) == [
            "progress",
            "agent",
        ]
        assert fields(problem(await api.post("/api/runs", json={"agent": "x"}), 422)) == ["agent"]
        assert (await api.get("/api/runs?agent=x")).json()["runs"] == []
        problem(await api.get("/api/runs/not-a-uuid"), 404)


async def test_a_new_run_needs_an_id_where_the_table_has_no_fitting_default(database: str) -> None:
    execute(
        database,
        """CREATE TABLE jobs (id int, status text, progress float GENERATED ALWAYS AS (5) STORED);
        CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY, status text)""",
    )
    async with serving(database, table="jobs") as api:
        assert "give an id" in problem(await api.post("/api/runs", json={}), 422)["detail"]
        assert (await api.post("/api/runs", json={"id": "1"})).json() == {
            "id": "1",
            "status": "queued",
            "progress": 5,
        }
        assert fields(problem(await api.patch("/api/runs/1", json={"progress": 1}), 422)) == [
            "progress"
        ]
    async with serving(database, table="always") as api:
        assert (await api.post("/api/runs", json={})).json()["id"] == "1"
        problem(await api.post("/api/runs", json={"id": "7"}), 422)


async def test_constraints_and_triggers_of_the_table_answer_409_or_422(database: str) -> None:
    execute(
        database,
        """
        CREATE TABLE tasks (id text PRIMARY KEY);
        ALTER TABLE runs ADD FOREIGN KEY (task_id) REFERENCES tasks, ADD UNIQUE (agent);
        INSERT INTO runs (id, agent) VALUES ('a', 'taken'), ('b', NULL);
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN
                IF NEW.error = ''skip'' THEN RETURN NULL; END IF;
                IF NEW.error = ''odd'' THEN RAISE ''not today''; END IF;
                RETURN NEW;
            END';
        CREATE TRIGGER no BEFORE INSERT OR UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION no()""",
    )
    async with serving(database) as api:
        assert (
            "tasks" in problem(await api.patch("/api/runs/b", json={"task_id": "x"}), 422)["detail"]
        )
        assert (
            "(agent)=(taken)"
            in problem(await api.patch("/api/runs/b", json={"agent": "taken"}), 409)["detail"]
        )
        assert (
            "(agent)=(taken)"
            in problem(await api.post("/api/runs", json={"agent": "taken"}), 409)["detail"]
        )
        assert (
            problem(await api.patch("/api/runs/b", json={"error": "odd"}), 422)["detail"]
            == "not today"
        )
        problem(await api.patch("/api/runs/b", json={"error": "skip"}), 409)
        problem(await api.post("/api/runs", json={"error": "skip"}), 409)
        execute(
            database,
            "ALTER TABLE runs ADD needed text NOT NULL DEFAULT ''; "
            "ALTER TABLE runs ALTER needed DROP DEFAULT",
        )
        assert fields(problem(await api.post("/api/runs", json={}), 422)) == ["needed"]
        execute(database, "ALTER TABLE runs ADD CHECK (progress < 50)")
        assert (
            "check" in problem(await api.patch("/api/runs/b", json={"progress": 60}), 422)["detail"]
        )


@pytest.mark.parametrize("partitioned", [False, True])
async def test_a_value_that_a_constraint_excludes_is_a_422_that_names_field_value_and_rule(
    any_database: str, partitioned: bool
) -> None:
    execute(
        any_database,
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 4);"
        "CREATE TABLE jobs (id text PRIMARY KEY, status text CHECK (status <> 'failed'),"
        " worker short, progress int, task_id text CONSTRAINT known CHECK (task_id LIKE 't%'),"
        " CONSTRAINT together CHECK (progress < 50 OR worker IS NULL))"
        + (
            " PARTITION BY LIST (id); CREATE TABLE part PARTITION OF jobs DEFAULT"
            if partitioned
            else ""
        ),
    )
    async with serving(any_database, table="jobs", columns="agent=worker") as api:
        await api.post("/api/runs", json={"id": "a"})
        for body, expected in (
            (
                {"agent": "long one"},
                {"agent": "agent cannot be 'long one': value for domain short"},
            ),
            (
                {"task_id": "x"},
                {"task_id": "task_id cannot be 'x': the table's constraint known is"},
            ),
            ({"status": "failed"}, {"status": "status cannot be 'failed': the table's constraint"}),
            (
                {"progress": 60, "agent": "x"},
                {"progress": "progress cannot be '60': ", "agent": "agent cannot be 'x': "},
            ),
        ):
            for answer in (
                await api.patch("/api/runs/a", json=body),
                await api.post("/api/runs", json={"id": "b", **body}),
            ):
                document = problem(answer, 422)
                assert {each["field"] for each in document["errors"]} == set(expected), document
                for each in document["errors"]:
                    assert each["message"].startswith(expected[each["field"]]), document
                assert "CHECK (" in document["detail"] or "domain" in document["detail"]


async def test_a_dropped_column_fails_one_request(api: httpx.AsyncClient, database: str) -> None:
    await api.post("/api/runs", json={"id": "a", "agent": "x"})
    execute(database, "ALTER TABLE runs DROP COLUMN agent")
    problem(await api.get("/api/runs/a"), 503)
    assert (await api.get("/api/runs/a")).json() == {"id": "a", "status": "queued"}


async def test_a_table_that_only_its_owner_can_fix_is_a_503(
    database: str, superuser_url: str
) -> None:
    async with serving(database, table="missing") as api:
        assert "public.missing" in problem(await api.get("/api/runs"), 503)["detail"]
        execute(database, "CREATE TABLE missing (id text)")
        assert "status" in problem(await api.post("/api/runs", json={}), 503)["detail"]
        execute(database, "ALTER TABLE missing ADD status text")
        assert (await api.post("/api/runs", json={"id": "a"})).status_code == 201
        execute(superuser_url, "ALTER TABLE missing OWNER TO postgres")
        assert "GRANT" in problem(await api.get("/api/runs/a"), 503)["detail"]
        execute(superuser_url, "GRANT SELECT ON missing TO cecelia")
        assert (await api.get("/api/runs/a")).status_code == 200
        assert (
            "GRANT"
            in problem(await api.patch("/api/runs/a", json={"status": "running"}), 503)["detail"]
        )


async def test_settings_of_the_role_change_no_value(database: str, superuser_url: str) -> None:
    name = superuser_url.rpartition("/")[2]
    execute(
        superuser_url,
        f"ALTER ROLE cecelia IN DATABASE {name} SET datestyle = 'SQL, DMY'; "
        f"ALTER ROLE cecelia IN DATABASE {name} SET timezone = 'Asia/Kolkata'; "
        f"ALTER ROLE cecelia IN DATABASE {name} SET client_encoding = 'LATIN1'; "
        f"ALTER ROLE cecelia IN DATABASE {name} SET extra_float_digits = -15",
    )
    async with serving(database) as api:
        new = {
            "id": "€",
            "status": "queued",
            "progress": 33.3,
            "started_at": "2026-11-21T06:32:03.25Z",
        }
        assert (await api.post("/api/runs", json=new)).json() == new
        assert (await api.get("/api/runs/€")).json() == new


# Invalid requests

BAD_VALUES: list[tuple[str, str]] = [
    ('{"progress": NaN}', "progress"),
    ('{"progress": Infinity}', "progress"),
    ('{"progress": 1e999}', "progress"),
    ('{"progress": -1}', "progress"),
    ('{"progress": 100.1}', "progress"),
    ('{"progress": "12"}', "progress"),
    ('{"progress": true}', "progress"),
    ('{"status": "paused"}', "status"),
    ('{"status": null}', "status"),
    ('{"agent": "a\\u0000b"}', "agent"),
    ('{"agent": "\\ud800"}', "agent"),
    ('{"error": 7}', "error"),
    ('{"task_id": ["x"]}', "task_id"),
    ('{"\\ud800": 1}', "body"),
    ('{"colour": "red"}', "colour"),
    ("[]", "body"),
    ("null", "body"),
    ("{", "body"),
    ("", "body"),
]


async def test_a_bad_value_is_a_422_that_names_its_field(api: httpx.AsyncClient) -> None:
    await api.post("/api/runs", json={"id": "a"})
    headers = {"content-type": "application/json"}
    for text, name in BAD_VALUES:
        for answer in (
            await api.post("/api/runs", content=text, headers=headers),
            await api.patch("/api/runs/a", content=text, headers=headers),
        ):
            document = problem(answer, 422)
            assert name in fields(document) or name in document["detail"], text
    assert len((await api.get("/api/runs")).json()["runs"]) == 1


BAD_RUNS: list[dict[str, object]] = [
    {"id": ""},
    {"id": "x" * 1025},
    {"id": 7},
    {"id": "a\0"},
    {"started_at": "2026-11-21T09:30:00"},
    {"started_at": "yesterday"},
    {"started_at": 1700000000},
    {"completed_at": "0001-01-01T00:00:00+14:00"},
    {"completed_at": "infinity"},
]


async def test_a_bad_value_of_a_new_run_is_a_422_that_names_its_field(
    api: httpx.AsyncClient,
) -> None:
    for new in BAD_RUNS:
        assert fields(problem(await api.post("/api/runs", json=new), 422)) == list(new)


async def test_a_long_text_is_stored_whole_and_shown_cut(
    api: httpx.AsyncClient, database: str
) -> None:
    new = {"id": "🙂" * 200, "error": "x" * 500_000}
    answer = await api.post("/api/runs", json=new)
    assert answer.json()["error"] == "x" * 10_000 + "… [cut]"
    assert execute(database, "SELECT length(error) FROM runs") == [(500_000,)]
    problem(await api.post("/api/runs", json={"id": "ab" * 512, "error": "x" * MAX_BODY}), 413)


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(32):
        yield b" " * 65536


async def test_a_body_above_the_limit_is_a_413(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for content in (b" " * 2_000_000, chunks()):
        problem(await api.post("/api/runs", content=content, headers=headers), 413)
    assert (await api.post("/api/runs", json={"id": "a"})).status_code == 201


async def test_a_body_that_no_parser_can_read_is_a_422(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for content in (
        b"[" * 100_000,
        b'{"progress":' + b"9" * 5000 + b"}",
        b'{"id":"\xff"}',
        b"\xff\xfe",
    ):
        answer = await api.post("/api/runs", content=content, headers=headers)
        problem(answer, answer.status_code if answer.status_code in (400, 422) else 422)


async def test_a_patch_may_be_called_a_merge_patch(api: httpx.AsyncClient) -> None:
    """RFC 7396 describes what PATCH does."""
    await api.post("/api/runs", json={"id": "a", "agent": "x"})
    headers = {"Content-Type": "Application/Merge-Patch+JSON; charset=utf-8"}
    change = b'{"agent": null, "progress": 5}'
    answer = await api.patch("/api/runs/a", content=change, headers=headers)
    assert answer.json() == {"id": "a", "status": "queued", "progress": 5}
    problem(await api.post("/api/runs", content=b'{"id": "b"}', headers=headers), 415)


async def test_only_the_content_type_json_can_write(api: httpx.AsyncClient, database: str) -> None:
    new = b'{"id": "a"}'
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/json",
        "",
        None,
        "application/jsonx",
        "text/plain; application/json",
        "application/json-patch+json",
    ):
        headers = {} if kind is None else {"content-type": kind}
        problem(await api.post("/api/runs", content=new, headers=headers), 415)
        refused = problem(await api.patch("/api/runs/a", content=b"{}", headers=headers), 415)
        assert repr(kind)[1:-1] in refused["detail"] if kind else "has none" in refused["detail"]
    json_headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused = problem(
        await api.post("/api/runs", content=gzip.compress(new), headers=json_headers), 415
    )
    assert refused["detail"] == "a body has no Content-Encoding, and this one has 'gzip'"
    assert execute(database, "SELECT count(*) FROM runs") == [(0,)]
    json_headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await api.post("/api/runs", content=new, headers=json_headers)).status_code == 201
    json_headers["content-encoding"] = "identity"
    assert (await api.post("/api/runs", content=new, headers=json_headers)).status_code == 409


BAD_QUERIES: list[tuple[str, str]] = [
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=x", "limit"),
    ("limit=1&limit=2", "limit"),
    ("cursor=YQ&cursor=YQ", "cursor"),
    ("status=paused", "status"),
    ("stauts=running", "stauts"),
    ("agent=%00", "agent"),
    ("cursor=%25%25", "cursor"),
    ("cursor=AA", "cursor"),
    ("cursor=%C3%A4", "cursor"),
    ("cursor=_w", "cursor"),
    ("agent=", "agent"),
    ("agent=%FF", "query"),
    ("&".join(f"agent={i}" for i in range(101)), "agent"),
]


async def test_a_bad_query_is_a_422_that_names_its_parameter(api: httpx.AsyncClient) -> None:
    for query, name in BAD_QUERIES:
        document = problem(await api.get(f"/api/runs?{query}"), 422)
        assert fields(document) == [name], query
        assert document["instance"] == "/api/runs"


async def test_a_bad_id_in_the_path_is_a_422(api: httpx.AsyncClient) -> None:
    for path in (f"/api/runs/{'x' * 1025}", "/api/runs/a%00b"):
        assert fields(problem(await api.get(path), 422)) == ["run_id"]
        assert fields(problem(await api.patch(path, json={"progress": 1}), 422)) == ["run_id"]


async def test_an_unknown_path_is_a_404_and_an_unknown_method_a_405(api: httpx.AsyncClient) -> None:
    for path in ("/", "/api", "/api/run", "/%F0%9F%99%82?secret=1"):
        problem(await api.get(path), 404)
    for answer in (
        await api.delete("/api/runs/a"),
        await api.put("/api/runs/a"),
        await api.delete("/api/runs"),
    ):
        problem(answer, 405)
    assert (await api.put("/api/runs")).headers["allow"] == "GET, POST"
    assert (await api.options("/api/runs/a")).headers["allow"] == "GET, PATCH"


async def test_a_body_that_is_not_utf_8_is_a_422(api: httpx.AsyncClient) -> None:
    answer = await api.post(
        "/api/runs", content=b'{"id": "\xff"}', headers={"Content-Type": "application/json"}
    )
    problem(answer, 422)
    message = "the body is not UTF-8: byte 0xff at position 8"
    assert answer.json()["errors"] == [{"field": "body", "message": message}]


# Without the database


async def test_requests_are_503_while_the_database_is_down_and_succeed_after_it() -> None:
    with running() as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        async with serving(url) as api:
            assert (await api.post("/api/runs", json={"id": "a"})).status_code == 201
            await asyncio.to_thread(server.kill)
            answers = await asyncio.gather(
                api.get("/api/runs"),
                api.get("/api/runs/a"),
                api.post("/api/runs", json={"id": "b"}),
                api.patch("/api/runs/a", json={"agent": "x"}),
            )
            for answer in answers:
                problem(answer, 503)
                assert str(server.port) not in answer.text
            await asyncio.to_thread(server.start)
            assert (await api.patch("/api/runs/a", json={"agent": "x"})).status_code == 200
            await asyncio.to_thread(server.restart)
            assert (await api.get("/api/runs/a")).status_code == 200


async def test_the_api_starts_without_a_database(postgres: Postgres) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"postgresql://cecelia@127.0.0.1:{nobody.getsockname()[1]}/x"
        async with serving(gone) as api, serving(postgres.url("no_such_database", ROLE)) as other:
            for answer in await asyncio.gather(api.get("/api/runs"), other.get("/api/runs")):
                problem(answer, 503)


async def test_a_request_that_waits_for_a_lock_ends_with_503(database: str) -> None:
    async with (
        serving(database) as api,
        await psycopg.AsyncConnection.connect(database) as other,
    ):
        await api.post("/api/runs", json={"id": "a"})
        await other.execute("LOCK TABLE runs")
        answer = await api.get("/api/runs/a")
        assert "lock timeout" in problem(answer, 503)["detail"]


async def test_blocked_requests_of_one_address_leave_connections_to_others(
    api: httpx.AsyncClient, database: str
) -> None:
    """Of twelve changes of a locked row, four wait at the database, the others for these four."""
    await api.post("/api/runs", json={"id": "a"})
    async with (
        await psycopg.AsyncConnection.connect(database) as other,
        httpx.AsyncClient(
            base_url=api.base_url,
            timeout=PATIENCE,
            transport=httpx.AsyncHTTPTransport(local_address="127.0.0.2"),
        ) as bad,
    ):
        await other.execute("UPDATE runs SET progress = 1 WHERE id = 'a'")
        loop = asyncio.get_running_loop()
        began = loop.time()
        changes = [
            asyncio.create_task(bad.patch("/api/runs/a", json={"agent": "x"})) for _ in range(12)
        ]
        locks = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'brain-api' AND wait_event_type = 'Lock'"
        )
        await eventually(lambda: execute(database, locks) == [(concurrency.MAX_REQUESTS,)])
        assert (await api.get("/api/runs/a")).status_code == 200
        assert not any(change.done() for change in changes), "while they all wait"
        for _ in range(19):
            assert (await api.get("/api/runs/a")).status_code == 200
        assert execute(database, locks)[0][0] <= concurrency.MAX_REQUESTS

        def refused() -> list[httpx.Response]:
            answers = [change.result() for change in changes if change.done()]
            return [answer for answer in answers if answer.status_code == 429]

        # Those that wait for a row wait in a queue, each for up to lock_timeout, so a place may be
        # late.
        await eventually(lambda: len(refused()) >= 4)
        assert len(refused()) <= 8
        assert "4 requests of 127.0.0.2 are at the database" in problem(refused()[0], 429)["detail"]
        assert loop.time() - began > concurrency.MAX_WAIT
        await other.rollback()
        await asyncio.gather(*changes)
        assert (await bad.patch("/api/runs/a", json={"agent": "y"})).status_code == 200


async def test_a_cancelled_request_gives_back_its_place() -> None:
    found = concurrency.ConcurrencyLimiter(RejectionCounter())
    async with asyncio.timeout(PATIENCE), contextlib.AsyncExitStack() as taken:
        for _ in range(concurrency.MAX_REQUESTS):
            await taken.enter_async_context(found.take("one"))
        gone = asyncio.create_task(found.take("one").__aenter__())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        async with found.take("another"):
            pass
    async with found.take("one"):
        assert len(found.addresses) == 1
    assert not found.addresses


async def test_a_change_whose_connection_dies_is_a_503(
    api: httpx.AsyncClient, database: str, superuser_url: str
) -> None:
    await api.post("/api/runs", json={"id": "a"})
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("LOCK TABLE runs")
        change = asyncio.create_task(api.patch("/api/runs/a", json={"agent": "x"}))
        await asyncio.sleep(0.1)
        execute(
            superuser_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'brain-api'",
        )
        problem(await change, 503)
    assert (await api.patch("/api/runs/a", json={"agent": "x"})).status_code == 200


# The description


async def test_openapi_describes_each_operation_and_its_answers(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/openapi.json")).json()
    assert set(schema["paths"]) == {"/api/runs", "/api/runs/{run_id}"}
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            for status, answer in operation["responses"].items():
                assert answer["description"]
                if status == "304":
                    assert "content" not in answer
                    continue
                assert list(answer["content"]) == [
                    "application/json" if status[0] == "2" else "application/problem+json"
                ]
    components = schema["components"]["schemas"]
    assert "HTTPValidationError" not in components
    text = json.dumps(schema)
    for name in ("WSMessage", "RunData", "RunList", "RunCreate", "RunPatch", "ProblemDocument"):
        assert name in components
        assert f"#/components/schemas/{name}" in text or name == "WSMessage"
    assert "Swagger" in (await api.get("/docs")).text or "swagger" in (await api.get("/docs")).text

    run = (await api.post("/api/runs", json={"status": "running", "progress": 5})).json()
    sent = message((run["id"], "running", 5, None, None, run["started_at"], None, None), 0)
    wire = json.loads(sent[sent.index(b"{") :])
    whole = {"components": schema["components"], "$ref": "#/components/schemas/WSMessage"}
    jsonschema.validate(wire, whole)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wire | {"extra": 1}, whole)
    jsonschema.validate(
        (await api.get("/api/runs")).json(), {**whole, "$ref": "#/components/schemas/RunList"}
    )
    refused = (await api.get("/api/runs?limit=0")).json()
    jsonschema.validate(refused, {**whole, "$ref": "#/components/schemas/ProblemDocument"})


async def test_a_page_of_another_origin_may_read_and_write(api: httpx.AsyncClient) -> None:
    """CORS (the Fetch standard, section 3.2): the access rules have already let the page in."""
    page = {"Origin": "http://localhost:3000"}
    asked = {
        "Access-Control-Request-Method": "PATCH",
        # Sentry and OpenTelemetry add the last three to the requests of a page.
        "Access-Control-Request-Headers": "baggage,content-type,if-match,sentry-trace,traceparent",
    }
    preflight = await api.options("/api/runs/r", headers=page | asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower().split(",")
    assert {each.strip() for each in allowed} >= {"content-type", "if-match", "traceparent"}
    missing = await api.get("/api/runs/nobody", headers=page)
    assert missing.status_code == 404
    assert missing.headers["access-control-allow-origin"] == "*"
    made = await api.post("/api/runs", json={"id": "r"}, headers=page)
    assert made.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in made.headers


async def test_a_filter_on_a_missing_column_matches_no_run(database: str) -> None:
    execute(database, "CREATE TABLE few (id text PRIMARY KEY, status text)")
    execute(database, "INSERT INTO few VALUES ('a', 'queued')")
    async with serving(database, table="public.few") as client:
        assert [run["id"] for run in (await client.get("/api/runs")).json()["runs"]] == ["a"]
        assert (await client.get("/api/runs?agent=x")).json()["runs"] == []
