"""What a PATCH may change, and that nobody changes what he has not seen: ends, and claims."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import psycopg
import pytest
from psycopg import conninfo

from brain.contract.events import Changes, Snapshot
from brain.delivery.board import Board
from tests.support.api import fields, problem, serving
from tests.support.hints import follows, paste
from tests.support.postgres import execute


@pytest.fixture
async def api(any_database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(any_database) as client:
        yield client


ENDED = {
    "id": "a",
    "status": "completed",
    "progress": 100,
    "agent": "x",
    "completed_at": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"progress": 50}, ["progress"]),
        ({"progress": None}, ["progress"]),
        ({"agent": "y"}, ["agent"]),
        ({"error": ""}, ["error"]),
        ({"task_id": "t", "agent": "x"}, ["task_id"]),
        ({"status": "completed", "progress": 50, "error": "e"}, ["progress", "error"]),
    ],
)
async def test_a_change_of_an_ended_run_is_a_409_and_changes_nothing(
    api: httpx.AsyncClient,
    any_database: str,
    change: dict[str, object],
    changed: list[str],
) -> None:
    await api.post("/api/runs", json=ENDED)
    before = execute(any_database, "SELECT ctid, xmin, runs::text FROM runs")
    document = problem(await api.patch("/api/runs/a", json=change), 409)
    assert "'a' is completed, and an end is final" in document["detail"]
    assert fields(document) == changed
    assert all(name in document["detail"] for name in changed)
    assert execute(any_database, "SELECT ctid, xmin, runs::text FROM runs") == before


@pytest.mark.parametrize(
    "change",
    [
        {"status": "completed"},
        {"progress": 100.0},
        {"error": None, "task_id": None},
        {"status": "completed", "progress": 100, "agent": "x"},
    ],
)
async def test_a_change_that_repeats_what_is_true_of_an_ended_run_is_a_200(
    api: httpx.AsyncClient, any_database: str, change: dict[str, object]
) -> None:
    etag = (await api.post("/api/runs", json=ENDED)).headers["etag"]
    before = execute(any_database, "SELECT ctid, xmin, runs::text FROM runs")
    answer = await api.patch("/api/runs/a", json=change)
    assert (answer.status_code, answer.json(), answer.headers["etag"]) == (200, ENDED, etag)
    assert execute(any_database, "SELECT ctid, xmin, runs::text FROM runs") == before


async def test_a_change_that_waited_for_the_end_of_a_run_does_not_change_it(
    api: httpx.AsyncClient, any_database: str
) -> None:
    await api.post("/api/runs", json={"id": "a", "status": "running"})
    async with await psycopg.AsyncConnection.connect(any_database) as other:
        await other.execute("UPDATE runs SET status = 'completed'")
        change = asyncio.create_task(api.patch("/api/runs/a", json={"progress": 50}))
        await asyncio.sleep(0.1)
        assert not change.done()
        await other.commit()
    problem(await change, 409)
    assert "progress" not in (await api.get("/api/runs/a")).json()


async def test_a_value_that_no_column_holds_is_a_422_for_an_ended_run_too(
    any_database: str,
) -> None:
    execute(
        any_database,
        "CREATE TABLE few (id text PRIMARY KEY, status text, progress int, task_id json)",
    )
    async with serving(any_database, table="few") as api:
        new = {"id": "a", "status": "failed", "progress": 5, "task_id": '{"x": 1}'}
        await api.post("/api/runs", json=new)
        problem(await api.patch("/api/runs/a", json={"progress": 12.5}), 422)
        same = {"progress": 5, "task_id": '{"x": 1}'}
        assert (await api.patch("/api/runs/a", json=same)).status_code == 200
        problem(await api.patch("/api/runs/a", json={"task_id": "{}"}), 409)


# Claims


@pytest.mark.parametrize("form", ["{}", '"x-y", {}', 'W/"1" , {} ,'])
async def test_one_of_four_workers_that_claim_a_run_wins(
    api: httpx.AsyncClient, any_database: str, form: str
) -> None:
    execute(any_database, "CREATE TABLE starts (at timestamptz DEFAULT clock_timestamp())")
    execute(
        any_database,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO starts DEFAULT VALUES; RETURN NULL; END';"
        "CREATE TRIGGER note AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION note()",
    )
    for number in range(10):
        path = f"/api/runs/{number}"
        etag = (await api.post("/api/runs", json={"id": str(number)})).headers["etag"]
        headers = {"If-Match": form.format(etag)}
        async with AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=api.base_url, verify=False)
                )
                for _ in range(4)
            ]
            answers = await asyncio.gather(
                *(
                    worker.patch(path, json={"status": "running", "agent": str(i)}, headers=headers)
                    for i, worker in enumerate(workers)
                )
            )
        won = [answer for answer in answers if answer.status_code == 200]
        assert len(won) == 1
        now = await api.get(path)
        assert now.content == won[0].content
        assert now.headers["etag"] == won[0].headers["etag"] != etag
        for answer in answers:
            if answer is not won[0]:
                document = problem(answer, 412)
                assert f"its ETag is {now.headers['etag']}" in document["detail"]
                assert answer.headers["etag"] == now.headers["etag"]
    assert execute(any_database, "SELECT count(*) FROM starts") == [(10,)]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_a_claim_that_waits_for_another_one_gets_412(
    any_database: str, isolation: str
) -> None:
    """Whatever the isolation that transactions of the database have."""
    name = conninfo.conninfo_to_dict(any_database)["dbname"]
    alter = f"ALTER DATABASE {name} SET default_transaction_isolation"
    execute(any_database, f"{alter} = '{isolation}'")
    try:
        async with serving(any_database) as api:
            await _wait_to_claim(api, any_database)
    finally:
        execute(any_database, f"{alter} TO DEFAULT")


async def _wait_to_claim(api: httpx.AsyncClient, any_database: str) -> None:
    etag = (await api.post("/api/runs", json={"id": "a"})).headers["etag"]
    async with await psycopg.AsyncConnection.connect(any_database) as other:
        await other.execute("UPDATE runs SET status = 'running', agent = 'other'")
        claim = asyncio.create_task(
            api.patch("/api/runs/a", json={"status": "running"}, headers={"If-Match": etag})
        )
        await asyncio.sleep(0.1)
        assert not claim.done()
        await other.commit()
    problem(await claim, 412)


async def test_every_change_that_the_api_shows_changes_the_etag_and_no_other(
    api: httpx.AsyncClient, any_database: str
) -> None:
    execute(any_database, "ALTER TABLE runs ADD heartbeat timestamptz")
    new = await api.post("/api/runs", json={"id": "a", "agent": "x"})
    seen = [new.headers["etag"]]
    for change in (
        "task_id = ''",
        "task_id = NULL, error = ''",
        "agent = 'y'",
        "progress = 0",
        "started_at = '2026-01-01'",
        "completed_at = '2026-01-01'",
        "status = 'running'",
        "error = repeat('x', 20000)",
        "id = 'b'",
    ):
        execute(any_database, f"UPDATE runs SET {change}")
        path = f"/api/runs/{execute(any_database, 'SELECT id FROM runs')[0][0]}"
        seen.append((await api.get(path)).headers["etag"])
        execute(any_database, "UPDATE runs SET heartbeat = now()")
        assert (await api.get(path)).headers["etag"] == seen[-1]
    assert len(set(seen)) == len(seen)
    assert all(tag.startswith('"') and tag.endswith('"') for tag in seen)


async def test_a_get_is_304_while_the_run_is_as_it_was(api: httpx.AsyncClient) -> None:
    etag = (await api.post("/api/runs", json={"id": "a"})).headers["etag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = await api.get("/api/runs/a", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert (await api.get("/api/runs/a", headers={"If-None-Match": '"x"'})).status_code == 200
    problem(await api.get("/api/runs/b", headers={"If-None-Match": "*"}), 404)
    problem(await api.get("/api/runs/a", headers={"If-Match": '"x"'}), 412)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("If-Match", "*")], 200),
        ([("If-Match", '"x"')], 412),
        ([("If-Match", "W/{}")], 412),  # If-Match compares strongly
        ([("If-Match", '"x"'), ("If-Match", "{}")], 200),
        ([("If-None-Match", "{}")], 412),
        ([("If-None-Match", "W/{}")], 412),
        ([("If-None-Match", "*")], 412),
        ([("If-None-Match", '"x"')], 200),
        ([("If-Match", "{}"), ("If-None-Match", '"x"')], 200),
    ],
)
async def test_the_preconditions_of_a_change_are_those_of_rfc_9110(
    api: httpx.AsyncClient, headers: list[tuple[str, str]], status: int
) -> None:
    etag = (await api.post("/api/runs", json={"id": "a"})).headers["etag"]
    sent = [(name, value.format(etag)) for name, value in headers]
    answer = await api.patch("/api/runs/a", json={"progress": 1}, headers=sent)
    assert answer.status_code == status, answer.text
    assert ((await api.get("/api/runs/a")).headers["etag"] == etag) == (status == 412)


async def test_what_fails_without_a_precondition_fails_so_with_one(api: httpx.AsyncClient) -> None:
    """RFC 9110, 13.2.1."""
    etag = (await api.post("/api/runs", json=ENDED)).headers["etag"]
    stale = {"If-Match": '"x"'}
    problem(await api.patch("/api/runs/b", json={"progress": 1}, headers={"If-Match": "*"}), 404)
    problem(await api.patch("/api/runs/a", json={"progress": 1}, headers=stale), 409)
    problem(await api.patch("/api/runs/a", json={"status": "running"}, headers=stale), 409)
    problem(await api.patch("/api/runs/a", json={"progress": 100}, headers=stale), 412)
    same = await api.patch("/api/runs/a", json={"progress": 100}, headers={"If-Match": etag})
    assert same.status_code == 200


async def test_a_header_that_lists_no_etags_is_a_422(api: httpx.AsyncClient) -> None:
    await api.post("/api/runs", json={"id": "a"})
    for name in ("If-Match", "If-None-Match"):
        for value in ("x", '"x', "*, *", '"a" "b"', 'w/"a"'):
            for answer in (
                await api.get("/api/runs/a", headers={name: value}),
                await api.patch("/api/runs/a", json={"progress": 1}, headers={name: value}),
            ):
                document = problem(answer, 422)
                assert fields(document) == [name]
                assert document["detail"].endswith(f"not {value!a}")


async def test_a_view_has_etags_too(any_database: str) -> None:
    execute(any_database, "CREATE VIEW seen AS SELECT * FROM runs")
    async with serving(any_database, table="seen") as api:
        etag = (await api.post("/api/runs", json={"id": "a"})).headers["etag"]
        claim = {"status": "running"}
        won = await api.patch("/api/runs/a", json=claim, headers={"If-Match": etag})
        assert won.status_code == 200
        problem(await api.patch("/api/runs/a", json=claim, headers={"If-Match": etag}), 412)


async def test_a_run_that_the_board_has_newer_has_an_etag_of_its_own(any_database: str) -> None:
    board = Board(1 << 20)
    board.apply(Snapshot(rows=[], at=1000))
    async with serving(any_database, board=board) as api:
        old = (await api.post("/api/runs", json={"id": "a"})).headers["etag"]
        xid = execute(any_database, "SELECT (pg_current_xact_id()::text::bigint) + 1000")[0][0]
        row = ("a", "running", None, None, None, None, None, None)
        board.apply(Changes([("update", row)], at=2000, xid=xid))
        now = await api.get("/api/runs/a")
        assert (now.json()["status"], now.headers["etag"]) != ("queued", old)
        problem(
            await api.patch(
                "/api/runs/a", json={"progress": 1}, headers={"If-Match": now.headers["etag"]}
            ),
            412,
        )


# Row security


@follows("CREATE POLICY brain ON {} TO {} USING (true)")
@pytest.mark.parametrize("write", ["POST", "PATCH"])
async def test_a_row_that_a_policy_rejects_is_a_403_that_names_the_policy(
    any_database: str, write: str
) -> None:
    execute(
        any_database,
        "ALTER TABLE runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY mine ON runs USING (agent = 'me') WITH CHECK (agent = 'me');"
        "INSERT INTO runs (id, agent) VALUES ('a', 'me')",
    )
    async with serving(any_database) as api:

        async def attempt() -> httpx.Response:
            if write == "POST":
                return await api.post("/api/runs", json={"id": "b", "agent": "you"})
            return await api.patch("/api/runs/a", json={"agent": "you"})

        detail = problem(await attempt(), 403)["detail"]
        assert "row-level security policy" in detail
        assert "GRANT" not in detail
        _, hint, policy = detail.partition("such as ")
        assert hint
        paste(f"{policy};", any_database)
        assert (await attempt()).is_success, "the hint works when it is pasted"


# Columns that hold no time


@pytest.mark.parametrize("kind", ["bigint", "float8", "interval", "jsonb", "time", "date", "text"])
async def test_a_run_starts_and_ends_whatever_the_types_of_its_times(
    any_database: str, kind: str
) -> None:
    """now() cannot become a bigint, and the change of the status must not fail for that."""
    execute(
        any_database,
        "ALTER TABLE runs DROP started_at, DROP completed_at;"
        f"ALTER TABLE runs ADD started_at {kind}, ADD completed_at {kind}",
    )
    async with serving(any_database) as api:
        assert (await api.post("/api/runs", json={"id": "a"})).status_code == 201
        started = await api.patch("/api/runs/a", json={"status": "running"})
        assert started.status_code == 200, started.text
        assert ("started_at" in started.json()) == (kind in ("date", "text"))
        ended = await api.patch("/api/runs/a", json={"status": "failed"})
        assert ended.status_code == 200, ended.text
