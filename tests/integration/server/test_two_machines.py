"""Two Brains behind one proxy, with the configurations of docs/how-to/two-machines.md."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.integration.server.test_proxies import TLSProxy, before
from tests.support import ROOT
from tests.support.patience import LIFETIME
from tests.support.ports import free_port
from tests.support.postgres import execute
from tests.support.served import Brain, message, served

PAGE = ROOT / "docs" / "how-to" / "two-machines.md"

SETTINGS: dict[str, Any] = {
    "trusted_proxies": "127.0.0.1",
    "allowed_hosts": "brain.example",
    "follows": "",
    "max_connections_per_ip": 0,
}

CLIENTS = 6


@pytest.fixture(scope="module")
def second(shared: str) -> Iterator[Brain]:
    with served(database_url=shared, **SETTINGS) as brain:
        yield brain


@contextmanager
def ended(brain: Brain) -> Iterator[None]:
    try:
        yield
    finally:
        brain.process.kill()
        brain.process.wait()


@contextmanager
def behind(name: str, folder: Path, first: Brain, second: Brain) -> Iterator[TLSProxy]:
    addresses = {
        "10.0.0.1:5221": f"127.0.0.1:{first.port}",
        "10.0.0.2:5221": f"127.0.0.1:{second.port}",
    }
    with before(name, folder, addresses, PAGE) as proxy:
        yield proxy


def test_the_page_has_both_configurations() -> None:
    fences = re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert {"nginx", "haproxy"} <= set(fences)


async def comes(proxy: TLSProxy, stack: contextlib.AsyncExitStack) -> None:
    """Connect, and try again as a client of Brain does."""
    deadline = asyncio.get_running_loop().time() + LIFETIME
    while True:
        try:
            await stack.enter_async_context(proxy.connect("", local="127.0.0.7"))
        except (OSError, InvalidStatus):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
async def test_clients_are_on_both_machines_and_all_on_one_when_the_other_stops(
    second: Brain, shared: str, name: str, tmp_path: Path
) -> None:
    first = Brain(database_url=shared, **SETTINGS)
    with ended(first), behind(name, tmp_path, first, second) as proxy:
        async with contextlib.AsyncExitStack() as clients:
            for _ in range(CLIENTS):
                await comes(proxy, clients)
            shares = [int(each.metric("brain_clients")) for each in (first, second)]
            assert sum(shares) == CLIENTS
            assert min(shares) > 0
        async with contextlib.AsyncExitStack() as clients:
            sockets = [
                await clients.enter_async_context(proxy.connect("", local="127.0.0.7"))
                for _ in range(CLIENTS)
            ]
            stopping = asyncio.create_task(asyncio.to_thread(first.stop))
            assert await stopping == 0
            # Who was on the first comes back; the proxy does not send it there once more.
            left = [each for each in sockets if each.close_code is None]
            gone = [each for each in sockets if each.close_code is not None]
            assert gone
            assert {each.close_code for each in gone} == {1012}
            for _ in gone:
                await comes(proxy, clients)
            execute(shared, "INSERT INTO runs (id) VALUES (%s)", f"after-{name}")
            for each in left:
                assert (await message(each))["data"]["id"] == f"after-{name}"
            assert second.metric("brain_clients") == CLIENTS


async def test_haproxy_sends_no_client_to_a_machine_that_is_not_ready(
    second: Brain, tmp_path: Path
) -> None:
    """Its database does not answer. HAProxy knows once it has asked for the first time."""
    nowhere = f"postgresql://127.0.0.1:{free_port()}/nowhere"
    first = Brain(database_url=nowhere, wait=False, **SETTINGS)
    with ended(first):
        first.wait_for(r"on port (\d+)\. Paste")
        first.port = int(re.findall(r"on port (\d+)\. Paste", first.log())[-1])
        with behind("haproxy", tmp_path, first, second) as proxy:

            async def all_on_the_second() -> bool:
                async with contextlib.AsyncExitStack() as clients:
                    for _ in range(CLIENTS):
                        await comes(proxy, clients)
                    return second.metric("brain_clients") == CLIENTS

            async with asyncio.timeout(LIFETIME):
                while not await all_on_the_second():
                    await asyncio.sleep(0.1)
            assert first.get("/readyz")[0] == 503
