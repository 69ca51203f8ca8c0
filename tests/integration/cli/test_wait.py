"""`brain wait`: each exit status, over outages and restarts."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.faulty import FaultyProxy, answer
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    execute(shared, "ALTER TABLE runs DROP CONSTRAINT runs_status_check")
    with served(database_url=shared) as brain:
        yield brain


class Wait:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ends(self) -> tuple[int, list[str], list[str]]:
        """The exit status, and the lines on standard output and standard error."""
        async with asyncio.timeout(PATIENCE):
            out, error = await self.process.communicate()
        assert b"Traceback" not in error
        assert self.process.returncode is not None
        return self.process.returncode, out.decode().splitlines(), error.decode().splitlines()

    async def says(self, text: str) -> None:
        """Read standard error up to this line."""
        assert self.process.stderr
        async with asyncio.timeout(PATIENCE):
            while text not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"it never said {text!r}"


@asynccontextmanager
async def wait(url: str, *arguments: str, **environment: str) -> AsyncIterator[Wait]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "brain", "wait", "--url", url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=kept | {"NO_PROXY": "*"} | environment,
    )
    try:
        yield Wait(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def insert(shared: str, run_id: str, status: str = "running") -> None:
    execute(shared, f"INSERT INTO runs (id, status) VALUES ('{run_id}', '{status}')")


def update(shared: str, run_id: str, status: str) -> None:
    execute(shared, f"UPDATE runs SET status = '{status}' WHERE id = '{run_id}'")


async def subscribed(proxy: FaultyProxy) -> None:
    """It has connected, and asked once."""
    await eventually(lambda: len(proxy.came) >= 2)


async def seen(proxy: FaultyProxy) -> None:
    """It has read what the API answered."""
    await eventually(lambda: proxy.passed)
    await asyncio.sleep(0.3)


async def test_runs_that_ended_before_make_the_status_of_the_worst(
    brain: Brain, shared: str
) -> None:
    insert(shared, "b/1?", "completed")
    insert(shared, "b-2", "failed")
    execute(shared, "UPDATE runs SET error = E'no\\nluck' WHERE id = 'b-2'")
    async with wait(brain.url(), "b/1?") as one, wait(brain.url(), "b/1?", "b-2", "b-2") as both:
        assert await one.ends() == (0, ["b/1? completed"], [])
        status, out, error = await both.ends()
        assert (status, sorted(out), error) == (1, ["b-2 failed: no luck", "b/1? completed"], [])


async def test_an_end_that_is_pushed_ends_it(brain: Brain, shared: str) -> None:
    insert(shared, "pushed")
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "pushed", "--json") as it:
        await subscribed(proxy)
        await asyncio.sleep(0.2)
        assert it.process.returncode is None
        update(shared, "pushed", "completed")
        status, out, _ = await it.ends()
        assert status == 0
        assert [json.loads(line) for line in out] == [{"id": "pushed", "status": "completed"}]
        assert len(proxy.came) == 2, "it was pushed"


async def test_a_status_that_was_asked_for_ends_it(brain: Brain, shared: str) -> None:
    insert(shared, "fails", "failed")
    insert(shared, "runs", "running")
    async with (
        wait(brain.url(), "fails", "--status", "failed") as failing,
        wait(brain.url(), "runs", "--status", "running") as running,
    ):
        assert (await failing.ends())[0] == 0
        assert (await running.ends())[:2] == (0, ["runs running"])


async def test_no_end_is_missed_during_a_restart(postgres: Postgres) -> None:
    """The server is killed, the runs end, and the new server has no memory of them."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url)
    try:
        insert(url, "one")
        insert(url, "two")
        # A reverse proxy in between answers 502 for a while.
        async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "one", "two") as it:
            await eventually(lambda: len(proxy.came) >= 3)  # it has asked for both
            brain.process.kill()
            brain.process.wait()
            proxy.answers += 3 * [answer(502)]
            proxy.cut()
            await it.says("no connection to")
            update(url, "one", "completed")
            update(url, "two", "failed")
            # A client that includes deletes and connects while Brain still polls is sent away once
            # more when the stream begins (T7): that would be a second outage.
            proxy.target = 1
            brain = await asyncio.to_thread(Brain, database_url=url, port=brain.port)
            proxy.target = brain.port
            status, out, error = await it.ends()
            assert (status, sorted(out)) == (1, ["one completed", "two failed"])
            # The answer of the API may come before the subscription.
            assert [line for line in error if "API" not in line] in (
                [],
                [f"brain: connected again to {proxy.url}"],
            ), "the outage is reported once"
    finally:
        brain.process.kill()
        brain.process.wait()


async def test_a_run_that_was_deleted_is_gone(brain: Brain, shared: str) -> None:
    insert(shared, "deleted")
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "deleted", "--must-exist") as it:
        await subscribed(proxy)
        await seen(proxy)
        execute(shared, "DELETE FROM runs WHERE id = 'deleted'")
        assert await it.ends() == (3, [], ["brain: run 'deleted' was deleted"])


async def test_a_run_that_was_deleted_during_an_outage_is_gone(brain: Brain, shared: str) -> None:
    insert(shared, "unseen")
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "unseen", "--must-exist") as it:
        await subscribed(proxy)
        proxy.target = 1
        proxy.cut()
        await it.says("no connection to")
        execute(shared, "DELETE FROM runs WHERE id = 'unseen'")
        proxy.target = brain.port
        status, _, error = await it.ends()
        assert status == 3, error


async def test_a_run_that_does_not_exist_is_waited_for_unless_it_must(
    brain: Brain, shared: str
) -> None:
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "later") as patient:
        async with wait(brain.url(), "later", "--must-exist") as strict:
            assert await strict.ends() == (3, [], ["brain: run 'later' does not exist"])
        await patient.says("run 'later' does not exist yet; waiting for it")
        await subscribed(proxy)
        insert(shared, "later", "queued")
        update(shared, "later", "failed")
        assert await patient.ends() == (1, ["later failed"], [])


async def test_a_row_whose_status_brain_does_not_know_is_named(brain: Brain, shared: str) -> None:
    """The row is there: that it was deleted, or does not exist, would be wrong."""
    insert(shared, "parked", "paused")
    async with wait(brain.url(), "parked") as patient:
        await patient.says("run 'parked' is not shown: the row has the status 'paused'")
        async with wait(brain.url(), "parked", "--must-exist") as strict:
            status, _, error = await strict.ends()
            assert status == 3
            assert error[0].startswith("brain: run 'parked' is not shown: the row has the status")
        update(shared, "parked", "completed")
        assert await patient.ends() == (0, ["parked completed"], [])


async def test_a_run_that_leaves_the_contract_is_not_called_deleted(
    brain: Brain, shared: str
) -> None:
    insert(shared, "leaves")
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "leaves", "--must-exist") as it:
        await subscribed(proxy)
        await seen(proxy)
        update(shared, "leaves", "paused")
        status, _, error = await it.ends()
        assert status == 3
        assert error[0].startswith("brain: run 'leaves' is not shown any more: the row has the")


async def test_the_timeout_has_a_status_of_its_own_and_names_the_missing_runs(
    brain: Brain, shared: str
) -> None:
    insert(shared, "slow")
    insert(shared, "fast", "completed")
    async with wait(brain.url(), "slow", "fast", "--timeout", "1.5") as it:
        status, out, error = await it.ends()
        assert (status, error) == (124, ["brain: gave up after 1.5 s: still waiting for 'slow'"])
        assert out in ([], ["fast completed"])  # a busy machine may not even have asked


async def test_a_refusal_ends_it(brain: Brain, shared: str) -> None:
    insert(shared, "refused")
    async with wait(brain.url("?nonsense=1"), "refused") as it:
        status, out, error = await it.ends()
        assert (status, out) == (2, [])
        assert "unknown parameter 'nonsense'" in error[-1]


async def test_ctrl_c_ends_it_without_a_word(brain: Brain, shared: str) -> None:
    insert(shared, "interrupted")
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, "interrupted") as it:
        await subscribed(proxy)
        it.process.send_signal(signal.SIGINT)
        assert await it.ends() == (130, [], [])


async def test_the_status_counts_though_nobody_reads(brain: Brain, shared: str) -> None:
    insert(shared, "unread", "failed")
    async with wait(brain.url(), "unread") as it:
        transport = it.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
        transport.close()
        assert (await it.ends())[0] == 1


async def test_an_id_is_found_in_the_form_of_its_column(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    execute(url, "CREATE TABLE runs (id uuid PRIMARY KEY, status text)")
    given = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"
    with served(database_url=url) as brain:
        insert(url, given)
        await brain.knows(given, "running")
        async with FaultyProxy(brain.port) as proxy, wait(proxy.url, given) as it:
            await subscribed(proxy)
            await asyncio.sleep(0.3)
            update(url, given, "completed")
            assert await it.ends() == (0, [f"{given.lower()} completed"], [])
            assert len(proxy.came) == 2, "it was pushed"


async def test_many_runs_with_long_ids_are_waited_for(brain: Brain, shared: str) -> None:
    """Their ids do not fit into one URL."""
    run_ids = [f"{i}{'é' * 500}" for i in range(12)]
    for run_id in run_ids:
        insert(shared, run_id)
    async with FaultyProxy(brain.port) as proxy, wait(proxy.url, *run_ids) as it:
        await eventually(lambda: len(proxy.came) >= len(run_ids) + 7)
        execute(shared, "UPDATE runs SET status = 'completed' WHERE id LIKE '%éé'")
        status, out, error = await it.ends()
        assert (status, len(out), error) == (0, 12, [])


async def test_an_answer_that_is_cut_off_is_asked_for_again(brain: Brain, shared: str) -> None:
    insert(shared, "cut")
    async with FaultyProxy(brain.port) as proxy:
        proxy.api_answers += 2 * [answer(200)[:-9]]
        async with wait(proxy.url, "cut") as it:
            await it.says("the API does not answer (9 bytes of the answer are missing)")
            update(shared, "cut", "completed")
            assert await it.ends() == (0, ["cut completed"], [])


async def test_a_server_that_does_not_answer_the_api_is_told(brain: Brain, shared: str) -> None:
    insert(shared, "untold")
    async with FaultyProxy(brain.port) as proxy:
        proxy.api_answers += [answer(503), answer(503)]
        async with wait(proxy.url, "untold") as it:
            await it.says("the API does not answer (refused with 503: said by the test)")
            update(shared, "untold", "completed")
            assert await it.ends() == (0, ["untold completed"], [])
