"""Several nodes of one table, on a real nats-server and PostgreSQL: rules N2 to N10
(src/brain/nodes).
"""

import asyncio
import base64
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from brain.contract.events import Image, Snapshot
from brain.delivery.log import FRAME, RUN
from brain.nodes.difference import image
from brain.nodes.leader import MAX_GIVEN_UP
from brain.nodes.log import Facts, Log, Reader
from brain.nodes.messages import VERSION, decode, encode
from brain.nodes.relay import UPGRADE_HINT
from brain.nodes.track import Claim
from tests.support.nats import NatsServer, nats_running
from tests.support.nodes import (
    QUICK_NODES,
    InProcessNode,
    Stream,
    leader_and_other,
    leader_of,
    opened,
)
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import execute
from tests.support.proxy import Proxy

pytestmark = pytest.mark.long

ROW = "INSERT INTO runs (id, status) VALUES ('{}', 'running')"


@contextlib.asynccontextmanager
async def nodes(
    database: str, *nats: str, count: int = 2, **options: Any
) -> AsyncIterator[list[InProcessNode]]:
    """So many, which follow one leader."""
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(InProcessNode(database, *nats, **options))
            for _ in range(count)
        ]
        await leader_of(*found)
        for each in found:
            await each.ready()
        yield found


def frames(of: InProcessNode) -> list[bytes]:
    return [entry[FRAME] for entry in of.board.log.current()]


async def settled(*several: InProcessNode) -> None:
    await eventually(
        lambda: len({(each.node.report().position, each.board.time) for each in several}) == 1
    )


@contextlib.contextmanager
def deaf(node: InProcessNode) -> Iterator[None]:
    """No message of the log arrives there."""
    take = Reader._take_message

    def taken(self: Reader, message: Msg) -> None:
        if self._log is not node.node._log:
            take(self, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "_take_message", taken)
        yield


async def written(log: Log) -> list[tuple[int, str]]:
    """The messages of the log, as (epoch, kind)."""
    found: list[tuple[int, str]] = []
    last = await log.last("log")
    seq = 0
    async with log.read("log", 0) as reader, asyncio.timeout(PATIENCE):
        while last is not None and seq < last[0]:
            for item in await reader.take(0.2):
                seq, message = item.seq, decode(item.data)
                found.append((message.epoch, message.kind))
    return found


async def test_every_node_sends_the_same_bytes(database: str, nats: NatsServer) -> None:
    """(N4, N5) Whatever the source yields; and each event has a time of its own."""
    async with nodes(database, nats.url, count=3) as three:
        execute(database, ROW.format("a"))
        execute(
            database,
            "INSERT INTO runs (id, status) SELECT i::text, 'queued' FROM"
            " generate_series(1, 3000) i",
        )
        execute(database, "UPDATE runs SET progress = 5; DELETE FROM runs WHERE id = '7'")
        execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'a'")
        for each in three:
            await each.knows("a", "failed")
        await settled(*three)
        assert len({tuple(frames(each)) for each in three}) == 1
        assert frames(three[0])
        times = [event.at for event in three[1].events if not isinstance(event, Image)]
        assert times == sorted(set(times))


async def test_rows_and_lists_beyond_what_nats_takes_are_pushed(
    database: str, nats: NatsServer
) -> None:
    """(N4) Cut by encoded bytes: three texts of a megabyte, and 60 000 ids that are gone."""
    async with nodes(database, nats.url) as two:
        execute(
            database,
            "INSERT INTO runs (id, status, agent, task_id, error) SELECT 'big',"
            " 'running', repeat(chr(1), 1000000), repeat('é', 1000000),"
            " repeat('x', 1000000)",
        )
        for each in two:
            await each.knows("big", "running")
        assert {len(frame) > 3_000_000 for each in two for frame in frames(each)} == {True}
        leader = await leader_of(*two)
        gone = [f"run {i:040}" for i in range(60_000)]
        assert leader.node._leadership.leader is not None
        await leader.node._leadership.leader._give([Snapshot([], 1, gone)])
        execute(database, ROW.format("b"))
        for each in two:
            await each.knows("b", "running")


async def test_a_node_that_starts_takes_over_the_board(database: str, nats: NatsServer) -> None:
    """(N7) With times, facets and floors; and then it reads on."""
    async with nodes(database, nats.url, count=1) as (first,):
        execute(database, ROW.format("a"))
        execute(database, "UPDATE runs SET status = 'completed'; DELETE FROM runs")
        execute(database, ROW.format("b"))
        await first.knows("b", "running")
        leader = first.node._leadership.leader
        assert leader is not None
        await leader._write_board()
        execute(database, "UPDATE runs SET agent = 'x'")
        execute(database, ROW.format("c"))
        await first.knows("c", "running")
        async with InProcessNode(database, nats.url) as second:
            await second.ready()
            await second.knows("c", "running")
            await settled(first, second)
            assert any(isinstance(event, Image) for event in second.events)
            assert image(second.board) == image(first.board)


async def test_a_node_is_ready_when_it_has_reached_the_end_that_the_log_had(
    database: str, nats: NatsServer
) -> None:
    """(N7)"""
    async with nodes(database, nats.url, count=1) as (first,):
        execute(database, ROW.format("a"))
        await first.knows("a", "running")
        second = InProcessNode(database, nats.url)
        relay = second.node._relay
        async with opened(nats.url, second.stream) as log:
            end = await log.last("log")
        assert end is not None
        async with second:
            await second.ready()
            assert relay._target >= end[0]
            assert second.node.report().position >= relay._target


async def test_the_board_of_the_leader_is_fed_from_the_log_only(database: str) -> None:
    """(N5) What cannot be written to the log, nobody is told."""
    with nats_running() as server:
        async with nodes(database, server.url, count=1) as (node,):
            server.send(signal.SIGSTOP)
            execute(database, ROW.format("a"))
            follow = node.follows[-1]
            await node.until(lambda: bool(follow._progress.unseen) or node.role == "follower")
            assert "a" not in node.board
            server.send(signal.SIGCONT)
            await node.knows("a", "running")


async def test_another_node_leads_when_the_leader_is_killed(
    database: str, nats: NatsServer
) -> None:
    """(N2, N4) It goes on from the checkpoint of the log: a run that has begun and ended while
    nobody led is pushed.
    """
    async with nodes(database, nats.url, count=3) as three:
        leader = await leader_of(*three)
        others = [each for each in three if each is not leader]
        execute(database, ROW.format("a"))
        for each in others:
            await each.knows("a", "running")
        await leader.kill()
        execute(database, "INSERT INTO runs (id, status) VALUES ('b', 'completed')")
        for each in others:
            await each.knows("b", "completed")
            assert each.resets == 0
        second = await leader_of(*others)
        assert second.follows[-1]._progress.checkpoint is not None
        assert all("b" in each.board for each in others)
        assert len({tuple(frames(each)) for each in others}) == 1


async def test_a_node_that_is_stopped_resigns(database: str, nats: NatsServer) -> None:
    """(N10) The next claim follows without a silence."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:
        leader, other = await leader_and_other(*two)
        leader.node.retire()
        await leader.until(lambda: leader.node._relay.track.resigned)
        await asyncio.sleep(QUICK_NODES.heartbeat / 4)  # when a claim is due for anybody else
        assert not leader.node._leadership._is_due("log")
        await other.until(lambda: other.role == "leader")
        kinds = [kind for _, kind in await written(log)]
        at = kinds.index("resign")
        assert kinds[at + 1] == "claim"
        execute(database, ROW.format("a"))
        for each in two:  # it still tells its clients
            await each.knows("a", "running")


async def test_a_node_that_is_stopped_while_it_claims_resigns(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(N10) Its claim was accepted. Otherwise the others would take it for a leader."""
    timing = replace(QUICK_NODES, silence=3600)
    append = Log.append
    claimed: list[bytes] = []

    async def stopped(self: Log, subject: Any, data: bytes, after: int) -> int:
        if b'"k":"claim"' in data and not claimed:
            claimed.append(data)
            first.node.retire()
            await asyncio.sleep(0)
        return await append(self, subject, data, after)

    monkeypatch.setattr(Log, "append", stopped)
    async with InProcessNode(database, nats.url, timing=timing) as first:
        await first.until(lambda: bool(claimed))
        async with InProcessNode(database, nats.url, timing=timing) as second:
            await second.until(lambda: second.role == "leader")
            assert first.role == "follower"


async def test_a_node_that_reads_its_own_claim_leads(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(N2) Nobody has told it that the claim was accepted."""
    append = Log.append

    async def lost(self: Log, subject: str, data: bytes, after: int) -> int:
        await append(self, subject, data, after)  # type: ignore[arg-type]
        if b'"k":"claim"' in data:
            monkeypatch.setattr(Log, "append", append)
            raise TimeoutError
        raise AssertionError

    monkeypatch.setattr(Log, "append", lost)
    async with InProcessNode(database, nats.url) as node:
        await node.until(lambda: node.role == "leader")
        await node.ready()
        assert node.node.report().epoch == 1


async def test_a_node_that_wakes_up_does_not_claim(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(N2) By its own clock nothing was heard for long, and by that of the log it was."""
    async with nodes(database, nats.url) as two:
        leader, other = await leader_and_other(*two)
        claims: list[bytes] = []
        append = Log.append

        async def watched(self: Log, subject: str, data: bytes, after: int) -> int:
            if b'"k":"claim"' in data:
                claims.append(data)
            return await append(self, subject, data, after)  # type: ignore[arg-type]

        monkeypatch.setattr(Log, "append", watched)
        for _ in range(30):
            other.node._node_state.heard = float("-inf")
            with contextlib.suppress(Exception):
                await other.node._leadership._claim("log")
        assert not claims
        assert (await leader_of(*two)) is leader


async def test_a_node_whose_leader_writes_a_later_version_serves_and_does_not_lead(
    database: str, nats: NatsServer
) -> None:
    async with nodes(database, nats.url, count=1) as (node,), opened(nats.url, node.stream) as log:
        execute(database, ROW.format("a"))
        await node.knows("a", "running")
        while node.role == "leader" or node.node.report().epoch < 2:
            last = await log.facts()
            claim = encode("claim", 0, 0, id="later", name="later", base="log")
            claim = claim.replace(b'"v":1', b'"v":%d' % (VERSION + 1))
            with contextlib.suppress(Exception):
                await log.append("log", claim, last.last)
            await asyncio.sleep(0.02)
        epoch = node.node.report().epoch
        state = node.node.state
        await node.until(lambda: state.source == "none")
        assert state.detail == (
            f"nobody writes the log: the leader later writes version {VERSION + 1} of the log, and"
            f" this Brain version {VERSION}"
        )
        assert state.hint == UPGRADE_HINT
        assert node.role == "follower"
        assert node.node._relay.base() is None
        assert node.node.report().epoch == epoch
        assert "a" in node.board


async def test_a_log_that_only_a_later_version_can_read_is_said_once_and_left_alone(
    database: str, nats: NatsServer
) -> None:
    """A node that starts has no board of which it could read on, and looks for one in vain."""
    with capture_logs() as logs:
        async with opened(nats.url, Stream.name) as log:
            await log.facts()
            for seq in (0, 2):
                claim = encode("claim", 0, 0, id="later", name="later", base="log")
                claim = claim.replace(b'"v":1,"r":1', b'"v":%d,"r":%d' % ((VERSION + 1,) * 2))
                await log.append("log", claim, seq)
                await log.append("log", encode("events", seq + 1, 1, b"?"), seq + 1)
            async with InProcessNode(database, nats.url) as node:
                relay, state = node.node._relay, node.node.state
                await node.until(lambda: "the leader later writes version" in state.detail)
                assert state.hint == UPGRADE_HINT
                now = asyncio.get_running_loop().time
                heard = node.node._node_state.heard
                await node.until(lambda: now() - heard > 4 * QUICK_NODES.silence)
                assert relay.base() is None
                assert (await log.facts()).last == 4
    said = [each["event"] for each in logs]
    assert said.count("the log cannot be understood") == 1
    assert said.count("the log does not go on") == 1


async def test_nothing_is_read_from_the_database_while_nats_is_away(database: str) -> None:
    """(N9) The board and its clients stay, and the node is not ready."""
    with nats_running() as server:
        async with nodes(database, server.url) as two:
            execute(database, ROW.format("a"))
            for each in two:
                await each.knows("a", "running")
            server.stop(signal.SIGKILL)
            for each in two:
                await each.until(lambda each=each: each.node.state.code == "nats")  # type: ignore[misc]
            assert all(each.node.state.source == "none" for each in two)
            assert all("a" in each.board for each in two)
            mine = "SELECT pid FROM pg_stat_activity WHERE application_name = 'brain'"
            await eventually(
                lambda: not execute(database, f"{mine} AND datname = current_database()")
            )
            execute(database, "UPDATE runs SET status = 'completed'")
            server.start()
            for each in two:
                await each.knows("a", "completed")
                await each.ready()
                assert each.resets == 0


async def test_a_node_goes_on_where_it_was(database: str) -> None:
    """(N8) NATS was restarted: nothing is loaded, and nothing is pushed twice."""
    with nats_running() as server:
        async with nodes(database, server.url) as two:
            execute(database, ROW.format("a"))
            for each in two:
                await each.knows("a", "running")
            server.stop(signal.SIGKILL)
            server.start()
            execute(database, ROW.format("b"))
            for each in two:
                await each.knows("b", "running")
                assert each.statuses() == [("a", "running"), ("b", "running")]
                assert not any(isinstance(event, Image) for event in each.events[1:])


async def test_a_node_that_does_not_understand_nats_loads_again(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug, or an answer that nobody expects. Its clients stay."""
    request = Client.request
    odd: list[Client] = []

    async def answered(client: Client, subject: str, *given: Any, **options: Any) -> Msg:
        answer = await request(client, subject, *given, **options)
        if client in odd and ".STREAM.INFO." in subject:
            answer.data = b"{}"
        return answer

    async with nodes(database, nats.url) as two:
        _, other = await leader_and_other(*two)
        relay = other.node._relay
        assert relay._reader is not None
        monkeypatch.setattr(Client, "request", answered)
        with capture_logs() as logs:
            odd.append(other.node._connection.client)
            relay._reader.interrupt("asks again")
            await other.until(lambda: "a bug in Brain" in relay.loads)
            odd.clear()
            await other.until(lambda: not relay.loads)
            execute(database, ROW.format("a"))
            for each in two:
                await each.knows("a", "running")
        assert [each.resets for each in two] == [0, 0]
    failed = {each["event"] for each in logs if each["log_level"] == "error"}
    assert "the log cannot be read" in failed


async def test_a_node_that_lacks_what_was_discarded_loads_again(
    database: str, nats: NatsServer
) -> None:
    """(N8) As what differs: each change once, none back, and at the times of the others."""
    async with nodes(database, nats.url, count=2) as two, opened(nats.url, two[0].stream) as log:
        leader, other = await leader_and_other(*two)
        execute(database, ROW.format("a"))
        await other.knows("a", "running")
        deafened = deaf(other)
        deafened.__enter__()
        execute(database, "UPDATE runs SET progress = 5")
        execute(database, "UPDATE runs SET status = 'failed'")
        execute(database, ROW.format("b"))
        await leader.knows("b", "running")
        lead = leader.node._leadership.leader
        assert lead is not None
        await lead._write_board()
        end = await log.last("end")
        assert end is not None
        assert end[1] is not None
        keep = end[1].head["first"]
        await log.connection.ask(f"STREAM.PURGE.{log.name}", seq=keep)
        deafened.__exit__(None, None, None)
        await other.knows("b", "running")
        assert other.resets == 0
        assert other.statuses() == [("a", "running"), ("a", "failed"), ("b", "running")]
        await settled(*two)
        assert frames(other) == frames(leader)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_log_that_was_lost_begins_with_the_board_of_a_node(
    database: str, count: int
) -> None:
    """(N6, N8) Nobody starts over: clients may come back with what they had."""
    with nats_running() as server:
        async with nodes(database, server.url, count=count) as several:
            execute(database, ROW.format("a"))
            execute(database, "INSERT INTO runs (id, status) VALUES ('done', 'completed')")
            for each in several:
                await each.knows("done", "completed")
            before = several[0].board.last_time
            server.stop(signal.SIGKILL)
            server.lose_store()
            execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'a'")
            server.start()
            for each in several:
                await each.knows("a", "failed")
                assert each.resets == 0
                assert each.board.since(before) is not None
            await settled(*several)
            assert len({tuple(frames(each)) for each in several}) == 1
            async with InProcessNode(database, server.url) as late:
                await late.ready()
                await late.knows("a", "failed")
                assert late.board.since(before) is not None
                assert "done" in late.board


async def test_a_leader_writes_the_board_first_in_a_new_log_and_behind_its_first_look(
    database: str,
) -> None:
    """(N6) Otherwise nobody could start from a log whose beginning he has not seen."""
    with nats_running() as server:
        async with (
            nodes(database, server.url, count=1) as (node,),
            opened(server.url, node.stream) as log,
        ):
            execute(database, ROW.format("a"))
            await node.knows("a", "running")
            server.stop(signal.SIGKILL)
            server.lose_store()
            server.start()
            execute(database, ROW.format("b"))
            await node.knows("b", "running")

            async def boards() -> list[int]:
                last = await log.last("end")
                assert last is not None
                assert last[1] is not None
                first = await log.connection.ask(
                    f"STREAM.MSG.GET.{log.name}", seq=1, next_by_subj=log.subject("end")
                )
                head = decode(base64.b64decode(first["message"]["data"])).head
                return [head["as_of"], head["e"], last[1].head["as_of"], last[1].head["e"]]

            async with asyncio.timeout(PATIENCE):
                while True:
                    first, epoch, last, of = await boards()
                    assert first == epoch  # nothing stands between the claim and the board
                    if last > first and of == node.node.report().epoch:
                        break
                    await asyncio.sleep(0.02)


async def test_all_nodes_restart_and_the_log_remembers(database: str, nats: NatsServer) -> None:
    """There is no file of records: what a single Brain has in one stands in the log."""
    async with nodes(database, nats.url) as two:
        execute(database, "INSERT INTO runs (id, status) VALUES ('a', 'completed')")
        for each in two:
            await each.knows("a", "completed")
        since = two[0].board.last_time
    execute(database, "INSERT INTO runs (id, status) VALUES ('b', 'completed')")
    async with InProcessNode(database, nats.url) as node:
        await node.ready()
        await node.knows("b", "completed")
        assert "a" in node.board
        assert node.board.since(since) is not None
        assert node.board.time > since


async def test_a_leader_that_cannot_reach_the_database_lets_another_one_lead(
    database: str, nats: NatsServer
) -> None:
    with Proxy(database) as proxy:
        async with InProcessNode(proxy.url, nats.url) as first:
            await first.ready()
            async with InProcessNode(database, nats.url) as second:
                await second.ready()
                assert first.role == "leader"
                proxy.refuse()
                await second.until(lambda: second.role == "leader")
                execute(database, ROW.format("a"))
                for each in (first, second):
                    await each.knows("a", "running")
                await first.until(lambda: first.node.state.source == "replication")
                assert first.resets == second.resets == 0


async def test_when_nobody_can_reach_the_database_the_leader_waits_for_it(
    database: str, nats: NatsServer
) -> None:
    with Proxy(database) as proxy:
        timing = replace(QUICK_NODES, leaderless=0.4)
        async with InProcessNode(proxy.url, nats.url, timing=timing) as node:
            await node.ready()
            proxy.refuse()
            relay = node.node._relay
            await node.until(lambda: relay.track.given_up == MAX_GIVEN_UP)
            await node.until(lambda: not relay.track.resigned)
            await leader_of(node)
            epoch = node.node.report().epoch
            await node.until(lambda: node.node.state.code == "away")
            proxy.refuse(refusing=False)
            execute(database, ROW.format("a"))
            await node.knows("a", "running")
            await node.until(lambda: node.node._relay.track.given_up == 0)
            assert node.node.report().epoch == epoch


async def test_a_polling_leader_tells_all_nodes_that_it_polls(
    database: str, nats: NatsServer
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        two = [
            await stack.enter_async_context(InProcessNode(database, nats.url, mode="poll"))
            for _ in range(2)
        ]
        for each in two:
            await each.ready()
            assert (each.node.state.source, each.node.state.code) == ("poll", "chosen")
        execute(database, ROW.format("a"))
        for each in two:
            await each.knows("a", "running")
        execute(database, "UPDATE runs SET status = 'completed'")
        for each in two:
            await each.knows("a", "completed")
        assert frames(two[0]) == frames(two[1])


async def test_a_new_history_begins_on_every_node(database: str, nats: NatsServer) -> None:
    async with nodes(database, nats.url) as two:
        execute(database, ROW.format("a"))
        for each in two:
            await each.knows("a", "running")
        execute(database, "ALTER TABLE runs ALTER COLUMN agent TYPE varchar(50)")
        for each in two:
            await each.until(lambda each=each: each.resets == 1)  # type: ignore[misc]
            assert "a" in each.board


async def test_a_comparison_corrects_every_node(database: str, nats: NatsServer) -> None:
    """(N4) `unless_after` is a time in the log, and a seq on each board."""
    async with nodes(database, nats.url) as two:
        execute(database, ROW.format("a"))
        execute(database, ROW.format("b"))
        for each in two:
            await each.knows("b", "running")
        await settled(*two)
        leader = (await leader_of(*two)).node._leadership.leader
        assert leader is not None
        at = two[0].board.time
        two[1].board.apply()  # seqs differ from board to board
        two[1].board.seq += 1000
        execute(database, "UPDATE runs SET progress = 7 WHERE id = 'b'")
        for each in two:
            await each.until(
                lambda each=each: each.board.get("b")[RUN][2] == 7  # type: ignore[misc]
            )
        rows = [(name, "failed", None, None, None, None, None, None) for name in ("a", "b")]
        await leader._give([Snapshot(rows, at, unless_after=at)])
        for each in two:
            await each.knows("a", "failed")
            entry = each.board.get("b")
            assert entry is not None
            assert entry[RUN][1] == "running"  # it has changed since


async def test_a_client_waits_for_what_it_has_seen_elsewhere(
    database: str, nats: NatsServer
) -> None:
    async with nodes(database, nats.url) as two:
        leader, other = await leader_and_other(*two)
        deafened = deaf(other)
        deafened.__enter__()
        execute(database, ROW.format("a"))
        await leader.knows("a", "running")
        seen = leader.board.last_time
        assert other.node.is_behind(seen)
        waiting = asyncio.create_task(other.node.reached(seen))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        deafened.__exit__(None, None, None)
        assert await waiting
        assert not other.node.is_behind(seen)
        assert "a" in other.board


async def test_without_nats_such_a_client_is_sent_away(database: str) -> None:
    with nats_running() as server:
        async with InProcessNode(
            database, server.url, timing=replace(QUICK_NODES, barrier=0.1)
        ) as node:
            await node.ready()
            server.stop(signal.SIGKILL)
            assert not await node.node.reached(node.board.time + 1)
            assert await node.node.reached(node.board.time)


async def test_a_leader_that_is_refused_leads_no_longer(database: str, nats: NatsServer) -> None:
    """(N1) Somebody else has appended."""
    async with nodes(database, nats.url, count=1) as (node,), opened(nats.url, node.stream) as log:
        epoch = node.node.report().epoch
        claim = encode("claim", 0, 0, id="other", name="other", base="log")
        async with asyncio.timeout(PATIENCE):
            while True:
                facts: Facts = await log.facts()
                with contextlib.suppress(Exception):
                    other = await log.append("log", claim, facts.last)
                    break
        await node.until(lambda: node.node.report().epoch >= other)
        await node.until(lambda: node.node.report().epoch > other)  # the other is silent
        written_ = await written(log)
        assert [kind for _, kind in written_].count("claim") == 3
        assert not any(of == epoch for of, _ in written_[written_.index((0, "claim"), 2) :][1:])
        execute(database, ROW.format("a"))
        await node.knows("a", "running")


def test_a_claim_says_what_it_is() -> None:
    claim = Claim(1, "id", "name", "log", VERSION, VERSION + 1)
    assert not claim.is_readable
