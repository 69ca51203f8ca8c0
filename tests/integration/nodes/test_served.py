"""Nodes as processes: what each says of itself, and clients that come back elsewhere."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed

from brain import app
from brain.config import Settings
from brain.delivery.board import Board
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.progress import Progress
from brain.postgres.timing import TIMING
from tests.support.commands import completed
from tests.support.nats import NatsServer, nats_running
from tests.support.nodes import Stream
from tests.support.patience import PATIENCE, eventually, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain, message, served, until

pytestmark = pytest.mark.long

PAIR = "BRAIN_TEST_pair"
ROW = "INSERT INTO runs (id, status) VALUES ('{}', 'running')"


@pytest.fixture(scope="module")
def pair(shared: str, nats: NatsServer) -> Iterator[tuple[Brain, Brain]]:
    """Two nodes of one table."""
    settings = {
        "database_url": shared,
        "nats_url": nats.url,
        "nats_takeover": 1,
        "nats_stream": PAIR,
    }
    with served(**settings) as one, served(**settings) as two:
        yield one, two


def roles(*nodes: Brain) -> list[str]:
    return sorted(node.get("/readyz")[1]["role"] for node in nodes)


def command(*arguments: str, **settings: object) -> tuple[int, str, str]:
    done = completed(*arguments, **settings)
    return done.returncode, done.stdout, done.stderr


def test_each_node_says_which_one_leads_and_how_far_it_has_read(pair: tuple[Brain, Brain]) -> None:
    assert roles(*pair) == ["follower", "leader"]
    documents = [node.get("/readyz")[1] for node in pair]
    assert len({document["epoch"] for document in documents}) == 1
    for node, document in zip(pair, documents, strict=True):
        assert document["source"] == "replication"
        assert document["position"] > document["epoch"] > 0
        assert document["log_lag_seconds"] == 0
        assert "BRAIN_NATS_URL" in document["resume_detail"]
        assert node.metric(f'brain_node_role{{role="{document["role"]}"}}') == 1
        assert node.metric("brain_node_epoch") == document["epoch"]
        assert node.metric("brain_node_position") >= document["position"]
        assert (
            f"epoch={document['epoch']} here={'true' if document['role'] == 'leader' else 'false'}"
            in node.log()
        )


async def test_a_client_comes_back_on_the_other_node(
    pair: tuple[Brain, Brain], shared: str
) -> None:
    one, two = pair
    async with one.connect() as client:
        execute(shared, ROW.format("wanders"))
        (first,) = await until(client, "wanders", "running")
    execute(shared, "UPDATE runs SET status = 'completed' WHERE id = 'wanders'")
    await two.knows("wanders", "completed")
    async with two.connect(f"?since={first['timestamp']}&include=ready") as client:
        assert (await message(client))["data"]["status"] == "completed"
        assert (await message(client))["type"] == "ready"


async def test_a_list_of_one_node_is_continued_on_another_while_the_leader_polls(
    database: str, nats: NatsServer
) -> None:
    """The table passes through states that no poll sees. Who was shown one is told what became of
    the run, whatever his filter is.
    """
    settings = {
        "database_url": database,
        "nats_url": nats.url,
        "nats_stream": Stream.name,
        "source": "poll",
        "follows": "poll",
        "poll_interval": 0.7,
    }
    agent = "UPDATE runs SET agent = '{}'"
    with served(**settings) as one, served(**settings) as two:
        execute(database, "INSERT INTO runs (id, status, agent) VALUES ('r', 'running', 'a')")
        for each in (one, two):
            await each.knows("r", "running")
        for number in range(2):
            execute(database, agent.format("between"))
            status, page = one.get("/api/runs?agent=between")
            assert status == 200
            execute(database, agent.format(number))
            await eventually(
                lambda number=number: (  # type: ignore[misc]
                    two.get(f"/api/runs?order=changed&agent={number}")[1]["runs"]
                )
            )
            query = f"?agent=between&include=ready&since={page['timestamp']}"
            async with two.connect(query) as client:
                sent = []
                while (found := await message(client))["type"] != "ready":
                    sent.append(found["data"]["id"])
            assert {run["id"] for run in page["runs"]} <= set(sent)


@pytest.mark.usefixtures("pair")
def test_brain_nodes_lists_them(shared: str, nats: NatsServer) -> None:
    settings = {"database_url": shared, "nats_url": nats.url, "nats_stream": PAIR}
    status, text, _ = command("nodes", **settings)
    assert status == 0
    assert [line.split()[1] for line in text.splitlines()[1:3]].count("leader") == 1
    status, text, _ = command("nodes", "--json", **settings)
    nodes: list[dict[str, Any]] = json.loads(text)
    assert (status, len(nodes), {node["ready"] for node in nodes}) == (0, 2, {True})


def test_brain_nodes_says_what_is_missing(nats: NatsServer) -> None:
    status, _, error = command("nodes")
    assert status == 2
    assert "BRAIN_NATS_URL is not set" in error
    url = "postgresql://nobody@127.0.0.1:1/none"
    status, text, _ = command("nodes", database_url=url, nats_url=nats.url)
    assert status == 1
    assert text.startswith("no node answers for the stream BRAIN_")
    status, _, error = command("nodes", database_url=url, nats_url="nats://127.0.0.1:1")
    assert status == 2
    assert "no connection to NATS" in error


def test_without_a_log_nothing_of_it_is_imported() -> None:
    code = "import sys, brain.app, brain.cli.commands; print([m for m in sys.modules if m == 'nats'"
    code += " or m.startswith(('nats.', 'brain.nodes'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_a_node_that_is_stopped_is_replaced_at_once_and_exits_with_0(
    database: str, nats: NatsServer
) -> None:
    """(N10) Its clients are told to come back, and the other node leads before a silence. Who
    includes deletes starts over: nobody knows what was deleted in between.
    """
    settings = {
        "database_url": database,
        "nats_url": nats.url,
        "nats_takeover": 60,
        "nats_stream": Stream.name,
    }
    with served(**settings) as one, served(**settings) as two:
        assert roles(one, two) == ["follower", "leader"]
        leader, other = (one, two) if one.get("/readyz")[1]["role"] == "leader" else (two, one)
        async with other.connect() as client, other.connect("?include=deleted") as forgetful:
            assert leader.stop() == 0
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(forgetful.recv(), PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4410
            execute(database, ROW.format("after"))
            assert (await message(client))["data"]["id"] == "after"
            assert other.get("/readyz")[1]["role"] == "leader"
        with contextlib.suppress(ProcessLookupError):
            leader.process.send_signal(signal.SIGKILL)


def test_a_node_without_nats_says_so_and_keeps_running(database: str) -> None:
    with nats_running() as server:
        settings = {"database_url": database, "nats_url": server.url, "nats_takeover": 1}
        with served(**settings) as node:
            server.stop(signal.SIGKILL)
            wait_until(lambda: node.get("/readyz")[0] == 503)
            document = node.get("/readyz")[1]
            assert (document["source"], document["code"]) == ("none", "nats")
            assert "BRAIN_NATS_URL" in document["hint"]
            assert node.get("/healthz")[0] == 200
            assert node.get("/api/runs")[0] == 200
            server.start()
            node.wait_ready("replication")


def test_a_node_of_a_nats_without_jetstream_says_what_it_was_told(database: str) -> None:
    account = "accounts { A { users: [ { user: u, password: p } ] } }"
    with nats_running(account) as server:
        url = server.url.replace("//", "//u:p@")
        node = Brain(database_url=database, nats_url=url, nats_takeover=1, wait=False)
        try:
            node.wait_for('now=none detail="nobody writes the log: .*(JetStream|[$]JS.API)')
        finally:
            assert node.stop() == 0


@pytest.mark.parametrize(
    ("configuration", "user"),
    [
        ('authorization { token: "a-token" }', "a-token@"),
        ('authorization { user: "u", password: "p/w" }', "u:p%2Fw@"),
    ],
)
def test_what_the_url_has_identifies_the_node(database: str, configuration: str, user: str) -> None:
    with nats_running(configuration) as server:
        url = server.url.replace("//", f"//{user}")
        with served(database_url=database, nats_url=url) as node:
            assert node.get("/readyz")[1]["role"] == "leader"
            assert user not in node.log()
        node = Brain(database_url=database, nats_url=server.url, wait=False)
        try:
            node.wait_for("no connection to NATS: .*uthorization")
        finally:
            node.stop()


def test_a_node_checks_the_certificate_of_nats(database: str, tmp_path: Path) -> None:
    """`tls://`, signed by the file of BRAIN_NATS_CA, and by nobody that the system knows."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ],
            *["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    with nats_running(f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}') as server:
        url = server.url.replace("nats:", "tls:")
        settings = {"database_url": database, "nats_url": url, "nats_stream": Stream.name}
        with served(**settings, nats_ca=certificate) as node:
            assert node.get("/readyz")[1]["role"] == "leader"
        node = Brain(**settings, wait=False)  # type: ignore[arg-type]
        try:
            node.wait_for("certificate verify failed")
        finally:
            node.stop()


def test_a_file_of_credentials_that_is_missing_is_said_at_once(database: str) -> None:
    node = Brain(
        database_url=database,
        nats_url="nats://127.0.0.1:1",
        nats_credentials="/nowhere/user.creds",
        wait=False,
    )
    assert node.process.wait(PATIENCE) == 2
    assert "BRAIN_NATS_CREDENTIALS='/nowhere/user.creds': No such file" in node.log()


async def test_a_leader_reads_less_often_than_a_single_brain(
    shared: str, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one read brings is one message, and each node pays for it."""
    monkeypatch.setenv("BRAIN_NATS_URL", nats.url)
    monkeypatch.setenv("BRAIN_DATABASE_URL", shared)
    settings = Settings()
    board = Board(1 << 20)
    follow = partial(
        Follow, shared, settings.table, Decoder({}, 1), mode="auto", interval=1, application="brain"
    )
    node = app._node(
        settings,
        shared,
        board,
        hub=cast("Any", None),
        make_follow=follow,
        identify=cast("Any", None),
    )
    source = node._made(board, Progress())
    assert isinstance(source, Follow)
    assert source._timing.stream.gulp > TIMING.stream.gulp
