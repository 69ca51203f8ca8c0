"""`/ws?include=…` of a running Brain: deletes, `ready` and `source`, streaming and polling."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from brain.contract.close_codes import GAP
from brain.contract.messages import parse_time
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, message, served
from tests.support.template import ROLE, TEMPLATE

EVERYTHING = "?include=deleted,ready,source"
LOOSE = "ALTER TABLE runs DROP CONSTRAINT runs_status_check"


@pytest.fixture(scope="module")
def database(any_postgres: Postgres) -> Iterator[str]:
    name = any_postgres.create_database(TEMPLATE, ROLE)
    yield any_postgres.url(name, ROLE)
    any_postgres.drop_database(name)


@pytest.fixture(scope="module", params=["replication", "poll"])
def brain(database: str, request: pytest.FixtureRequest) -> Iterator[Brain]:
    execute(database, f"{LOOSE.replace('CONSTRAINT', 'CONSTRAINT IF EXISTS')}; DELETE FROM runs")
    source = "auto" if request.param == "replication" else "poll"
    with served(
        database_url=database, source=source, follows=request.param, poll_interval=0.02
    ) as brain:
        brain.source = request.param  # type: ignore[attr-defined]
        yield brain


@pytest.fixture
def streaming(brain: Brain) -> Brain:
    if polls(brain):
        pytest.skip("a poll sees neither")
    return brain


def polls(brain: Brain) -> bool:
    return brain.source == "poll"  # type: ignore[attr-defined, no-any-return]


async def sql(database: str, *statements: str) -> None:
    for statement in statements:
        await asyncio.to_thread(execute, database, statement)


async def next_of(client: ClientConnection, *types: str) -> dict[str, Any]:
    """The next message of one of these types."""
    while True:
        found = await message(client)
        if found["type"] in types:
            return found


async def about(client: ClientConnection, run_id: str, *types: str) -> dict[str, Any]:
    while True:
        found = await message(client)
        if found.get("data", {}).get("id") == run_id and (not types or found["type"] in types):
            return found


async def closed(client: ClientConnection) -> int:
    """Read until the connection is closed; its code."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE):
            while True:
                await client.recv()
    assert client.close_code is not None
    return client.close_code


async def rest(client: ClientConnection, marker: str) -> AsyncIterator[dict[str, Any]]:
    """What a client is sent before it hears of this run."""
    while True:
        found = await message(client)
        if found["data"]["id"] == marker:
            return
        yield found


async def test_an_unknown_word_is_a_400_that_names_it(brain: Brain) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with brain.connect("?include=deleted&include=ready,ping"):
            pass
    assert refused.value.response.status_code == 400
    detail = json.loads(refused.value.response.body or b"{}")["detail"]
    assert detail == "include is one or more of deleted, ready, source, not 'ping'"


async def test_the_delete_of_an_active_run_reaches_clients_that_include_deletes(
    brain: Brain, database: str
) -> None:
    async with (
        brain.connect("?include=deleted") as told,
        brain.connect("?include=deleted&status=running") as running,
        brain.connect("?include=deleted&status=failed") as failed,
        brain.connect() as default,
    ):
        await sql(database, "INSERT INTO runs (id, status) VALUES ('r', 'running')")
        for client in (told, running, default):
            await about(client, "r", "run_update")
        await sql(database, "DELETE FROM runs WHERE id = 'r'")
        for client in (told, running):
            found = await message(client)
            assert found["type"] == "run_deleted"
            assert found["data"] == {"id": "r"}
            assert set(found) == {"type", "data", "timestamp"}
            parse_time(found["timestamp"])
        await sql(database, "INSERT INTO runs (id, status) VALUES ('m', 'failed')")
        assert [each async for each in rest(default, "m")] == []
        assert [each async for each in rest(failed, "m")] == []
        await sql(database, "DELETE FROM runs")


async def test_a_client_that_comes_back_is_told_of_deletes(brain: Brain, database: str) -> None:
    async with brain.connect("?include=deleted") as client:
        await sql(database, "INSERT INTO runs (id, status) VALUES ('s', 'running')")
        last = await about(client, "s")
    async with brain.connect("?include=deleted") as other:
        await sql(database, "UPDATE runs SET status = 'queued'", "DELETE FROM runs")
        await about(other, "s", "run_deleted")
    since = quote(last["timestamp"])
    for query, types in (
        (f"?since={since}&include=deleted,ready", ["run_deleted", "ready"]),
        (f"?since={since}&include=deleted,ready&status=running", ["run_deleted", "ready"]),
        (f"?since={since}&include=deleted,ready&status=failed", ["ready"]),
        (f"?since={since}&include=ready", ["ready"]),
        ("?snapshot=true&include=deleted,ready", ["ready"]),
    ):
        async with brain.connect(query) as client:
            assert [(await message(client))["type"] for _ in types] == types, query


async def test_a_run_that_leaves_the_contract_is_told_like_a_deleted_one(
    brain: Brain, database: str
) -> None:
    """And who shows the running runs hears of its end when it comes back, without the option."""
    async with (
        brain.connect("?include=deleted") as told,
        brain.connect("?status=running") as running,
    ):
        await sql(database, "INSERT INTO runs (id, status) VALUES ('p', 'running')")
        for client in (told, running):
            await about(client, "p")
        await sql(database, "UPDATE runs SET status = 'paused' WHERE id = 'p'")
        assert (await about(told, "p"))["type"] == "run_deleted"
        await sql(database, "UPDATE runs SET progress = 1 WHERE id = 'p'")
        await sql(database, "UPDATE runs SET status = 'completed' WHERE id = 'p'")
        assert (await about(running, "p"))["type"] == "run_complete"
        assert (await about(told, "p"))["type"] == "run_complete", "and it was told once"
        await sql(database, "DELETE FROM runs")


async def test_a_finished_run_that_is_deleted_is_told_while_streaming(
    streaming: Brain, database: str
) -> None:
    """Also one that Brain does not hold, and one whose id changes (T9)."""
    async with streaming.connect("?include=deleted") as client:
        await sql(database, "INSERT INTO runs (id, status) VALUES ('f', 'completed')")
        await about(client, "f")
        await sql(database, "UPDATE runs SET id = 'g' WHERE id = 'f'")
        assert (await about(client, "f"))["type"] == "run_deleted"
        assert (await about(client, "g"))["type"] == "run_complete"
        await sql(database, "DELETE FROM runs WHERE id = 'g'")
        assert (await about(client, "g"))["type"] == "run_deleted"


async def test_a_truncate_ends_clients_that_include_deletes(
    streaming: Brain, database: str
) -> None:
    await sql(database, "INSERT INTO runs (id, status) VALUES ('t', 'completed')")
    async with (
        streaming.connect("?include=deleted,ready&status=running") as told,
        streaming.connect("?snapshot=true&include=ready") as default,
    ):
        await next_of(told, "ready")
        last = await next_of(default, "ready")
        await sql(database, "TRUNCATE runs")
        assert await closed(told) == GAP.code
        await sql(database, "INSERT INTO runs (id) VALUES ('after')")
        await about(default, "after")
        answer = await asyncio.to_thread(streaming.get, "/api/runs")
    for since, include, code in (
        (last["timestamp"], "deleted", GAP.code),
        (last["timestamp"], "ready", None),
        (answer[1]["timestamp"], "deleted,ready", None),
    ):
        async with streaming.connect(f"?since={quote(since)}&include={include}") as client:
            if code is None:
                await next_of(client, "ready")
            else:
                assert await closed(client) == code


async def test_a_stream_that_is_interrupted_ends_clients_that_include_deletes(
    streaming: Brain, database: str, any_postgres: Postgres
) -> None:
    """Nobody can name the finished runs that were deleted meanwhile."""
    async with (
        streaming.connect(EVERYTHING) as told,
        streaming.connect("?include=source,ready") as default,
    ):
        assert (await next_of(told, "source"))["data"]["source"] == "replication"
        await next_of(default, "source")
        await sql(
            any_postgres.url(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])),
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = current_database()",
        )
        assert await closed(told) == GAP.code
        # The others stay, and see the change of the source.
        seen = [(await next_of(default, "source"))["data"]["source"] for _ in range(2)]
        while seen[-1] != "replication":
            seen.append((await next_of(default, "source"))["data"]["source"])
        assert "poll" in seen or seen == ["replication"] * len(seen)
    async with streaming.connect("?include=deleted,ready") as client:
        await next_of(client, "ready")
        await sql(database, "INSERT INTO runs (id, status) VALUES ('n', 'failed')")
        await about(client, "n")
        await sql(database, "DELETE FROM runs")
        await about(client, "n", "run_deleted")


async def test_ready_and_source_come_at_once_and_behind_the_snapshot(
    brain: Brain, database: str
) -> None:
    async with brain.connect() as client:
        rows = "SELECT 'r' || generate_series(1, 50)"
        await sql(database, "DELETE FROM runs", f"INSERT INTO runs (id) {rows}")
        await about(client, "r50")
    async with brain.connect("?snapshot=true&include=ready&include=source") as client:
        seen = [await message(client) for _ in range(52)]
        assert [each["type"] for each in seen[50:]] == ["ready", "source"]
        assert {each["type"] for each in seen[:50]} == {"run_update"}
        source = seen[51]["data"]
        assert source["source"] == brain.source  # type: ignore[attr-defined]
        assert 0 <= source["lag_seconds"] < PATIENCE
        assert ("code" in source) is polls(brain)
        times = [each["timestamp"] for each in seen]
        assert times == sorted(times)
    async with brain.connect(f"?since={quote(times[-1])}&include=ready") as client:
        while (found := await message(client))["type"] != "ready":
            assert found["data"]["id"] == "r50" or found["timestamp"] == times[-1]
    await sql(database, "DELETE FROM runs")


async def test_the_default_client_receives_what_it_always_did(brain: Brain, database: str) -> None:
    async with (
        brain.connect() as default,
        brain.connect("?snapshot=true") as snapshot,
        brain.connect(EVERYTHING) as other,
    ):
        await next_of(other, "source")
        await sql(
            database,
            "INSERT INTO runs (id, status) VALUES ('d', 'running')",
            "DELETE FROM runs",
            "INSERT INTO runs (id, status) VALUES ('e', 'failed')",
        )
        for client in (default, snapshot):
            before = [each async for each in rest(client, "e")]
            assert {each["type"] for each in before} <= {"run_update"}
    await sql(database, "DELETE FROM runs")


async def test_a_silent_database_is_told_although_pongs_go_on(
    streaming: Brain, database: str
) -> None:
    """Its walsender is suspended: no error, no end of the connection."""
    (pid,) = [
        row[0]
        for row in await asyncio.to_thread(
            rows,
            database,
            "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()",
        )
    ]
    async with streaming.connect("?include=source") as client:
        assert (await next_of(client, "source"))["data"]["lag_seconds"] < 5
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE):
                while (await next_of(client, "source"))["data"]["lag_seconds"] <= 5:
                    pass
                await (await client.ping())
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            while (await next_of(client, "source"))["data"]["lag_seconds"] > 5:
                pass


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return conn.execute(query.encode()).fetchall()


async def test_over_a_restart_deletes_are_unknown_and_the_rest_is_known(
    any_postgres: Postgres, tmp_path: Any
) -> None:
    """T8: the plain `since` is answered, with `include=deleted` it is 4410."""
    name = any_postgres.create_database(TEMPLATE, ROLE)
    url = any_postgres.url(name, ROLE)
    settings: dict[str, Any] = {"database_url": url, "data_dir": tmp_path}
    with served(**settings) as brain:
        async with brain.connect("?include=deleted") as client:
            await sql(url, "INSERT INTO runs (id, status) VALUES ('a', 'running')")
            last = await about(client, "a")
    await sql(url, "UPDATE runs SET status = 'completed'")
    since = quote(last["timestamp"])
    with served(**settings) as brain:
        async with (
            brain.connect(f"?since={since}&status=running&include=ready") as plain,
            brain.connect(f"?since={since}&include=deleted") as told,
        ):
            assert (await about(plain, "a"))["type"] == "run_complete"
            await next_of(plain, "ready")
            assert await closed(told) == GAP.code
    any_postgres.drop_database(name)
