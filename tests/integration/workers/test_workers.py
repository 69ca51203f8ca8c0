"""`brain serve --workers 2`: one port, one log, and a worker that dies is nobody else's loss."""

import asyncio
import contextlib
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from brain import Runs
from tests.support import ROOT
from tests.support.fleet import Fleet
from tests.support.patience import LIFETIME, eventually, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain, message, served, until
from tests.support.workers import entries, family, named, settle, suspended

pytestmark = pytest.mark.long

CLIENTS = 16
"""The kernel gives all of them to one worker in one run of 30 000."""


@pytest.fixture(scope="module")
def shared_workers(shared: str) -> Iterator[Brain]:
    with served(database_url=shared, workers=2, follows="") as brain:
        yield brain


@pytest.fixture
def brain(shared_workers: Brain) -> Brain:
    settle(shared_workers)
    return shared_workers


def sample(brain: Brain, name: str) -> float:
    """Of a metric whose labels are a part of the name."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", brain.get("/metrics")[1], re.MULTILINE)
    assert found, name
    return float(found[1])


@contextlib.asynccontextmanager
async def clients(brain: Brain, query: str = "") -> Any:
    """Some on each worker, connected."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(brain.connect(query)) for _ in range(CLIENTS)]


async def change(shared: str, run_id: str, status: str = "running") -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status) VALUES (%s, %s)"
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        run_id,
        status,
    )


async def is_told(client: ClientConnection, run_id: str, status: str = "running") -> None:
    await until(client, run_id, status)


async def test_clients_of_all_workers_are_told_of_a_change(brain: Brain, shared: str) -> None:
    async with clients(brain) as everyone:
        shares = [each["clients"] for each in settle(brain).values()]
        assert sum(shares) == CLIENTS
        assert min(shares) > 0, "the kernel spreads them"
        assert brain.get("/readyz")[1]["clients"] == CLIENTS
        await change(shared, "told")
        for client in everyone:
            assert (await message(client))["data"] == {"id": "told", "status": "running"}


async def test_the_metrics_of_the_workers_add_up(brain: Brain, shared: str) -> None:
    counted = ("changes_total", "deliveries_total", "flushes_total")
    names = [f"brain_{name}" for name in (*counted, "commit_to_socket_seconds_count")]
    async with clients(brain) as everyone:
        before = {name: brain.metric(name) for name in names}
        await change(shared, "added")
        for client in everyone:
            await message(client)
        assert brain.metric("brain_clients") == CLIENTS
        after = {name: brain.metric(name) - before[name] for name in names}
        assert after == dict(zip(names, (1, CLIENTS, 2, 2), strict=True))
    assert sample(brain, 'brain_workers{state="ready"}') == 2
    assert brain.metric("brain_lag_seconds") == 0


def test_the_metrics_of_the_supervisor_are_those_of_the_docs(brain: Brain) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    section = page[page.index("| of the supervisor |") : page.index("## All metrics")]
    rows = [row.strip("| ").split(" | ") for row in section.strip().splitlines()[2:]]
    found = []
    for each in text_string_to_metric_families(brain.get("/metrics")[1]):
        if each.name.removeprefix("brain_").startswith(("worker", "restarts")):
            name = each.name + ("_total" if each.type == "counter" else "")
            labels = [(name, value) for s in each.samples for name, value in s.labels.items()]
            shown = ", ".join(f"`{value}`" for _, value in labels)
            described = f"{labels[0][0]}: {shown}" if labels else ""
            found.append([f"`{name}`", each.type, described, each.documentation])
    assert rows == found


async def test_each_line_of_the_one_log_names_its_worker(brain: Brain) -> None:
    assert brain.log().count("Paste the URL") == 1
    for number in settle(brain):
        assert re.search(rf'event="access rules".* worker={number}$', brain.log(), re.MULTILINE)


async def test_a_worker_that_is_killed_comes_back_and_clients_of_the_other_do_not_notice(
    brain: Brain, shared: str
) -> None:
    workers = settle(brain)
    async with clients(brain) as everyone:
        await change(shared, "before")
        for client in everyone:
            await is_told(client, "before")
        ends, deliveries = brain.metric("brain_deliveries_total"), 0.0
        restarts = sample(brain, 'brain_restarts_total{process="worker"}')
        killed = workers[1]["pid"]
        os.kill(killed, signal.SIGKILL)
        settle(brain, killed)
        await change(shared, "after")
        told = 0
        for client in everyone:
            with contextlib.suppress(ConnectionClosed):
                await is_told(client, "after")
                told += 1
        assert 0 < told < CLIENTS
        assert settle(brain)[2]["pid"] == workers[2]["pid"]
        assert sample(brain, 'brain_restarts_total{process="worker"}') == restarts + 1
        deliveries = brain.metric("brain_deliveries_total")
        assert deliveries == ends + told, "what the dead worker had counted is still there"
    assert f'event="worker died" worker=1 pid={killed} status=-9' in brain.log()


async def test_a_rolling_restart_replaces_each_worker_and_nobody_misses_an_end(
    brain: Brain, shared: str
) -> None:
    before = {each["pid"] for each in settle(brain).values()}
    stores = [Runs(f"ws://127.0.0.1:{brain.port}/ws") for _ in range(CLIENTS)]
    changed = brain.metric("brain_changes_total")
    async with contextlib.AsyncExitStack() as stack:
        for store in stores:
            await stack.enter_async_context(store)
        brain.process.send_signal(signal.SIGHUP)
        number = 0
        while {each["pid"] for each in entries(brain)} & before or not entries(brain):
            await asyncio.to_thread(execute, shared, "INSERT INTO runs VALUES (%s)", f"r{number}")
            await change(shared, f"r{number}", "completed")
            number += 1
            await asyncio.sleep(0.03)  # a flood would slow the workers' starts
        ended = {f"r{i}": "completed" for i in range(number)}

        def seen() -> list[dict[str, str]]:
            return [{run.id: run.status for run in store if run.id in ended} for store in stores]

        await eventually(lambda: seen() == [ended] * CLIENTS, seen)
    settle(brain, *before)
    assert brain.metric("brain_changes_total") >= changed + number
    wait_until(lambda: 'event="rolling restart done"' in brain.log())
    # A node that has resigned does not claim the log again while it ends: it would not write it.
    wait_until(lambda: "event=leader" in brain.log().partition("event=resigned")[2])
    led, _, leads = brain.log().partition("event=resigned")
    leaders = [re.findall(r"event=leader node=(\S+)", each) for each in (led, leads)]
    assert leaders[0][-1] != leaders[1][0]


def test_a_worker_that_is_killed_while_it_closes_its_clients_is_said(brain: Brain) -> None:
    """And the rolling restart goes on. Its clients answer nothing, so it waits for them."""
    settle(brain)
    killed = []
    begun = len(brain.log())
    with Fleet(brain, CLIENTS):
        brain.process.send_signal(signal.SIGHUP)

        def is_killed() -> bool:
            for each in entries(brain):
                if each["state"] == "stopping":
                    killed.append(each["pid"])
                    os.kill(each["pid"], signal.SIGKILL)
            return bool(killed)

        wait_until(is_killed, seconds=LIFETIME)
    wait_until(lambda: "rolling restart done" in brain.log()[begun:], seconds=LIFETIME)
    line = rf'event="worker died" worker=\d pid={killed[0]} status=-9 detail="while it stopped"'
    assert re.search(line, brain.log())
    settle(brain, *killed)


async def test_a_suspended_worker_is_said_to_be_silent_and_no_counter_falls(
    brain: Brain, shared: str
) -> None:
    async with clients(brain) as everyone:
        await change(shared, "still")
        for client in everyone:
            await is_told(client, "still")
        deliveries = brain.metric("brain_deliveries_total")
        silences = brain.metric("brain_worker_silences_total")
        pid = settle(brain)[1]["pid"]
        with suspended(pid):
            asked = asyncio.get_running_loop().time() + LIFETIME
            text = ""
            while not text:  # whoever asks may be given to the suspended worker
                assert asyncio.get_running_loop().time() < asked
                with contextlib.suppress(OSError):
                    url = f"http://127.0.0.1:{brain.port}/metrics"
                    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=3)
                    text = answer.read().decode()
                    answer.close()
            assert 'brain_workers{state="silent"} 1.0' in text
            assert f"brain_deliveries_total {deliveries:.1f}" in text
        settle(brain)
        assert brain.metric("brain_worker_silences_total") > silences


async def test_a_supervisor_that_does_not_answer_is_said(brain: Brain) -> None:
    with suspended(brain.process.pid):
        status, document = brain.get("/readyz")
        assert status == 200
        assert [each["code"] for each in document["warnings"]] == ["supervisor"]
        assert brain.get("/metrics") == (503, "the supervisor of the workers does not answer\n")


def test_nats_server_comes_back_on_its_port_and_nothing_secret_is_in_ps(
    brain: Brain,
) -> None:
    processes = family(brain)
    server = named(processes, "nats-server")
    configuration = Path(server.cmdline()[-1])
    assert configuration.stat().st_mode & 0o077 == 0
    assert configuration.parent.stat().st_mode & 0o077 == 0
    (token,) = re.findall(r'"token": "([^"]+)"', configuration.read_text())
    assert len(token) > 40
    assert not any(token in " ".join(each.cmdline()) for each in processes)
    assert token not in brain.log()
    ports = {each.laddr for each in server.net_connections("tcp") if each.status == "LISTEN"}
    restarts = sample(brain, 'brain_restarts_total{process="nats"}')
    server.kill()
    again: list[Any] = []

    def restarted() -> bool:
        again[:] = [each for each in family(brain) if each.name() == "nats-server"]
        return brain.log().count('event="nats-server started"') == restarts + 2 and len(again) == 1

    wait_until(restarted)
    listening = again[0].net_connections("tcp")
    assert {each.laddr for each in listening if each.status == "LISTEN"} == ports
    assert not configuration.parent.exists()
    assert sample(brain, 'brain_restarts_total{process="nats"}') == restarts + 1


def test_no_process_is_left_of_a_supervisor_that_was_killed(database: str) -> None:
    brain = Brain(database_url=database, workers=2, follows="")
    settle(brain)
    processes = family(brain)
    names = sorted(each.name() for each in processes)
    assert names.count("nats-server") == 1
    brain.stop(signal.SIGKILL)
    _, left = psutil.wait_procs(processes[1:], LIFETIME)
    assert not left
    assert not list((brain.folder / ".brain").glob("nats-*"))
    assert brain.log().count('event="supervisor ended"') == 2
    assert "Traceback" not in brain.log()
