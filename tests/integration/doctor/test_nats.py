"""What `brain doctor` says of NATS, with a real nats-server."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import nats
import pytest

from brain.doctor.nats import Nodes
from brain.doctor.nats import nats as examine
from brain.doctor.report import Finding
from brain.nodes.connection import Access
from brain.nodes.log import Log
from brain.nodes.roster import KEYS
from tests.support.commands import run
from tests.support.nats import NatsServer, available, nats_running
from tests.support.ports import free_port

pytestmark = pytest.mark.skipif(not available(), reason="nats-server is not installed")

STREAM = "BRAIN_doctor"


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with nats_running() as server:
        yield server


def found(url: str, **given: Any) -> list[Finding]:
    settings: dict[str, Any] = {"stream": STREAM, "replicas": 1, "storage": "file"} | given
    return asyncio.run(examine(Nodes(Access([url]), **settings)))


def checks(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.check, each.level) for each in findings]


async def make(url: str, **changed: Any) -> None:
    """The stream as a node makes it, but for these settings."""
    client = await nats.connect(url)
    config = Log(None, STREAM, timing=None)._config | changed  # type: ignore[arg-type]
    await client.request(f"$JS.API.STREAM.DELETE.{STREAM}", b"")
    answer = await client.request(f"$JS.API.STREAM.CREATE.{STREAM}", json.dumps(config).encode())
    assert "error" not in json.loads(answer.data), answer.data
    await client.close()


def test_a_server_without_a_stream_has_all_that_nodes_need(server: NatsServer) -> None:
    assert found(server.url, stream="BRAIN_none") == []


def test_a_stream_of_the_nodes_is_well_and_stays_empty(server: NatsServer) -> None:
    asyncio.run(make(server.url))
    assert found(server.url) == []

    async def messages() -> int:
        client = await nats.connect(server.url)
        answer = await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"")
        await client.close()
        state = json.loads(answer.data)["state"]
        return int(state["messages"] + state["consumer_count"])

    assert asyncio.run(messages()) == 0


def test_other_settings_of_the_stream_are_reported(server: NatsServer) -> None:
    asyncio.run(make(server.url, max_age=60_000_000_000, max_bytes=1_000_000))
    better, note = found(server.url, storage="memory")
    assert checks([better, note]) == [("nats_stream", "better"), ("nats_stream", "note")]
    assert "max_age is 60000000000, not 0" in better.what
    assert "storage is file, not memory" in note.what
    assert "max_bytes is 1000000, not 268435456" in note.what


@pytest.mark.parametrize(
    "changed", [{"max_msg_size": 1000}, {"no_ack": True}, {"subjects": [f"{STREAM}.log"]}]
)
def test_settings_with_which_nobody_can_lead_are_broken(
    server: NatsServer, changed: dict[str, Any]
) -> None:
    asyncio.run(make(server.url, **changed))
    (finding,) = found(server.url)
    assert checks([finding]) == [("nats_stream", "broken")]
    assert next(iter(changed)) in finding.what
    assert f"nats stream rm {STREAM}" in finding.hint


def test_nats_that_does_not_answer_or_refuses_is_reported() -> None:
    (finding,) = found(f"nats://127.0.0.1:{free_port()}")
    assert checks([finding]) == [("nats", "broken")]
    with nats_running('authorization { token: "secret" }') as server:
        (finding,) = found(server.url)
    assert checks([finding]) == [("nats", "broken")]
    # The server resets the connection behind its error: the reset may come first.
    assert re.search("authorization|reset", finding.what.lower())
    assert "secret" not in str(finding)


def test_a_server_without_room_or_for_small_messages_is_reported() -> None:
    with nats_running("max_payload: 65536") as server:
        assert checks(found(server.url)) == [("nats_limits", "broken")]
    accounts = (
        "accounts { A { jetstream { max_file: 1MB, max_mem: 1MB, max_streams: 2 }, "
        "users: [ { user: u, password: p } ] } }"
    )
    with nats_running(accounts) as server:
        (finding,) = found(server.url.replace("//", "//u:p@"))
        assert checks([finding]) == [("nats_limits", "broken")]
        assert "bytes of storage left" in finding.what


@pytest.mark.parametrize(
    ("denied", "cannot"),
    [
        ("$JS.API.STREAM.INFO.>", "permissions violation"),
        ("$JS.API.CONSUMER.CREATE.>", "a node cannot read the log"),
        ("$JS.API.STREAM.MSG.GET.>", "a node cannot look for the last board"),
        (f"{STREAM}.ckpt", f"a node cannot write to {STREAM}.ckpt"),
    ],
)
def test_a_permission_that_is_missing_is_reported(denied: str, cannot: str) -> None:
    users = (
        "authorization { users: [ { user: all, password: p }, { user: u, password: p, "
        f'permissions: {{ publish: {{ deny: ["{denied}"] }} }} }} ] }}'
    )
    with nats_running(users) as server:
        asyncio.run(make(server.url.replace("//", "//all:p@")))
        (finding,) = found(server.url.replace("//", "//u:p@"))
    assert checks([finding]) == [("nats_permission", "broken")]
    assert cannot in finding.what.lower() or cannot in finding.what


def test_nodes_of_which_none_leads_are_reported(server: NatsServer) -> None:
    """Whatever keeps them from it, such as a full disk of JetStream."""
    asyncio.run(make(server.url))

    async def examined() -> list[Finding]:
        async def answer(message: Any) -> None:
            if message.reply:
                node = dict.fromkeys(KEYS, 0) | {"name": "n", "role": "follower"}
                await message.respond(json.dumps(node).encode())
                await message.respond(b"rubbish")

        client = await nats.connect(server.url)
        await client.subscribe(f"{STREAM}.nodes", cb=answer)
        await client.flush()
        found = await examine(Nodes(Access([server.url]), STREAM, 1, "file"))
        await client.close()
        return found

    (finding,) = asyncio.run(examined())
    assert checks([finding]) == [("nats_stream", "broken")]
    assert finding.what == f"of 1 nodes that share the stream {STREAM}, none leads"


def test_the_command_examines_nats_too(database: str) -> None:
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    said = run("doctor", code=2, database_url=database, nats_url=url)
    assert "broken: NATS does not accept a connection" in said
    assert "Brain cannot follow public.runs as it is." in said
    assert "secret" not in said


def test_the_command_names_the_log_that_is_well(database: str, server: NatsServer) -> None:
    settings = {"database_url": database, "nats_url": server.url, "nats_stream": "BRAIN_well"}
    said = run("doctor", code=0, **settings)
    assert said.splitlines()[-2:] == [
        "Brain streams public.runs.",
        "It shares the table with other nodes by the stream BRAIN_well of NATS.",
    ]
