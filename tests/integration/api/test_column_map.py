"""The API for a table whose columns have other names: its own words stay those of the contract."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.api import fields, problem, serving
from tests.support.postgres import execute

NAME = '"My %s"."Jobs {0}"'
COLUMNS = (
    'id="runId",status="State {}",progress="100 %s {0}",agent="a ""quoted"" agent",'
    "started_at=startedAt,completed_at=ended_at,error=errorMessage"
)
CREATE = f"""
CREATE SCHEMA "My %s";
CREATE TABLE {NAME} (
    id bigserial, agent int,
    "runId" text PRIMARY KEY, "State {{}}" text NOT NULL, "100 %s {{0}}" float8, task_id text,
    "a ""quoted"" agent" text NOT NULL DEFAULT 'x', "startedAt" timestamptz, ended_at timestamp,
    "errorMessage" text)
"""


@pytest.fixture
async def api(any_database: str) -> AsyncIterator[httpx.AsyncClient]:
    execute(any_database, CREATE)
    async with serving(any_database, table=NAME, columns=COLUMNS) as client:
        yield client


async def test_runs_are_created_changed_and_read(api: httpx.AsyncClient, any_database: str) -> None:
    given = {"id": "a", "progress": 5, "task_id": "t", "agent": "w", "error": "e"}
    created = await api.post("/api/runs", json=given)
    assert created.status_code == 201
    assert created.json() == {**given, "status": "queued"}
    claim = await api.patch(
        "/api/runs/a", json={"status": "running"}, headers={"If-Match": created.headers["etag"]}
    )
    assert claim.json().keys() == {*given, "status", "started_at"}
    lost = await api.patch(
        "/api/runs/a", json={"status": "running"}, headers={"If-Match": created.headers["etag"]}
    )
    problem(lost, 412)
    ended = await api.patch("/api/runs/a", json={"status": "failed", "progress": 50, "error": None})
    assert ended.json().keys() == {*given, "status", "started_at", "completed_at"} - {"error"}
    document = problem(await api.patch("/api/runs/a", json={"progress": 60, "agent": "w"}), 409)
    assert fields(document) == ["progress"]
    read = await api.get("/api/runs/a")
    assert (read.json(), read.headers["etag"]) == (ended.json(), ended.headers["etag"])
    execute(any_database, f"UPDATE {NAME} SET agent = 7")
    assert (await api.get("/api/runs/a")).headers["etag"] == ended.headers["etag"]


async def test_pages_are_filtered_and_follow_each_other(
    api: httpx.AsyncClient, any_database: str
) -> None:
    insert = f'INSERT INTO {NAME} ("runId", "State {{}}", task_id, "a ""quoted"" agent") '
    execute(
        any_database,
        f"{insert} SELECT 'r' || i, CASE i % 2 WHEN 0 THEN 'queued' ELSE 'Running' END, i, i % 3"
        " FROM generate_series(1, 9) i",
    )
    found: list[str] = []
    cursor = ""
    while True:
        page = (await api.get(f"/api/runs?limit=2&status=running{cursor}")).json()
        found += [run["id"] for run in page["runs"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ["r1", "r3", "r5", "r7", "r9"]
    page = (await api.get("/api/runs?agent=0&run_id=r3&run_id=r6&task_id=6&task_id=9")).json()
    assert [run["id"] for run in page["runs"]] == ["r6"]


async def test_errors_name_the_fields_of_the_contract(
    api: httpx.AsyncClient, any_database: str
) -> None:
    assert (await api.post("/api/runs", json={"id": "a"})).status_code == 201
    document = problem(await api.post("/api/runs", json={"id": "a"}), 409)
    assert document["detail"] == "there is a run 'a' already: change that one"
    document = problem(await api.patch("/api/runs/a", json={"agent": None}), 422)
    assert fields(document) == ["agent"]
    problem(await api.get("/api/runs/b"), 404)
    execute(any_database, f'ALTER TABLE {NAME} DROP CONSTRAINT "Jobs {{0}}_pkey"')
    execute(any_database, f"ALTER TABLE {NAME} ADD PRIMARY KEY (id)")  # which is not the run's id
    execute(any_database, f"""INSERT INTO {NAME} ("runId", "State {{}}") VALUES ('a', 'queued')""")
    async with serving(any_database, table=NAME, columns=COLUMNS) as fresh:
        document = problem(await fresh.patch("/api/runs/a", json={"progress": 5}), 409)
    assert "more than one row" in document["detail"]


async def test_a_column_that_is_only_named_as_a_field_is_none(
    any_database: str,
) -> None:
    """The map gives it to another field, or another column to the field."""
    execute(any_database, "CREATE TABLE jobs (id text, status text, task_id text, error text)")
    async with serving(any_database, table="jobs", columns="agent=task_id") as client:
        assert (await client.post("/api/runs", json={"id": "a", "agent": "w"})).json()[
            "agent"
        ] == "w"
        document = problem(await client.post("/api/runs", json={"id": "b", "task_id": "t"}), 422)
        assert fields(document) == ["task_id"]
