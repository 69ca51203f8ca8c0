"""watch() and wait() against a real Brain, a proxy that cuts, stalls and resets, and servers that
send each close code.
"""

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close, Opcode
from websockets.http11 import Response

from brain import Away, Connected, Deleted, Message, Ready, Source, WatchError, wait, watch
from brain.client import endings
from brain.client.api import API, NoRun
from brain.client.endings import classify
from brain.client.events import Event
from brain.client.proxies import is_loopback
from brain.client.watch import Timing
from brain.contract.close_codes import CLOSE_CODES, Retry
from brain.contract.messages import RunData
from tests.support import ROOT
from tests.support.faulty import FaultyProxy, answer, closing
from tests.support.issuer import token
from tests.support.patience import PATIENCE, eventually, within
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE

pytestmark = pytest.mark.long

PROTOCOL = ROOT / "docs" / "reference" / "protocol.md"


@pytest.fixture(scope="module")
def database(shared: str) -> str:
    """One for the module: each test has runs of its own."""
    return shared


@pytest.fixture(scope="module")
def brain(database: str) -> Iterator[Brain]:
    with served(database_url=database) as brain:
        yield brain


class Watching:
    """Iterates over watch() in a task, and keeps its events."""

    def __init__(self, url: str, *, pace: float = 0.0, **options: Any) -> None:
        self.events: list[Event] = []
        self.runs: dict[str, RunData] = {}
        """What a client holds that follows docs/how-to/client.md."""
        self._pace = pace
        self._watch = watch(url, **{"proxy": None} | options)

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._work())
        return self

    async def _work(self) -> None:
        async with contextlib.aclosing(self._watch) as events:
            async for event in events:
                self.events.append(event)
                match event:
                    case Connected(reset=True):
                        self.runs.clear()
                    case Message(data=run):
                        self.runs[run.id] = run
                await asyncio.sleep(self._pace)

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, WatchError):
            await self.task

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.task.done():
                self.task.result()
            assert time.monotonic() < deadline, f"it did not come: {self.events[-10:]}"
            await asyncio.sleep(0.005)

    async def receives(self, run_id: str, status: str) -> None:
        await self.until(lambda: run_id in self.runs and self.runs[run_id].status == status)

    async def away(self, times: int = 1) -> None:
        await self.until(lambda: len(self.of(Away)) >= times)

    async def connected(self, times: int = 1) -> None:
        await self.until(lambda: len(self.of(Connected)) >= times)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_no_proxy_of_the_environment_leads_to_this_machine(
    brain: Brain, database: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    run_id = f"proxy-{variable}"
    execute(database, f"INSERT INTO runs (id, status) VALUES ('{run_id}', 'completed')")
    async with contextlib.aclosing(watch(brain.url(host="localhost"), snapshot=True)) as events:
        assert await anext(events) == Connected(reset=True)
    assert (await wait(brain.url(), run_id, timeout=PATIENCE)).status == "completed"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("ws://localhost:5221/ws", True),
        ("ws://LOCALHOST./ws", True),
        ("ws://brain.localhost/ws", True),
        ("ws://127.8.0.1/ws", True),
        ("ws://[::1]:5221/ws", True),
        ("wss://brain.example/ws", False),
        ("ws://192.168.0.1/ws", False),
        ("ws://localhost.example/ws", False),
    ],
)
def test_which_hosts_are_this_machine(url: str, *, here: bool) -> None:
    assert is_loopback(url) == here


# Events.


async def test_what_include_asks_for_is_yielded(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, agent) VALUES ('gone', 'g'), ('left', 'g')")
    await brain.knows("left")
    options: dict[str, Any] = {"snapshot": True, "agent": "g"}
    everything = ["deleted", "ready", "source"]
    async with (
        Watching(brain.url(), include=everything, **options) as w,
        Watching(brain.url("?include=source"), include="ready", **options) as other,
    ):
        await w.until(lambda: w.of(Ready) and w.of(Source))
        kinds = [type(event) for event in w.events]
        assert kinds[:5] == [Connected, Message, Message, Ready, Source]
        execute(database, "DELETE FROM runs WHERE id = 'gone'")
        await w.until(lambda: w.of(Deleted))
        await other.until(lambda: other.of(Ready) and other.of(Source))
    (deleted,), (source, *_) = w.of(Deleted), w.of(Source)
    assert (deleted.id, json.loads(deleted.text)["type"]) == ("gone", "run_deleted")
    assert deleted.timestamp >= w.of(Ready)[0].timestamp == w.of(Message)[-1].timestamp
    assert (source.source, source.code, source.detail) == ("replication", None, None)
    assert 0 <= source.lag_seconds < PATIENCE
    assert not other.of(Deleted)


async def test_a_watch_resumes_from_the_timestamp_of_any_event(brain: Brain, database: str) -> None:
    async with (
        FaultyProxy(brain.port) as proxy,
        Watching(proxy.url, run_id="resumed", include=["deleted", "source"]) as w,
    ):
        await w.until(lambda: w.of(Source))
        for outages, statement in enumerate(
            ("INSERT INTO runs (id) VALUES ('resumed')", "DELETE FROM runs WHERE id = 'resumed'"), 1
        ):
            proxy.target = 1
            proxy.cut()
            await w.away(outages)
            execute(database, statement)
            proxy.target = brain.port
            await w.until(lambda: w.of(Message))
        await w.until(lambda: w.of(Deleted))
    assert [each.reset for each in w.of(Connected)] == [True, False, False]


async def test_messages_are_typed(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, agent) VALUES ('typed', 'a'), ('other', 'b')")
    async with Watching(brain.url(), snapshot=True, agent="a") as w:
        await w.receives("typed", "queued")
        execute(
            database,
            "UPDATE runs SET status = 'running', progress = 12.5, started_at = now()"
            " WHERE id = 'typed'",
        )
        await w.receives("typed", "running")
        execute(database, "UPDATE runs SET status = 'failed', error = 'é' WHERE id = 'typed'")
        await w.receives("typed", "failed")
    assert w.events[0] == Connected(reset=True)
    queued, running, failed = (m for m in w.of(Message) if m.data.id == "typed")
    assert (queued.type, running.type, failed.type) == ("run_update", "run_update", "run_failed")
    assert running.data.progress == 12.5
    assert isinstance(running.data.started_at, datetime)
    assert failed.data.error == "é"
    assert failed.timestamp > running.timestamp > queued.timestamp
    assert failed.text.startswith('{"type":"run_failed","data":{"id":"typed"')


async def test_filters_and_the_query_of_the_url(brain: Brain, database: str) -> None:
    execute(
        database, "INSERT INTO runs (id, agent) VALUES ('f1', 'x'), ('f2', 'x y&z'), ('f3', 'w')"
    )
    for url, options in (
        (brain.url("?agent=x&snapshot=true"), {"agent": "x y&z"}),
        (brain.url("?snapshot=true"), {"agent": ["x", "x y&z"]}),
        (brain.url(), {"run_id": ["f1", "f2"], "snapshot": True, "status": "queued"}),
    ):
        async with Watching(url, **options) as w:
            await w.until(lambda: len(w.runs) == 2)
            assert set(w.runs) == {"f1", "f2"}


async def test_the_connection_closes_when_the_iteration_ends(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('leaves')")
    while brain.metric("brain_clients"):
        await asyncio.sleep(0.01)
    before = len(brain.log())
    async with contextlib.aclosing(
        watch(brain.url(), snapshot=True, run_id="leaves", proxy=None)
    ) as events:
        async for event in events:
            if isinstance(event, Message):
                assert brain.metric("brain_clients") == 1
                break
    async with asyncio.timeout(PATIENCE):
        while not (left := re.search("client disconnected.*", brain.log()[before:])):
            await asyncio.sleep(0.01)
    assert "code=1000" in left[0]


# Reconnecting.


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_what_changed_during_an_outage_follows(
    brain: Brain, database: str, *, reset: bool
) -> None:
    one, two = f"cut-{reset}-1", f"cut-{reset}-2"
    async with FaultyProxy(brain.port) as proxy, Watching(proxy.url, run_id=[one, two]) as w:
        await w.connected()
        execute(database, f"INSERT INTO runs (id) VALUES ('{one}')")
        await w.receives(one, "queued")
        for times, status in enumerate(("running", "failed", "completed")):
            proxy.target = 1
            proxy.cut(reset=reset)
            await w.away(times + 1)
            execute(
                database,
                f"INSERT INTO runs (id) VALUES ('{two}')"
                f" ON CONFLICT (id) DO UPDATE SET progress = {times}",
            )
            execute(
                database,
                f"UPDATE runs SET status = '{status}' WHERE id = '{one}'",
            )
            proxy.target = brain.port
            await w.receives(one, status)
            await w.receives(two, "queued")
    assert w.of(Connected) == [Connected(reset=True)] + 3 * [Connected(reset=False)], "no reset"
    assert w.runs[two].progress == 2


async def test_a_silent_connection_is_given_up(brain: Brain, database: str) -> None:
    async with (
        FaultyProxy(brain.port) as proxy,
        Watching(proxy.url, run_id="stall", deadline=1.0) as w,
    ):
        await w.connected()
        execute(database, "INSERT INTO runs (id) VALUES ('stall')")
        await w.receives("stall", "queued")
        proxy.stalled = True
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'stall'")
        await w.until(lambda: w.of(Away))
        assert w.of(Away) == [Away("nothing was received for 1 s")]
        proxy.cut()
        proxy.stalled = False
        await w.receives("stall", "running")


async def test_a_silent_server_that_answers_pings_is_kept(brain: Brain) -> None:
    async with Watching(brain.url("?run_id=nobody"), deadline=1.5) as w:
        await w.connected()
        await asyncio.sleep(3)
        assert w.events == [Connected(reset=True)]


async def test_a_slow_consumer_does_not_lose_a_live_connection(brain: Brain, database: str) -> None:
    async with Watching(brain.url("?run_id=slow"), deadline=1.0, pace=1.2) as w:
        await w.connected()
        execute(database, "INSERT INTO runs (id) VALUES ('slow')")
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'slow'")
        await w.receives("slow", "running")
        assert not w.of(Away)


async def test_no_message_is_lost_among_pings() -> None:
    """The pauses are as long as the silence before a ping: nearly every message meets a ping."""
    pings = 0

    class CountsPings(ServerConnection):
        def process_event(self, event: Any) -> None:
            nonlocal pings
            pings += getattr(event, "opcode", None) == Opcode.PING
            super().process_event(event)

    async def handle(connection: ServerConnection) -> None:
        for i in range(1000):
            data = f'{{"id":"{i}","status":"queued"}}'
            stamp = f"2026-11-21T09:30:00.{i:06}Z"
            await connection.send(f'{{"type":"run_update","data":{data},"timestamp":"{stamp}"}}')
            await asyncio.sleep(random.choice((0, 0.0005, 0.001, 0.002)))
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0, create_connection=CountsPings) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with Watching(url, timing=Timing(ping_after=0.0005)) as w:
            await w.receives("999", "queued")
    assert pings > 20
    assert [m.data.id for m in w.of(Message)] == [str(i) for i in range(1000)]


async def test_without_a_message_to_resume_from_it_resets(brain: Brain, database: str) -> None:
    async with FaultyProxy(brain.port) as proxy, Watching(proxy.url, run_id="unheard") as w:
        await w.connected()
        proxy.target = 1
        proxy.cut()
        await w.until(lambda: w.of(Away))
        execute(database, "INSERT INTO runs (id) VALUES ('unheard')")
        proxy.target = brain.port
        await w.receives("unheard", "queued")
    assert w.of(Connected) == 2 * [Connected(reset=True)]


async def test_a_since_beyond_the_server_memory_resets(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('remembered')")
    async with Watching(
        brain.url(), run_id="remembered", since=datetime.now(UTC) - timedelta(days=1)
    ) as w:
        await w.receives("remembered", "queued")
    assert w.of(Connected) == [Connected(reset=True)], "not reported as resumed"
    assert not w.of(Away)


async def test_the_server_is_killed_and_starts_again(postgres: Postgres) -> None:
    """A client that follows client.md holds exactly the unfinished runs of the table."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url)
    try:
        async with Watching(brain.url(), snapshot=True) as w:
            await w.connected()
            execute(url, "INSERT INTO runs (id) VALUES ('ends'), ('goes'), ('stays'), ('ran')")
            execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'ran'")
            await w.receives("ran", "completed")
            brain.process.kill()
            brain.process.wait()
            execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'ends'")
            execute(url, "DELETE FROM runs WHERE id = 'goes'")
            execute(url, "INSERT INTO runs (id) VALUES ('new')")
            brain = Brain(database_url=url, port=brain.port)
            await w.until(lambda: set(w.runs) == {"stays", "new"})
            assert w.of(Connected)[-1] == Connected(reset=True)
            execute(url, "UPDATE runs SET status = 'running'")
            await w.receives("new", "running")
    finally:
        brain.process.kill()
        brain.process.wait()


async def test_retry_after_is_respected(brain: Brain) -> None:
    for status in (429, 503):
        async with FaultyProxy(brain.port) as proxy:
            proxy.answers.append(answer(status, "Retry-After: 1"))
            async with Watching(proxy.url) as w:
                await w.connected()
            first, second = proxy.came
            assert second - first >= 1
            assert w.events[0] == Away(f"refused with {status}: said by the test")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_retries_after_a_temporary_status(brain: Brain, status: int) -> None:
    async with FaultyProxy(brain.port) as proxy:
        proxy.answers += 2 * [answer(status)]
        async with Watching(proxy.url) as w:
            await w.connected()
    assert w.events == [Away(f"refused with {status}: said by the test"), Connected(reset=True)]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 414, 421, 426, 431, 505])
async def test_ends_after_a_permanent_status(brain: Brain, status: int) -> None:
    async with FaultyProxy(brain.port) as proxy:
        proxy.answers.append(answer(status))
        with pytest.raises(WatchError, match=f"refused with {status}: said by the test") as raised:
            await anext(watch(proxy.url, proxy=None))
    assert raised.value.code == status


async def test_an_error_has_the_detail_of_the_refusal(brain: Brain) -> None:
    for url, code, detail in (
        (brain.url("?nonsense=1"), 400, "unknown parameter 'nonsense'"),
        (brain.url().replace("/ws", "/nowhere"), 404, "the path of the WebSocket is /ws"),
    ):
        with pytest.raises(WatchError, match=detail) as raised:
            await anext(watch(url, proxy=None))
        assert raised.value.code == code


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 1014, 3000, 4000, 4500])
async def test_reconnects_after_a_temporary_close_code(code: int) -> None:
    async with closing(code, code, 0) as (url, _), Watching(url) as w:
        await w.connected()
    assert w.events == [Away(f"closed with {code}: said by the test"), Connected(reset=True)]


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4403, 4499])
async def test_ends_after_a_permanent_close_code(code: int) -> None:
    async with closing(code) as (url, came):
        with pytest.raises(WatchError, match=f"closed with {code}: said by the test") as raised:
            await anext(watch(url, proxy=None))
        assert raised.value.code == code
        assert len(came) == 1


async def test_a_reset_is_done_at_once_but_repeated_resets_back_off() -> None:
    timing, waits = recorded()
    async with (
        closing(4410, 4410, 4410, 0) as (url, came),
        Watching(url, since=datetime.now(UTC), timing=timing) as w,
    ):
        await w.connected()
        assert waits == [1, 2], "the first is not a failure, the others are"
        assert [path.partition("?")[2].partition("=")[0] for _, path in came] == ["since"] + 3 * [
            "snapshot"
        ]
        assert w.of(Away) == [Away("closed with 4410: said by the test")]
        assert w.of(Connected) == [Connected(reset=True)]


RUN = '{"type":"run_update","data":{"id":"a","status":"running"%s},"timestamp":"%s"}'
SOURCE = (
    '{"type":"source","data":{"source":"poll","lag_seconds":%s},"timestamp":"2026-01-01T00:00:00Z"}'
)


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        RUN % ("", "2026-01-01T00:00:00"),
        RUN % ("", "0001-01-01T00:00:00+14:00"),
        RUN % ("", "9999-12-31T23:59:59-14:00"),
        RUN % (',"started_at":"0001-01-01T00:00:00"', "2026-01-01T00:00:00Z"),
        SOURCE % "Infinity",
        SOURCE % "1e400",
    ],
    ids=[
        "text",
        "no zone",
        "year 0",
        "year 10000",
        "a field without zone",
        "infinite",
        "too large",
    ],
)
async def test_an_invalid_message_ends_the_watch(text: str) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send(text)
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        events = watch(url, proxy=None)
        with pytest.raises(WatchError, match="sent something that is not a message: '") as caught:
            async with asyncio.timeout(PATIENCE):
                assert [event async for event in events] == []
        assert repr(text[:80]) in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 100_000, "[" * 200),
        (b'{"detail":' + b"[" * 5000, '{"detail":' + "[" * 190),
        (b'{"detail":"' + b"x" * 5000 + b'"}', "x" * 2000),
    ],
    ids=["deep", "a deep detail", "long"],
)
def test_a_refusal_of_any_form_has_a_short_reason(body: bytes, reason: str) -> None:
    assert endings.refused(403, body, "").reason == f"refused with 403: {reason}"


@pytest.mark.parametrize(
    ("speaks_first", "says"),
    [
        (True, b"SSH-2.0-OpenSSH_9.2\r\n"),
        (False, b"SSH-2.0-OpenSSH_9.2\r\n"),
        (True, bytes(65536)),
        (False, b"x" * 65536),
    ],
    ids=["greeting", "answer", "zeros", "no end of a line"],
)
async def test_a_server_that_does_not_speak_http_is_told_and_tried_again(
    speaks_first: bool, says: bytes
) -> None:
    """However much it says, and before it is asked, too."""
    came = open_ = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came, open_
        came, open_ = came + 1, open_ + 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if not speaks_first:
                await reader.readuntil(b"\r\n\r\n")
            while not writer.is_closing():
                writer.write(says * (65536 // len(says)))
                await writer.drain()
        writer.transport.abort()
        open_ -= 1

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
    async with server:
        timing = Timing(delay=lambda _: 0.01)
        async with Watching(url, timing=timing, open_timeout=PATIENCE) as w:
            await w.until(lambda: came >= 3)
        (away,) = w.of(Away)
        assert away.reason == "did not receive a valid HTTP response"
        server.close()
        await eventually(lambda: not open_)


# Back-off.


def recorded(steady: float = 5.0) -> tuple[Timing, list[int]]:
    """A timing that hardly waits, and the failures in a row for which it was asked."""
    waits: list[int] = []

    def delay(failures: int) -> float:
        waits.append(failures)
        return 0.01

    return Timing(delay=delay, steady=steady), waits


def test_the_wait_is_a_random_time_between_half_a_bound_that_doubles_and_all_of_it() -> None:
    for failures, most in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (50, 5.0)):
        waits = [Timing().delay(failures) for _ in range(2000)]
        assert most / 2 <= min(waits) < most * 0.55
        assert most * 0.95 < max(waits) <= most
        assert abs(sum(waits) / len(waits) - most * 0.75) < most / 20


async def test_an_unreachable_server_is_not_flooded() -> None:
    async with FaultyProxy(1) as proxy, Watching(proxy.url) as w:
        await asyncio.sleep(1.5)
        await w.until(lambda: len(proxy.came) >= 2)
        assert len(proxy.came) <= 15
        assert len(w.events) == 1, "reported once, not per attempt"


async def test_backs_off_from_a_server_that_accepts_and_closes() -> None:
    timing, waits = recorded()
    async with closing(1012) as (url, _), Watching(url, timing=timing) as w:
        await w.until(lambda: len(waits) >= 5)
    assert waits[:5] == [1, 2, 3, 4, 5]
    timing, waits = recorded(steady=-1.0)  # as after a connection of hours
    async with closing(1012) as (url, _), Watching(url, timing=timing) as w:
        await w.until(lambda: len(waits) >= 5)
    assert waits[:5] == [1, 1, 1, 1, 1]


# The tables of the contract and of the docs.


def closed(code: int) -> ConnectionClosedError:
    return ConnectionClosedError(Close(code, "reason"), None)


def refused(status: int, retry_after: str = "") -> InvalidStatus:
    headers = Headers({"Retry-After": retry_after} if retry_after else {})
    return InvalidStatus(Response(status, "", headers, b'{"detail":"why"}'))


@pytest.mark.parametrize("code", CLOSE_CODES)
def test_a_close_code_is_retried_as_the_contract_says(code: int) -> None:
    ending = classify(closed(code))
    assert ending.retry is CLOSE_CODES[code].retry
    assert (ending.reason, ending.code) == (f"closed with {code}: reason", code)


def test_a_broken_connection_is_retried() -> None:
    for error in (ConnectionClosedError(None, None), ConnectionResetError(), TimeoutError("late")):
        assert classify(error).retry is Retry.BACK_OFF
    assert classify(TimeoutError("late")).reason == "late"
    assert classify(ConnectionResetError()).reason == "ConnectionResetError"


def test_a_refusal_has_the_detail_and_a_bounded_retry_after() -> None:
    ending = classify(refused(503, "7"))
    assert (ending.reason, ending.code, ending.at_least) == ("refused with 503: why", 503, 7)
    assert classify(refused(503, "86400")).at_least == 60
    assert classify(refused(503, "Fri, 31 Dec 1999 23:59:59 GMT")).at_least == 0
    assert classify(refused(401)).retry is Retry.NEW_TOKEN


def test_the_codes_are_those_of_the_docs() -> None:
    """docs/reference/protocol.md says yes where the client retries, and no where it does not."""
    text = PROTOCOL.read_text()
    rows = re.findall(
        r"^\| ((?:the rest of )?\d[\d, to]+) \|[^|]*\| (no|yes)\b[^|]*\|$", text, re.MULTILINE
    )
    documented = {
        code: verdict == "yes"
        for codes, verdict in rows
        for code in map(int, re.findall(r"\d{3,4}", codes))
    }
    assert {1001, 1008, 1012, 4400, 4410, 403, 429, 503} <= documented.keys()
    for code, retries in documented.items():
        ending = classify(refused(code) if code < 1000 else closed(code))
        assert (ending.retry in (Retry.BACK_OFF, Retry.RESET)) == retries, code


# Tokens.


async def test_a_string_token_is_valid_until_it_expires(guarded: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('shown')")
    async with Watching(
        guarded.url(), snapshot=True, run_id="shown", token=token(exp=time.time() + within(2))
    ) as w:
        await w.receives("shown", "queued")
        with pytest.raises(WatchError, match="closed with 4401: the token has expired") as caught:
            await asyncio.wait_for(w.task, PATIENCE)
    assert caught.value.code == 4401
    assert not w.of(Away)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, 4401),
        ("nonsense", 401),
        (token("another secret, as long as the other one"), 401),
        (token(exp=time.time() - 9), 401),
        (token(scope="write", exp=time.time() + 3600), 403),
    ],
)
async def test_a_token_that_was_never_valid_ends_the_watch(
    guarded: Brain, given: str | None, code: int
) -> None:
    async def again() -> str:
        return str(given)

    for way in (given, again) if given else (None,):
        async with Watching(guarded.url(), token=way) as w:
            with pytest.raises(WatchError) as caught:
                await asyncio.wait_for(w.task, PATIENCE)
        assert not w.of(Away)
        assert caught.value.code == code
        assert given is None or given not in str(caught.value)


async def test_a_token_function_is_called_again_after_expiry(guarded: Brain, database: str) -> None:
    given: list[str] = []

    async def fresh() -> str:
        match len(given):
            case 1:
                given.append(given[0])  # a cache whose clock is late
            case 2:
                given.append("")
                raise OSError("the issuer is unreachable")
            case _:
                given.append(token(exp=time.time() + within(2 if not given else 3600)))
        return given[-1]

    execute(database, "INSERT INTO runs (id) VALUES ('renewed')")
    async with Watching(
        guarded.url(),
        snapshot=True,
        run_id="renewed",
        token=fresh,
        additional_headers={"X-Request-Id": "mine"},
    ) as w:
        await w.receives("renewed", "queued")
        await w.until(lambda: w.of(Away))
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'renewed'")
        await w.receives("renewed", "running")
        assert w.of(Connected) == [Connected(reset=True), Connected(reset=False)], "no reset"
        assert w.of(Away) == [Away("closed with 4401: the token has expired")]
    assert len(given) == 4


# wait()


async def test_wait_returns_a_run_that_ended_before(brain: Brain, database: str) -> None:
    execute(
        database, "INSERT INTO runs (id, status, error) VALUES ('w/before?', 'failed', 'no luck')"
    )
    run = await wait(brain.url(), "w/before?", timeout=PATIENCE, proxy=None)
    assert run == RunData(id="w/before?", status="failed", error="no luck")


async def test_wait_returns_the_end_that_is_pushed(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, status) VALUES ('w-pushed', 'running')")
    async with FaultyProxy(brain.port) as proxy:
        waiting = asyncio.create_task(wait(proxy.url, "w-pushed", timeout=PATIENCE, proxy=None))
        while len(proxy.came) < 2:  # it has subscribed, and asks
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        execute(database, "UPDATE runs SET progress = 50 WHERE id = 'w-pushed'")
        await asyncio.sleep(0.2)
        assert not waiting.done()
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'w-pushed'")
        assert (await waiting).status == "completed"
        assert len(proxy.came) == 2, "it was pushed"


async def test_wait_returns_at_another_status_or_at_the_end(brain: Brain, database: str) -> None:
    execute(
        database, "INSERT INTO runs (id, status) VALUES ('w-now', 'running'), ('w-late', 'queued')"
    )
    url = brain.url()
    assert (
        await wait(url, "w-now", until="running", timeout=PATIENCE, proxy=None)
    ).status == "running"
    waiting = asyncio.create_task(
        wait(url, "w-late", until=["running"], timeout=PATIENCE, proxy=None)
    )
    execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'w-late'")
    assert (await waiting).status == "failed"


async def test_wait_does_not_miss_an_end_during_an_outage(postgres: Postgres) -> None:
    """The server is killed, the run ends, and the new server has no memory of it."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url)
    try:
        execute(url, "INSERT INTO runs (id, status) VALUES ('w-outage', 'running')")
        waiting = asyncio.create_task(wait(brain.url(), "w-outage", timeout=PATIENCE, proxy=None))
        while not brain.metric("brain_clients"):
            await asyncio.sleep(0.01)
        brain.process.kill()
        brain.process.wait()
        execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'w-outage'")
        assert not waiting.done()
        brain = Brain(database_url=url, port=brain.port)
        assert (await waiting).status == "completed"
    finally:
        brain.process.kill()
        brain.process.wait()


async def test_wait_waits_for_a_run_to_exist_and_reports_its_deletion(
    brain: Brain, database: str
) -> None:
    timing = Timing(ask_every=0.1)
    waiting = asyncio.create_task(
        wait(brain.url(), "w-gone", timeout=PATIENCE, timing=timing, proxy=None)
    )
    await asyncio.sleep(0.5)
    assert not waiting.done()
    execute(database, "INSERT INTO runs (id) VALUES ('w-gone')")
    await asyncio.sleep(0.5)
    assert not waiting.done()
    execute(database, "DELETE FROM runs WHERE id = 'w-gone'")
    with pytest.raises(WatchError, match="run 'w-gone' was deleted") as caught:
        await waiting
    assert caught.value.code == 404


@pytest.mark.parametrize("source", ["replication", "poll"])
async def test_wait_is_told_of_a_deletion_and_does_not_have_to_ask(
    postgres: Postgres, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run whose id was given in another form than the table prints."""
    answers: list[RunData | NoRun] = []
    get_run = API.get_run

    async def recorded(api: API, run_id: str) -> RunData | NoRun:
        answers.append(await get_run(api, run_id))
        return answers[-1]

    monkeypatch.setattr(API, "get_run", recorded)
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    execute(url, "CREATE TABLE runs (id uuid PRIMARY KEY, status text)")
    given = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"
    timing = Timing(ask_every=10_000)
    with served(database_url=url, source=source, follows=source) as polling:
        execute(url, f"INSERT INTO runs VALUES ('{given}', 'running')")
        # A poll tells only of the deletion of what an earlier one has seen.
        await polling.knows(given.lower(), "running")
        async with FaultyProxy(polling.port) as proxy:
            waiting = asyncio.create_task(wait(proxy.url, given, timing=timing, proxy=None))
            await eventually(lambda: answers)  # it asks when it has subscribed
            assert isinstance(answers[0], RunData)
            execute(url, "DELETE FROM runs")
            with pytest.raises(WatchError, match="was deleted"):
                async with asyncio.timeout(PATIENCE):
                    await waiting


async def test_wait_gives_up_after_its_timeout(brain: Brain) -> None:
    with pytest.raises(TimeoutError):
        await wait(brain.url(), "w-never", timeout=0.5, proxy=None)


async def test_wait_asks_again_when_the_api_refuses_for_now(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, status) VALUES ('w-busy', 'completed')")
    await brain.knows("w-busy", "completed")  # it is not pushed any more
    timing, waits = recorded()
    async with FaultyProxy(brain.port) as proxy:
        waiting = asyncio.create_task(
            wait(proxy.url, "w-busy", timeout=PATIENCE, timing=timing, proxy=None)
        )
        while not proxy.came:
            await asyncio.sleep(0)
        proxy.answers += [answer(503), answer(429)]
        assert (await waiting).status == "completed"
    assert waits == [1, 2]


@pytest.mark.parametrize(
    ("status", "header"),
    [(403, "X: y"), (404, "Content-Type: text/html"), (302, "Location: http://localhost:1/")],
)
async def test_wait_ends_when_the_api_refuses_for_good(
    brain: Brain, status: int, header: str
) -> None:
    """A 404 that is not Brain's comes from a server without its API."""
    async with FaultyProxy(brain.port) as proxy:
        waiting = asyncio.create_task(wait(proxy.url, "w-refused", timeout=PATIENCE, proxy=None))
        while not proxy.came:
            await asyncio.sleep(0)
        proxy.answers.append(answer(status, header))
        with pytest.raises(WatchError, match=f"run 'w-refused': refused with {status}") as caught:
            await waiting
    assert caught.value.code == status


async def test_wait_sends_its_token_to_both(guarded: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, status) VALUES ('w-token', 'completed')")

    async def fresh() -> str:
        return token()

    for given in (token(), fresh):
        run = await wait(guarded.url(), "w-token", token=given, timeout=PATIENCE, proxy=None)
        assert run.status == "completed"
    with pytest.raises(WatchError) as caught:
        await wait(guarded.url(), "w-token", token="nonsense", timeout=PATIENCE, proxy=None)
    assert caught.value.code == 401
