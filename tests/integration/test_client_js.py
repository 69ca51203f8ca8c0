"""`watch` of /client.js: in Node, and in a browser, whose page imports it from Brain."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.browser import headless, needs_browser
from tests.support.faulty import FaultyProxy, answer, closing
from tests.support.issuer import SECRET, token
from tests.support.patience import PATIENCE, within
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE

pytestmark = pytest.mark.long

STATIC = ROOT / "src" / "brain" / "page" / "static"

PAGE = """
import { watch } from 'CLIENT';
const runs = new Map(), tokens = TOKENS, minted = new Map();
const bytes = text => new TextEncoder().encode(text);
const base64 = text => btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
const mint = async seconds => {
  const claims = { scope: 'read', exp: Date.now() / 1000 + seconds };
  const body = [{ alg: 'HS256' }, claims].map(each => base64(JSON.stringify(each))).join('.');
  const algorithm = { name: 'HMAC', hash: 'SHA-256' };
  const key = await crypto.subtle.importKey('raw', bytes('SECRET'), algorithm, false, ['sign']);
  const signed = await crypto.subtle.sign('HMAC', key, bytes(body));
  return `${body}.${base64(String.fromCharCode(...new Uint8Array(signed)))}`;
};
const given = async token => {
  if (typeof token === 'string') return token;
  if (!minted.has(token)) minted.set(token, await mint(token));
  return minted.get(token);
};
const held = () => [...runs.values()].map(run => [run.id, run.status]);
const say = (kind, more) => tell({ kind, ...more, runs: held() });
watch(URL_OF_BRAIN, {
  message: message => { runs.set(message.data.id, message.data); say('message', { message }); },
  connected: reset => { if (reset) runs.clear(); say('connected', { reset }); },
  away: () => say('away', {}),
  ended: (code, reason) => say('ended', { code, reason }),
  deleted: message => { runs.delete(message.data.id); say('deleted', { message }); },
  ready: message => say('ready', { message }),
  source: message => say('source', { message }),
}, {
  deadline: DEADLINE,
  token: tokens.length ? () => given(tokens.length > 1 ? tokens.shift() : tokens[0]) : undefined,
});
"""


@cache
def node() -> list[str] | None:
    """The command, with the option that gives Node 20 a WebSocket; None without Node 20."""
    found = shutil.which("node")
    if found is None:
        return None
    version = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=True
    ).stdout
    major = int(re.findall(r"\d+", version)[0])
    return [found, "--experimental-websocket"][: 2 if major < 22 else 1] if major >= 20 else None


needs_node = pytest.mark.skipif(
    node() is None and not os.environ.get("CI"), reason="Node 20 or newer is not installed"
)


def copy_client(folder: Path) -> str:
    """As the docs say: client.js, and its folder. Returns what to import."""
    shutil.copy(STATIC / "client.js", folder)
    shutil.copytree(STATIC / "client", folder / "client")
    (folder / "package.json").write_text('{"type": "module"}')
    return "./client.js"


@pytest.fixture(scope="module")
def database(shared: str) -> str:
    return shared


@pytest.fixture(scope="module")
def brain(database: str) -> Iterator[Brain]:
    with served(database_url=database) as brain:
        yield brain


class Page:
    """The events that a watching page has reported so far."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"it did not come: {self.events[-10:]}"
            await asyncio.sleep(0.005)

    async def holds(self, **runs: str) -> None:
        """Until the page shows exactly these runs, with these statuses."""
        await self.until(lambda: self.events and dict(self.events[-1]["runs"]) == runs)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def connections(self) -> list[bool]:
        """For each, whether it was a reset."""
        return [event["reset"] for event in self.of("connected")]


@contextlib.asynccontextmanager
async def in_node(
    folder: Path,
    url: str,
    deadline: int = 40_000,
    tokens: Sequence[str | float] = (),
    *,
    program: str = PAGE,
) -> AsyncIterator[Page]:
    """The page sends each token once, and the last one again and again.

    A number stands for a token that is valid for this many seconds from its request.
    """
    page = Page()
    folder = Path(tempfile.mkdtemp(dir=folder))
    client = copy_client(folder)
    tell = "const tell = event => process.stdout.write(JSON.stringify(event) + '\\n');\n"
    program = filled(program, client, url, deadline, tokens)
    (folder / "page.js").write_text(program + tell)
    command = node()
    assert command, "Node 20 or newer"
    process = await asyncio.create_subprocess_exec(
        *command, "--no-warnings", folder / "page.js", stdout=subprocess.PIPE
    )

    async def listen() -> None:
        assert process.stdout
        async for line in process.stdout:
            page.events.append(json.loads(line))

    listening = asyncio.create_task(listen())
    try:
        yield page
        assert process.returncode is None or page.of("ended"), "the page died"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await listening


def filled(
    program: str, client: str, url: str, deadline: int, tokens: Sequence[str | float]
) -> str:
    page = program.replace("CLIENT", client).replace("URL_OF_BRAIN", json.dumps(url))
    page = page.replace("DEADLINE", str(deadline))
    return page.replace("TOKENS", json.dumps(tokens)).replace("SECRET", SECRET)


@contextlib.contextmanager
def in_browser(
    folder: Path, url: str, deadline: int = 40_000, tokens: Sequence[str | float] = ()
) -> Iterator[Page]:
    """A page from a server of its own, like the one of a front-end developer."""
    page = Page()
    # One request after the other keeps the events in order.
    tell = (
        "let told = Promise.resolve();\n"
        "const tell = (event, body = JSON.stringify(event)) => "
        "{ told = told.then(() => fetch('/', { method: 'POST', body })); };\n"
    )
    client = url.replace("ws:", "http:").partition("/ws")[0] + "/client.js"
    program = filled(PAGE, client, url, deadline, tokens)
    script = f"<!doctype html><script type=module>{program}{tell}</script>"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(script.encode())

        def do_POST(self) -> None:
            page.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with headless(folder, f"http://localhost:{server.server_port}/"):
                yield page
        finally:
            server.shutdown()
            serving.join()


STORE = """
import { Runs } from 'CLIENT';
const held = () => runs.all.map(run => [run.id, run.status]);
const times = () => Object.fromEntries(runs.all.map(run => [run.id, run.changed_at ?? null]));
const say = (kind, more) => tell({ kind, ...more, runs: held(), times: times() });
const runs = new Runs(URL_OF_BRAIN, OPTIONS);
runs.subscribe(changes => say('changes', {
  state: runs.freshness.state, complete: runs.complete,
  code: runs.freshness.code, news: changes.filter(({ news }) => news).map(({ id }) => id),
}));
"""


def store(options: str = "{}") -> str:
    return STORE.replace("OPTIONS", options)


def shows(page: Page, run_id: str, status: str) -> bool:
    return [run_id, status] in page.events[-1]["runs"]


@needs_node
async def test_shows_the_current_state_and_what_changed_during_an_outage(
    brain: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "INSERT INTO runs (id, agent) VALUES ('one', 'js'), ('other', 'python')")
    async with (
        FaultyProxy(brain.port) as proxy,
        in_node(tmp_path, f"{proxy.url}?snapshot=true&agent=js") as page,
    ):
        await page.holds(one="queued")
        for reset, status in ((False, "running"), (True, "failed")):
            proxy.target = 1
            proxy.cut(reset=reset)
            await page.until(lambda: page.events[-1]["kind"] == "away")
            execute(database, f"UPDATE runs SET status = '{status}' WHERE id = 'one'")
            execute(database, f"INSERT INTO runs (id, agent) VALUES ('{status}', 'js')")
            proxy.target = brain.port
            await page.until(partial(shows, page, "one", status))
        await page.holds(one="failed", running="queued", failed="queued")
        assert page.connections() == [True, False, False], "no reset"


@needs_node
async def test_hears_of_deletes_and_of_the_source_if_the_url_asks_for_them(
    brain: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('kept'), ('deleted')")
    url = brain.url("?snapshot=true&run_id=kept&run_id=deleted&include=deleted,ready,source")
    async with in_node(tmp_path, url) as page:
        await page.holds(kept="queued", deleted="queued")
        await page.until(lambda: page.of("ready") and page.of("source"))
        execute(database, "DELETE FROM runs WHERE id = 'deleted'")
        await page.holds(kept="queued")
        await page.until(lambda: page.of("deleted"))
    kinds = [event["kind"] for event in page.events]
    assert kinds[:6] == ["connected", "message", "message", "ready", "source", "deleted"]
    assert page.of("source")[0]["message"]["data"]["source"] == "replication"


@needs_node
async def test_gives_up_a_silent_connection(brain: Brain, database: str, tmp_path: Path) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('stall')")
    async with (
        FaultyProxy(brain.port) as proxy,
        in_node(tmp_path, f"{proxy.url}?snapshot=true&run_id=stall", 1500) as page,
    ):
        await page.holds(stall="queued")
        await asyncio.sleep(3.2)
        assert not page.of("away"), "it is silent and answers pings"
        proxy.stalled = True
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'stall'")
        await page.until(lambda: page.of("away"))
        proxy.cut()
        proxy.stalled = False
        await page.holds(stall="running")
        assert page.connections() == [True, False]


@needs_node
async def test_resets_when_the_server_does_not_remember(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url)
    try:
        execute(url, "INSERT INTO runs (id) VALUES ('ends'), ('stays')")
        async with in_node(tmp_path, brain.url("?snapshot=true")) as page:
            await page.holds(ends="queued", stays="queued")
            brain.process.kill()
            brain.process.wait()
            execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'ends'")
            brain = Brain(database_url=url, port=brain.port)
            await page.holds(stays="queued")
            assert page.connections() == [True, True]
        long_ago = (datetime.now(UTC) - timedelta(days=1)).isoformat().replace("+", "%2B")
        async with in_node(tmp_path, brain.url(f"?since={long_ago}")) as page:
            await page.holds(stays="queued")
            assert page.connections() == [True]
            assert not page.of("away")
    finally:
        brain.process.kill()
        brain.process.wait()


@needs_node
async def test_without_a_message_to_resume_from_it_resets(
    brain: Brain, database: str, tmp_path: Path
) -> None:
    async with (
        FaultyProxy(brain.port) as proxy,
        in_node(tmp_path, f"{proxy.url}?run_id=unheard") as page,
    ):
        await page.until(page.connections)
        proxy.target = 1
        proxy.cut()
        await page.until(lambda: page.of("away"))
        execute(database, "INSERT INTO runs (id) VALUES ('unheard')")
        proxy.target = brain.port
        await page.holds(unheard="queued")
        assert page.connections() == [True, True]


@needs_node
async def test_ends_after_a_permanent_close_code_and_retries_after_others(tmp_path: Path) -> None:
    async with (
        closing(1012, 1013, 1001, 4000, 4410, 4401) as (url, came),
        in_node(tmp_path, url) as page,
    ):
        await page.until(lambda: page.of("ended"))
        assert page.of("ended")[0]["code"] == 4401
        assert page.of("ended")[0]["reason"] == "said by the test"
        assert len(came) == 6
        assert len(page.of("away")) == 5
    async with closing(1008) as (url, came), in_node(tmp_path, url) as page:
        await page.until(lambda: page.of("ended"))
        assert len(came) == 1


@needs_node
async def test_a_server_that_refuses_is_not_flooded(brain: Brain, tmp_path: Path) -> None:
    async with FaultyProxy(brain.port) as proxy:
        proxy.answers += 100 * [answer(503)]
        async with in_node(tmp_path, proxy.url) as page:
            await page.until(lambda: proxy.came)
            await asyncio.sleep(1.5)
            await page.until(lambda: len(proxy.came) >= 2)
            assert len(proxy.came) <= 15
            proxy.answers.clear()
            await page.until(page.connections)


@needs_node
async def test_sends_a_token_first_and_a_new_one_after_expiry(
    guarded: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('bearer')")
    late = token()
    url = guarded.url("?snapshot=true&run_id=bearer")
    async with in_node(tmp_path, url, tokens=[within(1.5), within(1.5), late]) as page:
        await page.holds(bearer="queued")
        await page.until(lambda: page.of("away"))
        execute(database, "UPDATE runs SET status = 'running' WHERE id = 'bearer'")
        await page.holds(bearer="running")
        assert page.connections() == [True, False], "no reset"
    async with in_node(tmp_path, guarded.url("?run_id=nobody"), tokens=[late]) as page:
        # The client sends a ping after the token, and Brain answers it once the token is valid.
        await page.until(page.connections)
    for wrong, code in (
        (token(exp=time.time() - 1), 4401),
        ("nonsense", 4401),
        (token(scope="write"), 4403),
    ):
        async with in_node(tmp_path, url, tokens=[wrong]) as page:
            await page.until(lambda: page.of("ended"))
            assert page.of("ended")[0]["code"] == code
            assert not page.of("connected")


@needs_browser
async def test_in_a_real_browser_with_a_token(
    guarded: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "INSERT INTO runs (id) VALUES ('entitled')")
    tokens: list[str | float] = [within(1.5), token()]
    url = guarded.url("?snapshot=true&run_id=entitled")
    with in_browser(tmp_path, url, tokens=tokens) as page:
        await page.holds(entitled="queued")
        await page.until(lambda: page.connections() == [True, False])
        assert len(page.of("away")) == 1


@needs_browser
async def test_in_a_real_browser(brain: Brain, database: str, tmp_path: Path) -> None:
    """The page has another origin than Brain, and needs no setting."""
    execute(database, "INSERT INTO runs (id, agent) VALUES ('shown', 'browser')")
    async with FaultyProxy(brain.port) as proxy:
        with in_browser(tmp_path, f"{proxy.url}?snapshot=true&agent=browser", 1500) as page:
            await page.holds(shown="queued")
            execute(database, "UPDATE runs SET status = 'running', progress = 5 WHERE id = 'shown'")
            await page.holds(shown="running")
            proxy.target = 1
            proxy.cut(reset=True)
            await page.until(lambda: page.of("away"))
            execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'shown'")
            proxy.target = brain.port
            await page.holds(shown="completed")
            proxy.stalled = True
            before = len(page.of("away"))
            execute(database, "INSERT INTO runs (id, agent) VALUES ('late', 'browser')")
            await page.until(lambda: len(page.of("away")) > before)
            proxy.cut()
            proxy.stalled = False
            await page.holds(shown="completed", late="queued")
            assert page.connections()[0] is True
            assert not any(page.connections()[1:])


# Runs


def live(page: Page) -> bool:
    return bool(page.events) and page.events[-1]["state"] == "live"


@needs_node
async def test_the_store_is_the_list_and_every_change(
    brain: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "DELETE FROM runs")
    execute(
        database, "INSERT INTO runs (id, status) VALUES ('was', 'completed'), ('is', 'running')"
    )
    async with (
        FaultyProxy(brain.port) as proxy,
        in_node(tmp_path, proxy.url.replace("ws", "http", 1), program=store()) as page,
    ):
        await page.holds(was="completed", **{"is": "running"})
        await page.until(lambda: live(page))
        assert not any(event["news"] for event in page.events), "what is loaded is no news"
        execute(database, "INSERT INTO runs (id) VALUES ('comes')")
        execute(database, "DELETE FROM runs WHERE id = 'was'")
        await page.holds(comes="queued", **{"is": "running"})
        proxy.target = 1
        proxy.cut(reset=True)
        await page.until(lambda: page.events[-1]["state"] == "away")
        execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'is'")
        execute(database, "DELETE FROM runs WHERE id = 'comes'")
        proxy.target = brain.port
        await page.holds(**{"is": "failed"})
        await page.until(lambda: live(page))
        assert page.events[-1]["complete"]


@needs_node
async def test_the_store_loads_again_what_ended_while_brain_was_away(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Also an ended run that is beyond the finished ones that it keeps."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    brain = Brain(database_url=url, resume=0)
    try:
        execute(
            url,
            "INSERT INTO runs (id, status) SELECT 'a' || n, 'completed' "
            "FROM generate_series(1, 5) n",
        )
        execute(
            url, "INSERT INTO runs (id, status) VALUES ('ends', 'running'), ('goes', 'running')"
        )
        execute(url, "INSERT INTO runs (id) VALUES ('late')")
        execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'late'")
        origin = f"http://127.0.0.1:{brain.port}"
        async with in_node(tmp_path, origin, program=store("{ finished: 3 }")) as page:
            await page.until(lambda: live(page))
            assert len(page.events[-1]["runs"]) == 5
            assert shows(page, "late", "completed"), "the last one that ended, not the last id"
            assert not page.events[-1]["complete"]
            brain.process.kill()
            brain.process.wait()
            execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'ends'")
            execute(url, "DELETE FROM runs WHERE id = 'goes'")
            brain = Brain(database_url=url, port=brain.port, resume=0)
            await page.until(lambda: live(page) and shows(page, "ends", "failed"))
            held = dict(page.events[-1]["runs"])
            assert "goes" not in held
            assert len(held) == 3
    finally:
        brain.process.kill()
        brain.process.wait()


@needs_node
async def test_of_the_finished_runs_the_store_keeps_the_latest_and_knows_when_they_changed(
    brain: Brain, database: str, tmp_path: Path
) -> None:
    """More than a page of them, and not those with the lowest ids."""
    execute(database, "DELETE FROM runs")
    execute(
        database,
        "INSERT INTO runs (id, status) SELECT 'z' || n, 'failed' FROM generate_series(1, 1200) n",
    )
    ((last,),) = execute(database, "SELECT clock_timestamp()")
    execute(
        database,
        "INSERT INTO runs (id, status) SELECT 'a' || n, 'failed' FROM generate_series(1, 1500) n",
    )
    execute(database, "UPDATE runs SET progress = 100 WHERE id LIKE 'z%%'")
    execute(database, "INSERT INTO runs (id) VALUES ('active')")
    await brain.knows("active")
    origin = f"http://127.0.0.1:{brain.port}"
    async with in_node(tmp_path, origin, program=store("{ finished: 1150 }")) as page:
        await page.until(lambda: live(page))
        held = dict(page.events[-1]["runs"])
        assert len(held) == 1151
        assert all(run_id[0] == "z" for run_id in held if run_id != "active")
        assert not page.events[-1]["complete"]
        times = page.events[-1]["times"]
        assert all(datetime.fromisoformat(time) > last for time in times.values())


@needs_node
async def test_the_store_keeps_to_its_filter_and_ends_without_a_token(
    brain: Brain, guarded: Brain, database: str, tmp_path: Path
) -> None:
    execute(database, "DELETE FROM runs")
    execute(database, "INSERT INTO runs (id, agent) VALUES ('mine', 'me'), ('yours', 'you')")
    program = store("{ agent: 'me', status: ['queued', 'running'] }")
    async with in_node(tmp_path, f"http://127.0.0.1:{brain.port}", program=program) as page:
        await page.until(lambda: live(page))
        await page.holds(mine="queued")
        execute(database, "UPDATE runs SET status = 'running', agent = 'me'")
        await page.holds(mine="running", yours="running")
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'mine'")
        await page.holds(yours="running")
        execute(database, "UPDATE runs SET agent = 'you'")
        await page.holds()
    async with in_node(tmp_path, f"http://127.0.0.1:{guarded.port}", program=store()) as page:
        await page.until(lambda: page.events and page.events[-1]["state"] == "ended")
        assert page.events[-1]["code"] == 401
