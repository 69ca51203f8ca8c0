"""Runs, the store of brain.client: list plus live, over a real Brain and a real database."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest

from brain import Change, Runs, WatchError
from brain.client import freshness, pages
from tests.support.faulty import FaultyProxy
from tests.support.issuer import SECRET, token
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, message, served
from tests.support.template import ROLE, TEMPLATE

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


@pytest.fixture(autouse=True)
async def _empty(brain: Brain, shared: str) -> None:
    """And Brain knows it: otherwise a store would begin with the runs of the last test."""
    async with brain.connect("?include=deleted&run_id=begins") as client:
        execute(shared, "DELETE FROM runs; INSERT INTO runs (id) VALUES ('begins')")
        assert (await message(client))["type"] == "run_update"
        execute(shared, "DELETE FROM runs")
        assert (await message(client))["type"] == "run_deleted"


@asynccontextmanager
async def holding(brain: Brain, url: str = "", **options: Any) -> AsyncIterator[Runs]:
    async with (
        asyncio.timeout(PATIENCE),
        Runs(url or brain.url(), **{"proxy": None} | options) as runs,
    ):
        yield runs


def held(runs: Runs) -> dict[str, tuple[str, float | None]]:
    return {run.id: (run.status, run.progress) for run in runs}


def table(url: str, where: str = "true") -> dict[str, tuple[str, float | None]]:
    rows = execute(url, f"SELECT id, status, progress FROM runs WHERE {where}")
    return {run_id: (status, progress) for run_id, status, progress in rows}


async def equal(runs: Runs, url: str, where: str = "true") -> None:
    wanted = table(url, where)
    await eventually(
        lambda: held(runs) == wanted,
        lambda: f"{set(held(runs).items()) ^ set(wanted.items())}",
    )


# The list


async def test_it_holds_finished_runs_too(brain: Brain, shared: str) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status) VALUES "
        "('q', 'queued'), ('r', 'running'), ('c', 'completed'), ('f', 'failed')",
    )
    await brain.knows("r", "running")
    async with holding(brain) as runs:
        assert held(runs) == table(shared)
        assert runs.complete
        assert len(runs) == 4
        assert "f" in runs
        found = runs.get("f")
        assert found is not None
        assert found.status == "failed"
        assert runs.get("none") is None
        execute(shared, "UPDATE runs SET progress = 50 WHERE id IN ('r', 'f')")
        await equal(runs, shared)
        await eventually(lambda: runs.freshness.state == "live")
        assert runs.freshness.at is not None


async def test_it_reads_every_page(
    brain: Brain, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LIMIT", 7)
    execute(
        shared,
        "INSERT INTO runs (id, status) SELECT i, (ARRAY['queued','completed','failed'])[1 + i % 3] "
        "FROM generate_series(1, 60) AS i",
    )
    await brain.knows("60")
    async with holding(brain) as runs:
        assert held(runs) == table(shared)
        assert runs.complete


async def test_of_the_finished_runs_it_holds_the_latest(brain: Brain, shared: str) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status) SELECT 'old' || i, 'completed' FROM generate_series(1, 9) i",
    )
    await brain.knows("old9", "completed")
    async with holding(brain, finished=9) as runs:
        assert (len(runs), runs.complete) == (9, True)
        execute(shared, "INSERT INTO runs (id, status) VALUES ('new', 'failed'), ('on', 'running')")
        await eventually(lambda: "on" in runs)
        assert "new" in runs
        assert (len(runs), runs.complete) == (10, False)
    for finished in (0, 1, 3):
        async with holding(brain, finished=finished) as runs:
            assert runs.complete is False
            assert ("new" in runs) is (finished > 0)
            assert "on" in runs
            assert len(runs) == finished + 1
    with pytest.raises(ValueError, match="finished is a number of runs, 0 or more, not -1"):
        Runs(brain.url(), finished=-1)


async def test_of_many_finished_runs_it_holds_the_latest_and_not_the_lowest_ids(
    brain: Brain, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several pages of those that ended last; then others, as far as there is room."""
    monkeypatch.setattr(pages, "LIMIT", 4)
    execute(
        shared,
        "INSERT INTO runs (id, status) SELECT 'z' || i, 'running' FROM generate_series(11, 19) i;"
        "INSERT INTO runs (id, status) SELECT 'a' || i, 'failed' FROM generate_series(1, 30) i",
    )
    for i in range(1, 10):
        execute(shared, f"UPDATE runs SET status = 'completed' WHERE id = 'z{10 + i}'")
    await brain.knows("z19", "completed")
    async with holding(brain, finished=9) as runs:
        assert held(runs).keys() == {f"z{10 + i}" for i in range(1, 10)}
        assert not runs.complete
        execute(shared, "INSERT INTO runs (id, status) VALUES ('new', 'failed')")
        await eventually(lambda: "new" in runs)
        assert "z11" not in runs, "the one that ended first has gone"


async def test_a_restarted_brain_remembers_no_ends_and_the_store_has_others(
    postgres: Postgres,
) -> None:
    """Also what has become of the active runs that it held."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    execute(
        url, "INSERT INTO runs (id, status) SELECT 'a' || i, 'failed' FROM generate_series(1, 9) i"
    )
    execute(url, "INSERT INTO runs (id) VALUES ('ends'), ('goes')")
    brain = Brain(database_url=url, resume=0)
    try:
        async with holding(brain, finished=3) as runs:
            assert held(runs).keys() == {"a1", "a2", "a3", "ends", "goes"}
            execute(url, "INSERT INTO runs (id, status) VALUES ('z', 'completed')")
            await eventually(lambda: held(runs).keys() == {"a1", "a2", "z", "ends", "goes"})
            brain.process.kill()
            brain.process.wait()
            execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'ends'")
            execute(url, "DELETE FROM runs WHERE id = 'goes'")
            brain = Brain(database_url=url, port=brain.port, resume=0)
            await eventually(lambda: held(runs).keys() == {"ends", "a1", "a2"})
            assert not runs.complete
    finally:
        brain.process.kill()
        brain.process.wait()


async def test_while_brain_polls_a_new_store_lacks_deleted_finished_runs(shared: str) -> None:
    """The poll does not notice that they were deleted, so Brain remembers them."""
    with served(database_url=shared, source="poll", follows="poll") as polling:
        execute(
            shared, "INSERT INTO runs (id, status) VALUES ('stays', 'failed'), ('goes', 'failed')"
        )
        path = "/api/runs?order=changed"
        await eventually(lambda: len(polling.get(path)[1]["runs"]) == 2)
        execute(shared, "DELETE FROM runs WHERE id = 'goes'")
        execute(shared, "INSERT INTO runs (id, status) VALUES ('later', 'failed')")
        await eventually(lambda: len(polling.get(path)[1]["runs"]) == 3)
        async with holding(polling) as runs:
            assert held(runs).keys() == {"stays", "later"}
            assert runs.complete


# Live, without a gap


async def write(url: str, name: str, stop: asyncio.Event, *, seed: int, deletes: bool) -> None:
    """Runs begin, progress, end and are deleted, one transaction after the other."""
    rng, made = random.Random(seed), 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        while not stop.is_set():
            made += rng.random() < 0.4 or not made
            run_id = f"{name}-{rng.randint(max(1, made - 20), made)}"
            await conn.execute(
                "INSERT INTO runs (id, status, progress) VALUES (%s, 'running', 0) "
                "ON CONFLICT (id) DO UPDATE SET progress = %s, status = %s",
                [run_id, rng.randint(0, 100), rng.choice(["running", "completed", "failed"])],
            )
            if deletes and rng.random() < 0.1:
                await conn.execute("DELETE FROM runs WHERE id = %s", [run_id])
            await asyncio.sleep(0.003)


@pytest.mark.parametrize("source", ["replication", "poll"])
async def test_while_writers_write_no_change_is_lost(
    postgres: Postgres, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores that begin in the middle, between the pages of a list, and that are cut off."""
    monkeypatch.setattr(pages, "LIMIT", 30)
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    execute(
        url,
        "INSERT INTO runs (id, status) SELECT 'z' || i, 'completed' FROM generate_series(1, 90) i",
    )
    stop = asyncio.Event()
    with served(database_url=url, source=source, follows=source) as brain:
        async with asyncio.TaskGroup() as writers, FaultyProxy(brain.port) as proxy:
            for i in range(3):
                # A poll does not see that a finished run was deleted.
                deletes = source == "replication"
                writers.create_task(write(url, f"w{i}", stop, seed=i, deletes=deletes))
            opened = []
            for i in range(4):
                through = proxy.url if i % 2 else ""
                opened.append(holding(brain, through))
            stores = [await each.__aenter__() for each in opened]
            for _ in range(2):
                await asyncio.sleep(0.2)
                proxy.cut()
            await asyncio.sleep(0.2)
            stop.set()
            # The writers' last transactions have been committed when they end.
            await eventually(lambda: all(task.done() for task in writers._tasks))
            for runs in stores:
                await equal(runs, url)
                assert runs.complete
            for each in opened:
                await each.__aexit__(None, None, None)


async def test_after_a_restart_it_holds_what_ended_meanwhile(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    execute(url, "INSERT INTO runs (id) VALUES ('ends'), ('stays'), ('goes')")
    brain = Brain(database_url=url)
    try:
        async with holding(brain) as runs:
            changes: list[Change] = []
            end = runs.subscribe(changes.extend)
            brain.process.kill()
            brain.process.wait()
            await eventually(lambda: runs.freshness.state == "away")
            assert len(runs) == 3, "the last known state stays"
            execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'ends'")
            execute(url, "DELETE FROM runs WHERE id = 'goes'")
            brain = Brain(database_url=url, port=brain.port)
            await eventually(lambda: runs.freshness.state == "live")
            await eventually(partial(_ended, runs, "ends"))
            end()
            ended = [each for each in changes if each.id == "ends"]
            assert [(each.previous and each.previous.status) for each in ended] == ["queued"]
    finally:
        brain.process.kill()
        brain.process.wait()


def _ended(runs: Runs, run_id: str) -> bool:
    run = runs.get(run_id)
    return run is not None and run.status == "completed"


async def test_a_deleted_run_leaves_the_store_also_during_an_outage(
    brain: Brain, shared: str
) -> None:
    execute(shared, "INSERT INTO runs (id) VALUES ('a'), ('b'), ('c')")
    execute(shared, "INSERT INTO runs (id, status) VALUES ('done', 'completed')")
    await brain.knows("done", "completed")
    async with FaultyProxy(brain.port) as proxy, holding(brain, proxy.url) as runs:
        execute(shared, "DELETE FROM runs WHERE id IN ('a', 'done')")
        await equal(runs, shared)
        target, proxy.target = proxy.target, 1
        proxy.cut()
        await eventually(lambda: runs.freshness.state == "away")
        execute(shared, "DELETE FROM runs WHERE id = 'b'")
        proxy.target = target
        await equal(runs, shared)
        assert "c" in runs
        execute(shared, "TRUNCATE runs")
        await eventually(lambda: len(runs) == 0)


async def test_it_says_that_brain_polls_or_is_silent(
    brain: Brain, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(database_url=shared, source="poll", follows="poll") as polling:
        async with holding(polling) as runs:
            await eventually(lambda: runs.freshness.state == "polled")
            assert runs.freshness.reason
    monkeypatch.setattr(freshness, "REPORTED", 0.5)
    async with holding(brain) as runs:
        states: list[str] = []
        runs.subscribe(lambda _: states.append(runs.freshness.state))
        await eventually(lambda: "behind" in states)


# Filters


async def test_a_run_that_leaves_the_filter_leaves_the_store(brain: Brain, shared: str) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status, agent) VALUES ('a', 'running', 'x'), ('b', 'running', 'y'), "
        "('c', 'queued', 'x'), ('d', 'failed', 'x')",
    )
    await brain.knows("d", "failed")
    async with (
        holding(brain, status="running", agent=["x", "z"]) as running,
        holding(brain, agent="x", status=["failed", "completed"]) as ended,
    ):
        assert held(running).keys() == {"a"}
        assert held(ended).keys() == {"d"}
        execute(shared, "UPDATE runs SET status = 'completed' WHERE id = 'a'")
        await eventually(lambda: held(ended).keys() == {"a", "d"})
        await eventually(lambda: len(running) == 0)
        execute(shared, "UPDATE runs SET status = 'running' WHERE id = 'c'")
        await eventually(lambda: held(running).keys() == {"c"})
        execute(shared, "UPDATE runs SET agent = 'y' WHERE id = 'c'")
        await eventually(lambda: len(running) == 0)


async def test_a_deleted_run_leaves_the_store(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    execute(
        url,
        "INSERT INTO runs (id, status) VALUES ('q', 'queued'), ('f', 'failed'), ('s', 'queued')",
    )
    with served(database_url=url, follows="replication") as brain:
        async with holding(brain) as runs:
            changes: list[Change] = []
            runs.subscribe(changes.extend)
            execute(url, "DELETE FROM runs WHERE id IN ('q', 'f')")
            await eventually(lambda: held(runs).keys() == {"s"})
            assert [(each.id, each.run) for each in changes] == [("q", None), ("f", None)]
            execute(url, "TRUNCATE runs")
            await eventually(lambda: len(runs) == 0)


# What becomes of it


async def test_changes_yield_each_run_once_to_a_slow_consumer(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id) VALUES ('a'), ('b')")
    await brain.knows("b")
    async with holding(brain) as runs:
        changes = runs.changes()
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        execute(shared, "UPDATE runs SET status = 'running' WHERE id = 'a'")
        told = await first
        assert (told.id, told.run and told.run.status) == ("a", "running")
        assert told.previous is not None
        assert told.previous.status == "queued"
        for progress in range(1, 6):
            execute(shared, f"UPDATE runs SET progress = {progress} WHERE id = 'b'")
        execute(shared, "INSERT INTO runs (id) VALUES ('c')")
        await eventually(lambda: "c" in runs)
        told = await anext(changes)
        assert (told.id, told.run and told.run.progress) == ("b", 5)
        assert told.previous is not None
        assert told.previous.progress is None, "what the reader knew"
        told = await anext(changes)
        assert (told.id, told.previous) == ("c", None)
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(0)
    assert await waiting is None, "it ends with the store"


async def test_a_listener_hears_of_changes_and_of_outages_until_it_ends(
    brain: Brain, shared: str
) -> None:
    async with FaultyProxy(brain.port) as proxy, holding(brain, proxy.url) as runs:
        await eventually(lambda: runs.freshness.state == "live")
        states = ["live"]

        def listen(_: object) -> None:
            if runs.freshness.state != states[-1]:
                states.append(runs.freshness.state)

        end = runs.subscribe(listen)
        target, proxy.target = proxy.target, 1
        proxy.cut()
        await eventually(lambda: states == ["live", "away"])
        assert runs.freshness.reason
        proxy.target = target
        await eventually(lambda: states == ["live", "away", "live"])
        end()
        execute(shared, "INSERT INTO runs (id) VALUES ('unheard')")
        await eventually(lambda: "unheard" in runs)
        assert states == ["live", "away", "live"]


async def test_changes_of_a_store_that_was_not_entered_is_an_error(brain: Brain) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await anext(Runs(brain.url()).changes())


# Refused, and away


async def test_a_refusal_is_raised(shared: str) -> None:
    with served(database_url=shared, jwt_secret=SECRET) as guarded:
        refusals: list[Callable[[], Runs]] = [
            lambda: Runs(guarded.url(), proxy=None),
            lambda: Runs(guarded.url(), token=token(scope="write"), proxy=None),
            lambda: Runs(guarded.url(), token=token(), agent="", proxy=None),
        ]
        for make, code in zip(refusals, (401, 403, 422), strict=True):
            with pytest.raises(WatchError) as caught:
                async with asyncio.timeout(PATIENCE), make():
                    pass
            assert caught.value.code == code
        async with holding(guarded, token=token()) as runs:
            await eventually(lambda: runs.freshness.state == "live")


async def test_it_waits_for_a_brain_that_is_away(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id) VALUES ('late')")
    await brain.knows("late")
    async with FaultyProxy(brain.port) as proxy:
        target, proxy.target = proxy.target, 1
        entering = holding(brain, proxy.url)
        task = asyncio.ensure_future(entering.__aenter__())
        await asyncio.sleep(0.3)
        assert not task.done()
        proxy.target = target
        assert held(await task) == {"late": ("queued", None)}
        await entering.__aexit__(None, None, None)
