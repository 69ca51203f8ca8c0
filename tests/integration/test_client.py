"""brain.client against a real Brain, against a proxy that cuts, stalls and resets, and against servers that say each code."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from websockets.asyncio.server import ServerConnection, serve

from brain import client
from brain.client import Away, Connected, Event, Message, WatchError, watch
from brain.contract.close_codes import GAP
from brain.contract.messages import RunData  # noqa: TC001 - beside the rest of what is imported
from tests.support import ROOT
from tests.support.faulty import Proxy, answer, closing
from tests.support.issuer import SECRET, token
from tests.support.patience import PATIENCE, within
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE

PROTOCOL = ROOT / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[str]:
    """One for the module: each test has runs of its own."""
    name = postgres.create_database(TEMPLATE, ROLE)
    yield postgres.url(name, ROLE)
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def brain(database: str) -> Iterator[Brain]:
    with served(database_url=database) as brain:
        yield brain


@pytest.fixture(scope="module")
def guarded(database: str) -> Iterator[Brain]:
    """It asks for tokens."""
    with served(database_url=database, jwt_secret=SECRET) as brain:
        yield brain
        assert "eyJ" not in brain.log()


class Watching:
    """Iterates over watch() in a task, and keeps what it said."""

    def __init__(self, url: str, *, pace: float = 0.0, **options: Any) -> None:
        self.events: list[Event] = []
        self.runs: dict[str, RunData] = {}
        """What somebody holds who does as the docs say."""
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
                    case Connected(anew=True):
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

    async def told(self, run_id: str, status: str) -> None:
        await self.until(lambda: run_id in self.runs and self.runs[run_id].status == status)

    async def connected(self, times: int = 1) -> None:
        await self.until(lambda: len(self.of(Connected)) >= times)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


# What it says.


async def test_messages_are_typed(brain: Brain, database: str) -> None:
    execute(database, "INSERT INTO runs (id, agent) VALUES ('typed', 'a'), ('other', 'b')")
    async with Watching(brain.url(), snapshot=True, agent="a") as w:
        await w.told("typed", "queued")
        execute(
            database,
            "UPDATE runs SET status = 'running', progress = 12.5, started_at = now() WHERE id = 'typed'",
        )
        execute(database, "UPDATE runs SET status = 'failed', error = 'é' WHERE id = 'typed'")
        await w.told("typed", "failed")
    assert w.events[0] == Connected(anew=True)
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


async def test_it_leaves_when_iteration_ends(brain: Brain, database: str) -> None:
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
        while not (left := re.search("client left.*", brain.log()[before:])):
            await asyncio.sleep(0.01)
    assert "code=1000" in left[0]


# Coming back.


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_what_changed_while_it_was_away_follows(
    brain: Brain, database: str, *, reset: bool
) -> None:
    one, two = f"cut-{reset}-1", f"cut-{reset}-2"
    async with Proxy(brain.port) as proxy, Watching(proxy.url, run_id=[one, two]) as w:
        await w.connected()
        execute(database, f"INSERT INTO runs (id) VALUES ('{one}')")
        await w.told(one, "queued")
        for times in range(3):
            proxy.target = 1
            proxy.cut(reset=reset)
            await w.until(lambda times=times: len(w.of(Away)) > times)  # type: ignore[misc]
            execute(
                database,
                f"INSERT INTO runs (id) VALUES ('{two}') ON CONFLICT (id) DO UPDATE SET progress = {times}",
            )
            execute(
                database,
                f"UPDATE runs SET status = '{['running', 'failed', 'completed'][times]}' WHERE id = '{one}'",
            )
            proxy.target = brain.port
            await w.told(one, ["running", "failed", "completed"][times])
            await w.told(two, "queued")
    assert w.of(Connected) == [Connected(anew=True)] + 3 * [Connected(anew=False)], (
        "nothing was void"
    )
    assert w.runs[two].progress == 2


async def test_a_connection_that_says_nothing_any_more_is_left(brain: Brain, database: str) -> None:
    async with Proxy(brain.port) as proxy, Watching(proxy.url, run_id="stall", deadline=1.0) as w:
        await w.connected()
        execute(database, "INSERT INTO runs (id) VALUES ('stall')")
        await w.told("stall", "queued")
        proxy.stalled = True
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'stall'")
        await w.until(lambda: w.of(Away))
        assert w.of(Away) == [Away("nothing was heard for 1 s")]
        proxy.cut()
        proxy.stalled = False
        await w.told("stall", "running")


async def test_silence_is_no_reason_to_leave_a_server_that_answers_pings(brain: Brain) -> None:
    async with Watching(brain.url("?run_id=nobody"), deadline=1.5) as w:
        await w.connected()
        await asyncio.sleep(3)
        assert w.events == [Connected(anew=True)]


async def test_who_is_slow_to_iterate_is_not_told_that_the_server_is_dead(
    brain: Brain, database: str
) -> None:
    async with Watching(brain.url("?run_id=slow"), deadline=1.0, pace=1.2) as w:
        await w.connected()
        execute(database, "INSERT INTO runs (id) VALUES ('slow')")
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'slow'")
        await w.told("slow", "running")
        assert not w.of(Away)


async def test_no_message_is_lost_among_pings() -> None:
    """Silences as long as those after which it pings: nearly every message meets a ping, or the end of one."""

    async def handle(connection: ServerConnection) -> None:
        for i in range(1000):
            data = f'{{"id":"{i}","status":"queued"}}'
            stamp = f"2026-11-21T09:30:00.{i:06}Z"
            await connection.send(f'{{"type":"run_update","data":{data},"timestamp":"{stamp}"}}')
            await asyncio.sleep(random.choice((0, 0.0005, 0.001, 0.002)))
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            hear, pings = client._hear, 0

            async def impatient(socket: Any, _: float, deadline: float) -> str | None:
                nonlocal pings
                found = await hear(socket, 0.0005, deadline)
                pings += found is None
                return found

            patch.setattr(client, "_hear", impatient)
            async with Watching(url) as w:
                await w.told("999", "queued")
        assert pings > 20
        assert [m.data.id for m in w.of(Message)] == [str(i) for i in range(1000)]


async def test_without_a_message_to_resume_from_it_begins_anew(brain: Brain, database: str) -> None:
    async with Proxy(brain.port) as proxy, Watching(proxy.url, run_id="unheard") as w:
        await w.connected()
        proxy.target = 1
        proxy.cut()
        await w.until(lambda: w.of(Away))
        execute(database, "INSERT INTO runs (id) VALUES ('unheard')")
        proxy.target = brain.port
        await w.told("unheard", "queued")
    assert w.of(Connected) == 2 * [Connected(anew=True)]


async def test_a_server_that_does_not_remember_is_said_to_be_one(
    brain: Brain, database: str
) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('remembered')")
    async with Watching(
        brain.url(), run_id="remembered", since=datetime.now(UTC) - timedelta(days=1)
    ) as w:
        await w.told("remembered", "queued")
    assert w.of(Connected) == [Connected(anew=True)], "never that it goes on where it was"
    assert not w.of(Away)


async def test_the_server_is_killed_and_starts_again(postgres: Postgres) -> None:
    """Who does as the docs say holds what SELECT says of the unfinished runs, and nothing else."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url)
    try:
        async with Watching(brain.url(), snapshot=True) as w:
            execute(url, "INSERT INTO runs (id) VALUES ('ends'), ('goes'), ('stays'), ('ran')")
            execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'ran'")
            await w.told("ran", "completed")
            brain.process.kill()
            brain.process.wait()
            execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'ends'")
            execute(url, "DELETE FROM runs WHERE id = 'goes'")
            execute(url, "INSERT INTO runs (id) VALUES ('new')")
            brain = Brain(database_url=url, port=brain.port)
            await w.until(lambda: set(w.runs) == {"stays", "new"})
            assert w.of(Connected)[-1] == Connected(anew=True)
            execute(url, "UPDATE runs SET status = 'running'")
            await w.told("new", "running")
    finally:
        brain.process.kill()
        brain.process.wait()


async def test_retry_after_is_heeded(brain: Brain) -> None:
    for status in (429, 503):
        async with Proxy(brain.port) as proxy:
            proxy.answers.append(answer(status, "Retry-After: 1"))
            async with Watching(proxy.url) as w:
                await w.connected()
            first, second = proxy.came
            assert 1 <= second - first < 6
            assert w.events[0] == Away(f"refused with {status}: said by the test")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_statuses_that_pass(brain: Brain, status: int) -> None:
    async with Proxy(brain.port) as proxy:
        proxy.answers += 2 * [answer(status)]
        async with Watching(proxy.url) as w:
            await w.connected()
    assert w.events == [Away(f"refused with {status}: said by the test"), Connected(anew=True)]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 414, 421, 426, 431, 505])
async def test_statuses_that_stay(brain: Brain, status: int) -> None:
    async with Proxy(brain.port) as proxy:
        proxy.answers.append(answer(status))
        with pytest.raises(WatchError, match=f"refuses with {status}: said by the test") as raised:
            await anext(watch(proxy.url, proxy=None))
    assert raised.value.code == status


async def test_what_brain_itself_refuses(brain: Brain) -> None:
    for url, code, detail in (
        (brain.url("?nonsense=1"), 400, "unknown parameter 'nonsense'"),
        (brain.url().replace("/ws", "/nowhere"), 404, "WebSockets are spoken at /ws"),
    ):
        with pytest.raises(WatchError, match=detail) as raised:
            await anext(watch(url, proxy=None))
        assert raised.value.code == code


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 1014, 3000, 4000, 4500])
async def test_codes_that_pass(code: int) -> None:
    async with closing(code, code, 0) as (url, _), Watching(url) as w:
        await w.connected()
    assert w.events == [Away(f"closed with {code}: said by the test"), Connected(anew=True)]


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4403, 4499])
async def test_codes_that_stay(code: int) -> None:
    async with closing(code) as (url, came):
        with pytest.raises(WatchError, match=f"ended with {code}: said by the test") as raised:
            await anext(watch(url, proxy=None))
        assert raised.value.code == code
        assert len(came) == 1


async def test_begin_anew_is_done_at_once_but_not_in_a_circle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    def noted(failures: int) -> float:
        waits.append(failures)
        return 0.01

    monkeypatch.setattr(client, "back_off", noted)
    async with (
        closing(4410, 4410, 4410, 0) as (url, came),
        Watching(url, since=datetime.now(UTC)) as w,
    ):
        await w.connected()
        assert waits == [1, 2], "the first is no failure, and the others are"
        assert [path.partition("?")[2].partition("=")[0] for _, path in came] == ["since"] + 3 * [
            "snapshot"
        ]
        assert w.of(Away) == [Away("closed with 4410: said by the test")]
        assert w.of(Connected) == [Connected(anew=True)]


async def test_what_is_no_message_ends_it() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with pytest.raises(WatchError, match="no message of Brain's: 'hello'"):
            async for _ in watch(url, proxy=None):
                pass


# Backing off.


def test_the_wait_is_a_random_time_up_to_a_bound_that_doubles() -> None:
    for failures, most in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (50, 5.0)):
        waits = [client.back_off(failures) for _ in range(2000)]
        assert 0 <= min(waits) < most / 10
        assert most * 0.9 < max(waits) <= most
        assert abs(sum(waits) / len(waits) - most / 2) < most / 10


async def test_a_server_that_is_away_is_not_hammered() -> None:
    async with Proxy(1) as proxy, Watching(proxy.url) as w:
        await asyncio.sleep(1.5)
        assert 2 <= len(proxy.came) <= 15
        assert len(w.events) == 1, "said once, not per try"


async def test_who_is_let_in_and_thrown_out_again_backs_off_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    def noted(failures: int) -> float:
        waits.append(failures)
        return 0.01

    monkeypatch.setattr(client, "back_off", noted)
    async with closing(1012) as (url, _), Watching(url) as w:
        await w.until(lambda: len(waits) >= 5)
    assert waits[:5] == [1, 2, 3, 4, 5]
    waits.clear()
    monkeypatch.setattr(client, "STEADY", -1.0)  # as after a connection of hours
    async with closing(1012) as (url, _), Watching(url) as w:
        await w.until(lambda: len(waits) >= 5)
    assert waits[:5] == [1, 1, 1, 1, 1]


# The docs.


def test_the_codes_are_those_of_the_docs() -> None:
    """Each of docs/protocol.md is one that ends the watch, or is not, as the table says."""
    text = PROTOCOL.read_text()
    rows = re.findall(
        r"^\| ((?:the rest of )?\d[\d, to]+) \|[^|]*\| (no|yes)\b[^|]*\|$", text, re.MULTILINE
    )
    said = {
        code: verdict == "yes"
        for codes, verdict in rows
        for code in map(int, re.findall(r"\d{3,4}", codes))
    }
    assert {1001, 1008, 1012, 4400, 4410, 403, 429, 503} <= said.keys()
    for code, comes_back in said.items():
        final = client.is_final_status(code) if code < 1000 else client.is_final_code(code)
        assert final != comes_back, code
    assert GAP.code == client.BEGIN_ANEW


# Tokens.


async def test_a_token_that_is_a_text_is_good_until_it_expires(
    guarded: Brain, database: str
) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('shown')")
    async with Watching(
        guarded.url(), snapshot=True, run_id="shown", token=token(exp=time.time() + within(2))
    ) as w:
        await w.told("shown", "queued")
        with pytest.raises(WatchError, match="ended with 4401: the token has expired") as caught:
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
async def test_a_token_that_was_never_good_ends_it(
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


async def test_a_function_is_asked_for_another_when_one_has_expired(
    guarded: Brain, database: str
) -> None:
    given: list[str] = []

    async def fresh() -> str:
        match len(given):
            case 1:
                given.append(given[0])  # a cache whose clock is late
            case 2:
                given.append("")
                raise OSError("who issues them is away")
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
        await w.told("renewed", "queued")
        await w.until(lambda: w.of(Away))
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'renewed'")
        await w.told("renewed", "running")
        assert w.of(Connected) == [Connected(anew=True), Connected(anew=False)], "nothing was void"
        assert w.of(Away) == [Away("closed with 4401: the token has expired")]
    assert len(given) == 4
