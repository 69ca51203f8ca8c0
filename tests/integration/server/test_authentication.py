"""Tokens for /ws and for /api, against a Brain that requires them, as its own process."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.issuer import SECRET, Key, hosting, jwks, token
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import execute
from tests.support.served import Brain, message, served, silent
from tests.support.wire import TEXT, Baseline, Frame, Peer, baseline, frame, request, settled


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared, jwt_secret=SECRET, flush_interval=0.005) as brain:
        yield brain
        assert "eyJ" not in brain.log(), "no token is ever logged"
        assert SECRET not in brain.log()


@pytest.fixture(scope="module")
def before(brain: Brain) -> Baseline:
    return baseline(brain)


@pytest.fixture(autouse=True)
def _settled(brain: Brain, before: Baseline, shared: str) -> Iterator[None]:
    yield
    settled(brain, before)
    execute(shared, "TRUNCATE runs")


def by_header(brain: Brain, text: str, query: str = "") -> connect:
    return brain.connect(query, additional_headers={"Authorization": f"Bearer {text}"})


def by_subprotocol(brain: Brain, text: str, query: str = "") -> connect:
    return brain.connect(query, subprotocols=["bearer", text])


async def refusal(connecting: connect) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    answer = caught.value.response
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.body is not None
    return answer.status_code, json.loads(answer.body)["detail"]


async def ended(client: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(client.recv(), PATIENCE)
    return client.close_code, client.close_reason


@pytest.mark.parametrize("way", [by_header, by_subprotocol])
async def test_a_token_in_the_request_is_accepted(brain: Brain, shared: str, way: Any) -> None:
    async with way(brain, token()) as client:
        assert client.subprotocol == ("bearer" if way is by_subprotocol else None)
        execute(shared, "INSERT INTO runs (id) VALUES ('a')")
        assert (await message(client))["data"]["id"] == "a"
        await client.send("ping")
        assert await client.recv() == "pong"
    assert await refusal(way(brain, token("another secret, as long as the other one"))) == (
        401,
        "the token's signature is not valid",
    )
    assert await refusal(way(brain, token(exp=time.time() - 1))) == (401, "the token has expired")
    assert await refusal(way(brain, token(scope="write"))) == (
        403,
        "the token's scope does not contain 'read'",
    )


async def test_a_token_in_the_first_message_is_accepted(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id, status) VALUES ('old', 'running')")
    async with brain.connect("?snapshot=true") as client:
        assert await silent(client), "nothing is said before"
        await client.send(token())
        assert (await message(client))["data"]["id"] == "old"
        execute(shared, "INSERT INTO runs (id) VALUES ('new')")
        assert (await message(client))["data"]["id"] == "new"
        await client.send("ping")
        assert await client.recv() == "pong"


async def test_a_ping_behind_the_token_is_answered_once_the_token_is_accepted(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port) as peer:
        peer.send(frame(token().encode()) + frame(b"ping") * 2)
        assert await peer.frame() == Frame(TEXT, b"pong")
    async with await Peer.upgraded(brain.port) as peer:
        peer.send(frame(b"nonsense") + frame(b"ping"))
        assert [found.code for found in await peer.frames()] == [4401], "and not before"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("", 4401),
        ("ping", 4401),
        (b"bytes", 4401),
        (token(exp=time.time() - 9), 4401),
        (token(scope="write", exp=time.time() + 3600), 4403),
    ],
)
async def test_another_first_message_closes_the_connection(
    brain: Brain, said: str | bytes, code: int
) -> None:
    async with brain.connect() as client:
        await client.send(said)
        assert (await ended(client))[0] == code


async def test_a_client_without_a_token_is_closed_after_5_seconds(
    brain: Brain, shared: str
) -> None:
    began = time.monotonic()
    async with brain.connect() as client, brain.connect() as other:
        execute(shared, "INSERT INTO runs (id) VALUES ('a')")
        assert await ended(client) == (4401, "the first message is a token, within 5 s")
        assert time.monotonic() - began > 4.5
        await ended(other)


async def test_a_token_in_the_segment_of_the_request_is_accepted(brain: Brain, shared: str) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(request() + frame(token().encode()) + frame(b"ping"))
        assert (await peer.answer()).status == 101
        assert await peer.frame() == Frame(TEXT, b"pong"), "it is in"
        execute(shared, "INSERT INTO runs (id) VALUES ('a')")
        assert (await peer.message())["data"]["id"] == "a"


async def test_a_token_in_the_url_is_rejected(brain: Brain) -> None:
    for name in ("token", "access_token", "authorization", "bearer", "jwt"):
        assert (await refusal(brain.connect(f"?{name}={token()}")))[0] == 400
        assert brain.get(f"/api/runs?{name}={token()}")[0] == 401


@pytest.mark.parametrize("first", [False, True])
async def test_a_connection_ends_with_its_token(brain: Brain, shared: str, *, first: bool) -> None:
    for lasts in (
        1.2,
        5,
        30,
    ):  # a busy machine may not even come to the message while a short one lasts
        expires = time.time() + lasts
        short = token(exp=expires)
        try:
            async with brain.connect() if first else by_header(brain, short) as client:
                if first:
                    await client.send(short)
                    await client.send("ping")
                    assert await client.recv() == "pong", "it is in"
                execute(
                    shared,
                    "INSERT INTO runs (id) VALUES ('a')"
                    " ON CONFLICT (id) DO UPDATE SET progress = 1",
                )
                await message(client)
                assert await ended(client) == (4401, "the token has expired")
                # A token's exp is a whole number of seconds for PyJWT, and a fraction for Brain.
                assert time.time() > expires - 0.1
                return
        except (InvalidStatus, ConnectionClosed):
            assert time.time() > expires
    pytest.fail("it never comes to that")


async def test_a_filter_cannot_be_widened(brain: Brain, shared: str) -> None:
    mine = token(agent="mine", scope="read write")
    for query in ("?agent=other", "?agent=mine&agent=other"):
        status, said = await refusal(by_header(brain, mine, query))
        assert status == 403
        assert "agent" in said
        assert "other'" not in said
    async with brain.connect("?agent=other") as client:
        await client.send(mine)
        assert (await ended(client))[0] == 4403
    # Every way by which a run of others might come along: its past, an unknown past, the beginning,
    # what was missed.
    ((runs,),) = execute(shared, "SELECT count(*) FROM runs")
    await eventually(lambda: brain.metric("brain_runs") == runs)  # after what other tests deleted
    execute(
        shared,
        "INSERT INTO runs (id, status, agent)"
        " VALUES ('x', 'running', 'mine'), ('y', 'running', 'other')",
    )
    execute(shared, "INSERT INTO runs (id, status) VALUES ('z', 'running')")
    await eventually(lambda: brain.metric("brain_runs") == runs + 3)
    await asyncio.sleep(0.1)
    async with (
        by_header(brain, mine) as live,
        by_header(brain, mine, "?snapshot=true") as snapshot,
        by_header(brain, mine, "?run_id=y&run_id=x&run_id=w") as by_id,
        by_header(brain, mine, "?status=running&status=completed") as by_status,
        by_header(brain, token(agent=["mine", "too"])) as two,
        by_header(brain, token()) as everything,
    ):
        assert (await message(snapshot))["data"]["id"] == "x"
        execute(shared, "UPDATE runs SET progress = 1 WHERE id IN ('y', 'z')")
        execute(shared, "UPDATE runs SET agent = 'too' WHERE id = 'x'")
        execute(shared, "UPDATE runs SET status = 'completed' WHERE id = 'x'")
        execute(shared, "INSERT INTO runs (id, agent) VALUES ('w', 'mine')")
        for client in (live, snapshot, by_id):
            found = (await message(client))["data"]
            assert (found["id"], found["agent"]) == ("w", "mine"), (
                "a run that left is shown no more"
            )
            assert await silent(client)
        assert await silent(by_status)
        assert [(await message(two))["data"]["id"] for _ in range(3)] == ["x", "x", "w"]
        stamps = [(await message(everything))["timestamp"] for _ in range(5)]
        async with by_header(brain, mine, f"?since={stamps[0]}") as since:
            assert (await message(since))["data"]["id"] == "w"
            assert await silent(since)


async def test_a_run_with_an_unknown_past_stays_hidden(shared: str) -> None:
    """After a start Brain does not know finished runs: an UPDATE of one may have been any agent's,
    for who filters.
    """
    execute(shared, "INSERT INTO runs (id, status, agent) VALUES ('done', 'completed', 'other')")
    with served(database_url=shared, jwt_secret=SECRET, flush_interval=0.005) as brain:
        async with (
            by_header(brain, token(agent="mine")) as mine,
            by_header(brain, token(), "?agent=mine") as open_,
        ):
            execute(shared, "UPDATE runs SET error = 'a' WHERE id = 'done'")
            assert (await message(open_))["data"]["id"] == "done"
            assert await silent(mine)


# The HTTP API


def ask(
    brain: Brain, method: str, path: str, text: str | None = None, body: object = None
) -> tuple[int, Any]:
    headers = {} if text is None else {"Authorization": f"Bearer {text}"}
    data = None if body is None else json.dumps(body).encode()
    headers |= {} if data is None else {"Content-Type": "application/json"}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{brain.port}{path}", method=method, headers=headers, data=data
    )
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _said(error)


def test_the_log_names_the_writer_and_the_path_of_a_request_without_a_token(brain: Brain) -> None:
    text = token(scope="write", sub="agent\n7 " + "x" * 90)
    assert ask(brain, "POST", "/api/runs?query=hidden", text, {"id": "by-agent"})[0] == 201
    subject = r"agent\\\\n7 x{72}\.\.\."
    brain.wait_for(rf'event=write method=POST run=by-agent now=queued .* subject="{subject}"')
    assert ask(brain, "PATCH", "/api/runs/by-agent?query=hidden")[0] == 401
    brain.wait_for(
        r"event=rejected peer=\S+ method=PATCH path=/api/runs/by-agent status=401 .*code=token\n"
    )
    assert "hidden" not in brain.log()


def test_the_api_requires_a_token_and_its_scope(brain: Brain) -> None:
    reads, writes, both = token(), token(scope="write"), token(scope="read write")
    for method, path, body in [
        ("GET", "/api/runs", None),
        ("GET", "/api/runs/a", None),
        ("POST", "/api/runs", {"id": "a"}),
        ("PATCH", "/api/runs/a", {"status": "running"}),
        ("GET", "/%61pi/runs", None),
        ("DELETE", "/api/runs/a", None),
        ("GET", "/nowhere", None),
    ]:
        assert ask(brain, method, path, None, body)[0] == 401
        assert ask(brain, method, path, token(exp=1), body) == (401, "the token has expired")
    assert ask(brain, "POST", "/api/runs", reads, {"id": "a"}) == (
        403,
        "the token's scope does not contain 'write'",
    )
    assert ask(brain, "POST", "/api/runs", writes, {"id": "a"})[0] == 201
    assert ask(brain, "PATCH", "/api/runs/a", reads, {"status": "running"})[0] == 403
    assert ask(brain, "PATCH", "/api/runs/a", writes, {"status": "running"})[0] == 200
    assert ask(brain, "GET", "/api/runs", writes)[0] == 403
    assert ask(brain, "GET", "/api/runs", both)[0] == 200
    assert ask(brain, "GET", "/api/runs/a", reads)[0] == 200
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert brain.get(path)[0] == 200, "for who runs Brain, and what is no secret"
    assert brain.metric('brain_rejections_total{code="token"}') > 0
    assert brain.metric('brain_rejections_total{code="scope"}') > 0


def test_a_limited_token_sees_and_changes_only_its_runs(brain: Brain) -> None:
    all_, mine = (
        token(scope="read write"),
        token(scope="read write", agent="mine", task_id=["a", "b"]),
    )
    rows = [
        ("x", "mine", "a"),
        ("y", "mine", "c"),
        ("z", "other", "a"),
        ("v", None, "a"),
        ("w", "mine", "b"),
    ]
    for run_id, agent, task_id in rows:
        body = {"id": run_id, "task_id": task_id} | ({"agent": agent} if agent else {})
        assert ask(brain, "POST", "/api/runs", all_, body)[0] == 201

    def listed(query: str = "") -> list[str]:
        return [run["id"] for run in ask(brain, "GET", f"/api/runs{query}", mine)[1]["runs"]]

    assert listed() == ["w", "x"]
    assert listed("?task_id=a") == ["x"]
    assert listed("?agent=mine&limit=1") == ["w"]
    for query in ("?agent=other", "?task_id=a&task_id=c"):
        assert ask(brain, "GET", f"/api/runs{query}", mine)[0] == 403
    nothing = (404, "there is no run 'nothing'")
    assert ask(brain, "GET", "/api/runs/nothing", mine) == nothing
    for run_id in ("y", "z", "v"):
        same = (404, nothing[1].replace("nothing", run_id))
        assert ask(brain, "GET", f"/api/runs/{run_id}", mine) == same
        for change in ({"progress": 7}, {"status": "running"}, {"status": "completed"}):
            assert ask(brain, "PATCH", f"/api/runs/{run_id}", mine, change) == same
        run = ask(brain, "GET", f"/api/runs/{run_id}", all_)[1]
        assert "progress" not in run
        assert run["status"] == "queued"
    assert ask(brain, "PATCH", "/api/runs/x", mine, {"status": "running"})[0] == 200
    assert ask(brain, "PATCH", "/api/runs/x", mine, {"task_id": "b"})[0] == 200
    for away in ({"agent": "other"}, {"agent": None}, {"task_id": "c"}):
        assert ask(brain, "PATCH", "/api/runs/x", mine, away)[0] == 403
    for there in ({"agent": "other", "task_id": "a"}, {"agent": "mine"}, {"task_id": "a"}, {}):
        assert ask(brain, "POST", "/api/runs", mine, there)[0] == 403
    assert (
        ask(brain, "POST", "/api/runs", mine, {"id": "new", "agent": "mine", "task_id": "b"})[0]
        == 201
    )


def _said(answer: urllib.error.HTTPError) -> str:
    assert (answer.headers["WWW-Authenticate"] == "Bearer") == (answer.code == 401)
    assert answer.headers["Content-Type"] == "application/problem+json"
    said: str = json.loads(answer.read())["detail"]
    return said


# Keys from a host


@contextmanager
def keyed(shared: str, source: str, **settings: object) -> Iterator[Brain]:
    with served(database_url=shared, jwt_jwks=source, **settings) as brain:
        yield brain


async def test_keys_are_loaded_from_a_host(shared: str) -> None:
    key = Key("one")
    with (
        hosting(jwks(key)) as host,
        keyed(shared, host.url, jwt_audience="brain", jwt_issuer="https://idp.example") as brain,
    ):
        good = key.token(aud="brain", iss="https://idp.example")
        async with by_header(brain, good) as client:
            execute(shared, "INSERT INTO runs (id) VALUES ('a')")
            assert (await message(client))["data"]["id"] == "a"
        assert (await refusal(by_header(brain, key.token(aud="brain"))))[0] == 401
        assert (
            await refusal(
                by_header(brain, Key("one").token(aud="brain", iss="https://idp.example"))
            )
        )[0] == 401
        assert ask(brain, "GET", "/api/runs", good)[0] == 200
        assert "tokens=" in brain.log()
        assert "keys=1" in brain.log()
