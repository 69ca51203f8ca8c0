"""What the client library of NATS keeps to itself: a cancellation, and a wait without a bound."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from brain.nodes.connection import PINGS, Access, Connection, Unanswered
from tests.integration.nodes.test_nodes import ROW, nodes
from tests.support.nats import NatsServer
from tests.support.nodes import QUICK_NODES, leader_of
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import execute
from tests.support.proxy import Proxy


class Held:
    """Answers about the stream arrive together with a cancellation, if one comes. Before Python
    3.12, asyncio.wait_for gives such an answer to who was cancelled.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self.asked = asyncio.Event()
        request = Client.request

        async def asked(client: Client, subject: str, *given: Any, **options: Any) -> Msg:
            answer = await request(client, subject, *given, **options)
            if self.on and ".STREAM.INFO." in subject:
                self.asked.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE)
            return answer

        monkeypatch.setattr(Client, "request", asked)


async def test_a_leader_that_is_refused_while_it_writes_its_board_leads_again(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks end, although one of them has an answer when it is cancelled: as long as they did
    not, this node could not lead, and each other one would wait for a silence.
    """
    held = Held(monkeypatch)
    timing = replace(QUICK_NODES, silence=3600, request=PATIENCE)
    async with nodes(database, nats.url, timing=timing) as two:
        leader = await leader_of(*two)
        epoch = leader.node.report().epoch
        lead = leader.node._leadership.leader
        assert lead is not None
        held.on = True
        lead._board_due.set()
        async with asyncio.timeout(PATIENCE):
            await held.asked.wait()
        held.on = False
        lead._board_due.clear()
        await leader.node._connection.publish(f"{leader.stream}.log", b"rubbish")
        await leader.until(lambda: leader.node.report().epoch > epoch)
        await leader_of(*two)
        execute(database, ROW.format("a"))
        for each in two:
            await each.knows("a", "running")


async def test_a_client_does_not_wait_beyond_its_deadline(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer about the stream arrives when the deadline has passed."""
    held = Held(monkeypatch)
    timing = replace(QUICK_NODES, barrier=0.05, request=PATIENCE)
    async with nodes(database, nats.url, count=1, timing=timing) as (node,):
        held.on = True
        async with asyncio.timeout(PATIENCE):
            assert not await node.node.reached(node.board.time + 10**9)
        held.on = False


async def test_a_server_that_reads_nothing_is_given_up(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not read has a deadline. The library would wait for 10 s until a publisher may
    write on, and until all is written before it tries another server.
    """
    monkeypatch.setattr("brain.nodes.connection.STUCK", 0.3)
    monkeypatch.setitem(PINGS, "ping_interval", 0.3)
    timing = replace(QUICK_NODES, request=1.0)
    with Proxy(nats.port) as first, Proxy(nats.port) as second:
        second.refuse()
        access = Access([each.url.replace("tcp:", "nats:") for each in (first, second)])
        async with Connection(access, "test", timing) as connection:
            await eventually(lambda: connection.is_open)
            first.fall_silent()
            second.refuse(refusing=False)
            with contextlib.suppress(Unanswered):
                for _ in range(100):
                    await connection.publish("any.log", b"x" * 1_000_000)
                pytest.fail("nothing stops who writes")
            await eventually(lambda: connection.is_open and second.connections > 0)
            await connection.ask("INFO")
