"""What others do to the log: who may publish to it, an operator who edits it, and another cluster
that was given its name by mistake.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.nodes.connection import Access, Connection
from brain.nodes.log import Facts, Log, Subject
from brain.nodes.messages import Message, encode
from brain.nodes.timing import NodeTiming
from tests.integration.nodes.test_nodes import deaf
from tests.support.databases import Databases
from tests.support.nats import NatsServer, nats_running
from tests.support.nodes import QUICK_NODES, InProcessNode, leader_and_other, leader_of, opened
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

ROW = "INSERT INTO runs (id, status) VALUES ('{}', 'running')"

RUBBISH = [
    b"",
    b"hello",
    b"\xff\xfe\x00",
    b"[1, 2]",
    b'{"k":"events","e":"1","n":2}',
    b'{"v":1,"r":1,"k":"events","e":1,"n":2,"part":7}',
    b"[" * 100_000,
    b"x" * 1_000_000,
]


@pytest.fixture
def elsewhere(servers: Callable[[int], Databases], postgres: Postgres) -> Iterator[str]:
    """Another database with a table of the same name."""
    with servers(postgres.version).one() as name:
        yield postgres.url(name, ROLE)


@contextlib.asynccontextmanager
async def nodes(
    database: str, nats: str, timing: NodeTiming = QUICK_NODES
) -> AsyncIterator[list[InProcessNode]]:
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(InProcessNode(database, nats, timing=timing))
            for _ in range(2)
        ]
        await leader_of(*found)
        for each in found:
            await each.ready()
        yield found


async def all_know(several: list[InProcessNode], run_id: str, status: str = "running") -> None:
    for each in several:
        await each.knows(run_id, status)


async def is_known(log: Log) -> bool:
    """Whether the log says of which table it is."""
    end = await log.last("end")
    return end is not None and end[1] is not None and bool(end[1].head["checkpoint"])


@pytest.mark.parametrize("subject", ["log", "ckpt", "end"])
async def test_what_somebody_else_writes_is_skipped_and_said(
    database: str, nats: NatsServer, subject: str
) -> None:
    """The leader is refused behind it, and leads again at once: it does not wait for a silence."""
    timing = replace(QUICK_NODES, silence=3600)
    with capture_logs() as logs:
        async with nodes(database, nats.url, timing) as two, opened(nats.url, two[0].stream) as log:
            leader = await leader_of(*two)
            for data in RUBBISH:
                await log.connection.client.publish(log.subject(subject), data)
            execute(database, ROW.format("a"))
            await all_know(two, "a")
            await leader_of(*two)
            assert {each.resets for each in two} == {0}
            assert leader.node.report().foreign == (len(RUBBISH) if subject == "log" else 0)
            async with InProcessNode(database, nats.url) as third:
                await third.ready()
                await third.knows("a", "running")
    told = [each for each in logs if each["event"] == "somebody else writes to the log"]
    assert bool(told) == (subject == "log")
    assert len(told) <= 3  # once a minute on each node
    for each in told:
        assert f"publish to {log.name}.>" in each["hint"]


async def test_while_somebody_else_writes_a_leader_that_dies_is_replaced(
    database: str, nats: NatsServer
) -> None:
    """What keeps coming is no sign of a leader."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:

        async def write() -> None:
            pause = QUICK_NODES.silence / 5
            while True:
                await log.connection.client.publish(log.subject("log"), b"rubbish")
                await asyncio.sleep(pause)
                pause *= (
                    1.02  # each ends a leader (N1), and on a busy machine the next needs longer
                )

        writing = asyncio.create_task(write())
        leader, other = await leader_and_other(*two)
        await leader.kill()
        await other.until(lambda: other.role == "leader")
        execute(database, ROW.format("a"))
        await other.knows("a", "running")
        writing.cancel()


async def test_a_node_claims_a_log_that_has_another_end_whenever_it_asks(
    database: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else writes more often than one can ask where it ends."""
    async with nodes(database, nats.url) as two:
        leader, other = await leader_and_other(*two)
        await leader.kill()
        ask_facts, ask_last = Log.facts, Log.last

        async def write(log: Log) -> None:
            await log.connection.publish(log.subject("log"), b"rubbish")
            read = log.connection.ask(f"STREAM.INFO.{log.name}")
            end = (await read)["state"]["last_seq"]
            await other.until(lambda: other.node.report().position >= end)

        async def facts(log: Log) -> Facts:
            found = await ask_facts(log)
            await write(log)
            return found

        async def last(log: Log, subject: Subject) -> tuple[int, Message | None] | None:
            found = await ask_last(log, subject)
            await write(log)
            return found

        monkeypatch.setattr(Log, "facts", facts)
        monkeypatch.setattr(Log, "last", last)
        await other.until(lambda: other.role == "leader")
        execute(database, ROW.format("a"))
        await other.knows("a", "running")


async def test_a_log_that_nobody_can_read_on_heals(database: str, nats: NatsServer) -> None:
    """A message that follows nothing, again and again, from whatever image the log is loaded."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:
        execute(database, ROW.format("a"))
        await all_know(two, "a")
        for n, body in ((10**6, b"[]"), (1, b"{"), (1, b'[["c",1]]')):
            epoch = two[0].node.report().epoch
            forged = encode("events", epoch, n, body)
            await log.connection.client.publish(log.subject("log"), forged)
            execute(database, "UPDATE runs SET progress = coalesce(progress, 0) + 1")
            execute(database, ROW.format(f"after {n} {len(body)}"))
            await all_know(two, f"after {n} {len(body)}")
        assert {each.resets for each in two} == {0}
        async with InProcessNode(database, nats.url) as third:
            await third.ready()
            await third.knows("a", "running")


@pytest.mark.parametrize(
    "purged", [{}, {"filter": "log"}, {"filter": "ckpt"}, {"filter": "end"}, {"keep": 1}]
)
async def test_a_log_that_was_purged_is_loaded_again(
    database: str, nats: NatsServer, purged: dict[str, Any]
) -> None:
    """A node that starts finds no image, or no messages behind it, and asks for another one."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:
        execute(database, ROW.format("a"))
        await all_know(two, "a")
        execute(database, ROW.format("b"))
        await all_know(two, "b")
        if "filter" in purged:
            purged = {"filter": log.subject(purged["filter"])}
        await log.connection.ask(f"STREAM.PURGE.{log.name}", **purged)
        async with InProcessNode(database, nats.url) as third:
            await third.ready()
            await all_know([third], "a")
            execute(database, ROW.format("c"))
            await all_know([*two, third], "c")
        assert {each.resets for each in two} == {0}


async def test_a_leader_that_cannot_read_what_it_writes_leads_no_longer(
    database: str, nats: NatsServer
) -> None:
    """As long as it writes, nobody else claims; and its own source waits for its board."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:
        leader, other = await leader_and_other(*two)
        with deaf(leader):
            execute(database, ROW.format("a"))
            await other.knows("a", "running")
            await log.connection.ask(f"STREAM.PURGE.{log.name}")
            await eventually(lambda: leader.node._relay.loads)
        execute(database, ROW.format("b"))
        await all_know(two, "a")
        await all_know(two, "b")
        assert {each.resets for each in two} == {0}


async def test_settings_with_which_nobody_can_lead_are_said(
    database: str, nats: NatsServer
) -> None:
    """An operator has edited the stream: no node is ready, and each says why; and then it heals."""
    async with nodes(database, nats.url) as two, opened(nats.url, two[0].stream) as log:
        info = await log.connection.ask(f"STREAM.INFO.{log.name}")
        await log.connection.ask(
            f"STREAM.UPDATE.{log.name}", **(info["config"] | {"max_msg_size": 20})
        )
        for each in two:
            await each.until(
                lambda each=each: "exceeds maximum allowed" in each.node.state.detail  # type: ignore[misc]
            )
            assert (each.node.state.source, each.node.state.code) == ("none", "nats")
        await log.connection.ask(f"STREAM.UPDATE.{log.name}", **info["config"])
        execute(database, ROW.format("a"))
        await all_know(two, "a")
        for each in two:
            await each.ready()


async def test_what_is_forbidden_in_mid_run_is_said(database: str) -> None:
    """NATS answers nothing to a request that is forbidden, and tells the connection."""
    users = """
        authorization {{ users: [ {{ user: u, password: p, permissions: {{
            publish: {{ deny: [{}] }} }} }} ] }}
    """
    with nats_running(users.format('"nothing"')) as server:
        url = server.url.replace("//", "//u:p@")
        async with nodes(database, url) as two:
            stream = two[0].stream
            server._settings = users.format(f'"{stream}.log"')
            server.stop()
            server.start()
            for each in two:
                await each.until(
                    lambda each=each: "permissions violation" in each.node.state.detail.lower()  # type: ignore[misc]
                )
            server._settings = users.format('"nothing"')
            server.stop()
            server.start()
            execute(database, ROW.format("a"))
            await all_know(two, "a")


async def test_a_log_of_another_table_is_left_alone(
    database: str, elsewhere: str, nats: NatsServer
) -> None:
    """Two clusters with one stream: the one that comes second shows nothing of the first, says so,
    and takes the log over when the first has been silent for long.
    """
    timing = replace(QUICK_NODES, silence=0.3)
    async with contextlib.AsyncExitStack() as stack:
        first = [
            await stack.enter_async_context(InProcessNode(database, nats.url)) for _ in range(2)
        ]
        execute(database, ROW.format("a"))
        execute(elsewhere, ROW.format("b"))
        await all_know(first, "a")
        async with opened(nats.url, first[0].stream) as log, asyncio.timeout(PATIENCE):
            while not await is_known(log):
                await asyncio.sleep(0.02)
        second = await stack.enter_async_context(InProcessNode(elsewhere, nats.url, timing=timing))
        await second.until(lambda: "the log is of another database" in second.node.state.detail)
        assert second.node.state.source == "none"
        assert "BRAIN_NATS_STREAM" in second.node.state.hint
        leader = await leader_of(*first)
        await leader.stop()  # its own cluster comes first
        execute(database, ROW.format("c"))
        (other,) = (each for each in first if each is not leader)
        await other.knows("c", "running")
        assert not second.board.begun
        await other.stop()
        await second.knows("b", "running")
        assert "a" not in second.board


async def test_a_node_that_was_misled_leaves_the_log(
    database: str, elsewhere: str, nats: NatsServer
) -> None:
    """Both began at once, in an empty log: who follows finds out when the leader has looked."""
    execute(database, ROW.format("a"))
    execute(elsewhere, ROW.format("b"))
    async with InProcessNode(database, nats.url) as one, InProcessNode(elsewhere, nats.url) as two:
        await eventually(
            lambda: any("another database" in each.node.state.detail for each in (one, two))
        )
        right, wrong = (two, one) if "another" in one.node.state.detail else (one, two)
        assert right.role == "leader"
        await right.ready()
        assert wrong.node.state.source == "none"
        await right.stop()
        await wrong.knows("b" if wrong is two else "a", "running")
        await wrong.until(lambda: len(wrong.board) == 1)


async def test_a_node_that_reads_the_table_otherwise_is_told(
    database: str, superuser_url: str, nats: NatsServer
) -> None:
    with capture_logs() as logs:
        async with InProcessNode(database, nats.url) as one:
            await one.ready()
            async with InProcessNode(superuser_url, nats.url) as two:
                await two.ready()
                await two.until(
                    lambda: any(
                        each["event"] == "the leader reads the table otherwise" for each in logs
                    )
                )
    (said,) = [each for each in logs if each["event"] == "the leader reads the table otherwise"]
    assert said["differs"] == "the role"
    assert "same role in the database" in said["hint"]


async def test_a_server_that_accepts_and_never_answers_is_given_up(database: str) -> None:
    """And another one of the list is tried."""
    held = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append((reader, writer))
        await asyncio.sleep(3600)

    deaf = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = deaf.sockets[0].getsockname()[1]
    with nats_running() as server:
        access = Access([f"nats://127.0.0.1:{port}", server.url])
        async with InProcessNode(database, server.url, access=access) as node:
            await node.ready()
    for _, writer in held:
        writer.close()
    deaf.close()


async def test_another_service_that_answers_is_no_log(nats: NatsServer) -> None:
    """What is no document of JetStream is no answer."""
    async with Connection(Access([nats.url]), "test", QUICK_NODES) as connection:
        await eventually(lambda: connection.is_open)
        client = connection.client

        async def answer(message: Any) -> None:
            await message.respond(b"no JSON")

        await client.subscribe("other.log", cb=answer)
        log = Log(connection, "other", timing=QUICK_NODES)
        with pytest.raises(Exception, match="something else than JetStream has answered"):
            await log.append("log", b"", 0)
