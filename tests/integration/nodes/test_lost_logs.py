"""What clients of several nodes may come back with after NATS has lost their log (N8, N11)."""

import asyncio
import signal
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from brain.contract.messages import AGENT
from brain.delivery.log import RUN
from brain.nodes.difference import image
from brain.nodes.leader import Leader
from tests.integration.nodes.test_nodes import ROW, deaf, frames, nodes, settled
from tests.support.nats import NatsServer, cluster, nats_running
from tests.support.nodes import QUICK_NODES, InProcessNode, leader_and_other, leader_of
from tests.support.patience import PATIENCE
from tests.support.postgres import execute


async def test_a_client_that_has_seen_what_the_log_has_lost_starts_over(database: str) -> None:
    """(N11) A filter may have passed a state that only the lost log contained."""
    with nats_running() as server:
        async with nodes(database, server.url) as two:
            leader, other = await leader_and_other(*two)
            execute(database, ROW.format("a"))
            for each in two:
                await each.knows("a", "running")
            await settled(*two)
            both = other.board.time
            with deaf(other):
                execute(database, "UPDATE runs SET agent = 'b'")
                await leader.until(lambda: leader.board.time > both)
                seen = leader.board.last_time
                server.stop(signal.SIGKILL)
            await leader.kill()
            server.lose_store()
            execute(database, "UPDATE runs SET agent = 'c'")
            assert not await other.node.reached(seen)  # nobody can tell
            server.start()
            await other.until(lambda: other.board.time > seen)
            async with InProcessNode(database, server.url) as late:
                await late.ready()
                await settled(other, late)
                for each in (other, late):
                    entry = each.board.get("a")
                    assert entry is not None
                    assert entry[RUN][AGENT] == "c"
                    assert await each.node.reached(seen)
                    assert each.board.since(seen) is None
                    assert each.board.since(both) is not None
                    assert each.board.since(each.board.as_of) is not None
                assert image(late.board) == image(other.board)


async def test_a_node_that_was_behind_a_lost_log_serves_nobody_who_has_seen_more(
    database: str,
) -> None:
    """Not until it has read the new one: it would tell that client, with an earlier timestamp, that
    nothing has changed.
    """
    with nats_running() as server:
        async with nodes(database, server.url) as two:
            leader, other = await leader_and_other(*two)
            with deaf(other):
                execute(database, ROW.format("a"))
                await leader.knows("a", "running")
                seen = leader.board.last_time
                server.stop(signal.SIGKILL)
            server.lose_store()
            server.start()
            assert other.node.is_behind(seen)

            async def comes() -> bool:
                return await other.node.reached(seen) and other.node.is_behind(seen)

            clients: list[asyncio.Task[bool]] = []
            async with asyncio.timeout(PATIENCE):
                while other.node.is_behind(seen):  # whenever a client comes
                    clients.append(asyncio.create_task(comes()))
                    await asyncio.sleep(0.01)
                assert not any(await asyncio.gather(*clients))
            await other.knows("a", "running")


async def test_a_leader_that_follows_another_refuses_what_nobody_has_written(
    database: str, nats: NatsServer
) -> None:
    """(N11) But every time that a client was sent is answered."""
    async with nodes(database, nats.url, count=3) as three:
        times = []
        for number in range(2):
            execute(database, ROW.format(number))
            for each in three:
                await each.knows(str(number), "running")
            times += [three[-1].board.time, three[-1].board.last_time, three[-1].board.as_of]
            leader = await leader_of(*three)
            await leader.stop()
            three.remove(leader)
            await leader_of(*three)
        (last,) = three
        execute(database, ROW.format("last"))
        await last.knows("last", "running")
        times.append(last.board.last_time)
        assert len(last.board.refused) == 2
        assert all(last.board.since(time) is not None for time in times)
        assert all(last.board.since(first) is None for first, _ in last.board.refused)


async def test_a_burst_beyond_the_bound_of_the_stream_reaches_who_was_behind(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(N6, N8) What it lacks was discarded: it takes over the board of the others."""
    monkeypatch.setattr("brain.nodes.log.MAX_BYTES", bound := 256 * 1024)
    timing = replace(QUICK_NODES, checkpoint=32 * 1024)
    async with nodes(database, nats.url, timing=timing) as two:
        leader, other = await leader_and_other(*two)
        for name in "abc":
            execute(database, ROW.format(name))
        await other.knows("c", "running")
        with deaf(other):
            behind = other.node.report().position
            for step in range(12):
                execute(
                    database,
                    f"UPDATE runs SET error = repeat('{step % 10}', 20000), progress = {step}",
                )
            execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'b'")
            await leader.knows("b", "failed")
            facts = await leader.node._log.facts()
            assert facts.first > behind + 1
            info = await leader.node._log.connection.ask(f"STREAM.INFO.{leader.stream}")
            assert info["state"]["bytes"] <= bound
        await other.knows("b", "failed")
        await settled(leader, other)
        assert frames(other) == frames(leader)
        assert other.resets == 0
        async with InProcessNode(database, nats.url, timing=timing) as late:
            await late.ready()
            await settled(leader, late)
            assert image(late.board) == image(leader.board)


async def test_a_leader_says_that_its_board_fills_the_log(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain.nodes.log.MAX_BYTES", 256 * 1024)
    async with nodes(database, nats.url, count=1) as (leader,):
        for name, warned in (("small", False), ("large", True)):
            execute(database, ROW.format(name))
            if warned:
                execute(database, "UPDATE runs SET error = repeat('x', 60000)")
                execute(database, ROW.format("last"))
                await leader.knows("last", "running")
            lead = leader.node._leadership.leader
            assert lead is not None
            with capture_logs() as lines:
                await lead._write_board()
            assert ("the board fills the log" in [line["event"] for line in lines]) is warned


async def test_a_node_that_cannot_load_the_log_says_so(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients have an old view: it is not ready until the log contains a whole board, which a
    leader of an older version does not write when it is asked.
    """
    monkeypatch.setattr(Leader, "want_board", lambda _: None)
    timing = replace(QUICK_NODES, leaderless=1.0)
    async with nodes(database, nats.url, timing=timing) as two:
        leader, other = await leader_and_other(*two)
        log = leader.node._log
        with deaf(other):
            execute(database, ROW.format("a"))
            await leader.knows("a", "running")
            facts = await log.facts()
            await log.connection.ask(f"STREAM.PURGE.{log.name}", seq=facts.last)
        await other.until(lambda: "no whole board" in other.node.state.detail)
        assert (other.node.state.source, other.node.state.code) == ("none", "nats")
        assert leader.node.state.source == "replication"
        lead = leader.node._leadership.leader
        assert lead is not None
        await lead._write_board()
        await other.knows("a", "running")
        await other.ready()
        assert other.resets == 0


@pytest.mark.faults
async def test_of_three_nats_servers_one_may_never_return(database: str) -> None:
    """(N8) Whichever it is: the stream elects another leader, and nobody is left behind."""
    with cluster(3) as servers:
        urls = [each.url for each in servers]
        timing = replace(QUICK_NODES, append=2.0, silence=3.0, leaderless=20.0)
        async with nodes(database, *urls, timing=timing, replicas=3) as (one, two):
            execute(database, ROW.format("a"))
            for each in (one, two):
                await each.knows("a", "running")
            info = await one.node._log.connection.ask(f"STREAM.INFO.{one.stream}")
            assert info["config"]["num_replicas"] == 3
            (leading,) = (each for each in servers if each.name == info["cluster"]["leader"])
            leading.stop(signal.SIGKILL)
            execute(database, "UPDATE runs SET status = 'failed'")
            for each in (one, two):
                await each.knows("a", "failed")
                await each.ready()
                assert each.resets == 0
            await settled(one, two)
            assert frames(one) == frames(two)
            async with asyncio.timeout(PATIENCE):
                assert await two.node.reached(one.board.as_of)
