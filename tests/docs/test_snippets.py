"""Every block of code in both READMEs and in docs/ works as it is written.

Each document is followed from its top to its end, in an empty folder and on an empty table, by the
language of each block:

    sh              run by bash. A command that goes on runs until Ctrl-C in its terminal. A first
                    line `# Terminal 2` is another terminal, with an environment of its own
    sql             pasted into psql
    python          run, until each line has run, while runs change and the connection is cut
    js              run by Chromium, in a page of another origin
    html            opened in Chromium: it shows a run without an error
    js, ts, tsx     compiled by tsc --strict
    http            each line is a target that Brain answers: /ws by a WebSocket, others by 200
    json            what the command before it answers, or what commands that go on show, but for
                    times
    output          the same for text: lines that they print
    jsonc, yaml, env, toml   parsed
    text            for a reader only

A block whose first line is a comment with nothing but the name of a file is saved there, and not
run: another block does. A saved page is opened at the end.
"""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, ConsoleMessage, Error, expect
from websockets.sync.client import connect

from brain.config import Settings
from tests.docs.fences import DOCUMENTS, EVERYTHING, Fence, fences
from tests.docs.reader import NODE, Reader
from tests.support import ROOT
from tests.support.browser import SHELL, chromium, ordinary_tab
from tests.support.patience import PATIENCE, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain, served

STATIC = ROOT / "src" / "brain" / "page" / "static"

NOT_RUN: dict[tuple[str, str], str] = {
    # The document, and how the block begins → why no test can run it here, and what does instead.
    ("*", "make run"): "installs for a minute; test_the_service_starts_on_port_5221 starts it",
    ("*", "git clone"): "has no address yet: brain-runs.example is a reserved name",
    ("releasing.md", "make check"): "is CI itself",
    ("releasing.md", ""): "makes a release",
    ("operations.md", "sudo "): "makes a service of this machine; test_deploy.py checks the unit",
    ("operations.md", "brain init-db --remove"): "drops the table that the documents share; "
    "test_cli.py follows it",
    ("operations.md", "cd /opt/brain"): "upgrades a service of this machine",
    ("workers.md", "sudo "): "makes a service of this machine; test_workers.py sends the signal",
    ("two-machines.md", "sudo "): "makes a service of this machine; test_two_machines.py does it",
    ("two-machines.md", "upstream "): "tests/integration/server/test_two_machines.py runs it",
    ("two-machines.md", "defaults"): "tests/integration/server/test_two_machines.py runs it",
    ("operations.md", "CREATE "): "test_least_privilege.py pastes it, as a superuser",
    ("operations.md", "hostssl"): "test_least_privilege.py puts it into a pg_hba.conf",
    ("operations.md", "docker "): "needs Docker; tests/containers plays the Dockerfile",
    ("operations.md", "kubectl "): "needs a cluster; tests/containers checks the manifest",
    ("proxies.md", "server {"): "tests/integration/server/test_proxies.py runs it",
    ("proxies.md", "defaults"): "tests/integration/server/test_proxies.py runs it",
    ("proxies.md", "brain.example {"): "tests/integration/server/test_proxies.py runs it",
    ("proxies.md", "BRAIN_HOST=127.0.0.1"): "tests/integration/server/test_proxies.py sets it",
}

PRELUDES = {
    # What a block of Python takes for granted.
    "client.md": "secret, runs = 's' * 32, {}\n",
}

ENVIRONMENT = {
    "terminal.md": {"BRAIN_JWT_SECRET": "s" * 32},
    "settings.md": {"BRAIN_JWT_SECRET": "s" * 32},
}

OWN_BRAIN = ("operator.md", "workers.md")
"""Documents whose reader starts Brain before anything asks for it."""

pytestmark = pytest.mark.long

FAULTS = pytest.mark.faults
"""Of a document whose blocks are those of another: test_readmes.py compares the READMEs."""

needs_tsc = pytest.mark.skipif(
    not (NODE / "typescript").exists(), reason="tsc needs Node, and `make test`"
)


def why_not(fence: Fence) -> str:
    """The reason why no test can run it. `` if there is none."""
    return next(
        (
            reason
            for (name, start), reason in NOT_RUN.items()
            if name in ("*", fence.path.name) and "\n".join(fence.commands).startswith(start)
        ),
        "",
    )


def needs(fence: Fence) -> str:
    """A program that is not installed."""
    words = set(re.findall(r"\b(?:npx|jq|curl|openssl|promtool|nginx)\b", fence.text))
    return ", ".join(word for word in sorted(words) if fence.language == "sh" and not which(word))


def which(program: str) -> str | None:
    return shutil.which(program) if program != "npx" or (NODE / "wscat").exists() else None


# The servers that all documents share


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser | None]:
    if SHELL is None:
        yield None
        return
    with chromium() as browser:
        yield browser


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Serves the folder to a browser, from another origin than Brain's."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def reader(
    request: pytest.FixtureRequest, tmp_path: Path, brain: Brain, shared: str
) -> Iterator[Reader]:
    """At the beginning of a document."""
    path: Path = request.getfixturevalue("document")
    execute(shared, "DROP TABLE IF EXISTS jobs; DELETE FROM runs")
    wait_until(lambda: not brain.get("/readyz")[1]["runs"])
    reader = Reader(tmp_path, brain, shared, own_brain=path.name in OWN_BRAIN)
    reader.environment |= ENVIRONMENT.get(path.name, {})
    yield reader
    reader.leaves()


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(path, marks=FAULTS if path.name == "README.zh-CN.md" else [])
        for path in DOCUMENTS
        if path.exists()
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_each_block_of_a_document_works(
    document: Path, reader: Reader, browser: Browser | None
) -> None:
    missing = set()
    for fence in fences(document):
        if why_not(fence):
            continue
        if program := needs(fence):
            missing.add(program)
            continue
        if fence.name:
            reader.save(fence)
        else:
            follow(fence, reader, browser)
    for fence in fences(document):
        if browser and not missing and fence.name.endswith(".html"):
            open_in(browser, fence, reader)
    if missing:
        pytest.skip(f"all but blocks with {', '.join(sorted(missing))}, which is not installed")


def follow(fence: Fence, reader: Reader, browser: Browser | None) -> None:
    match fence.language:
        case "sh":
            reader.sh(fence)
        case "sql":
            reader.sql(fence)
        case "python":
            reader.python(fence, PRELUDES.get(fence.path.name, ""))
        case "js" | "html" if browser:
            open_in(browser, fence, reader)
        case "http":
            for target in fence.text.split("\n"):
                answers(reader, target.removeprefix("GET "))
        case "json":
            reader.sees_json(fence)
        case "output":
            reader.sees(fence)
        case "jsonc":
            json.loads(re.sub(r"^\s*//.*$", "", fence.text, flags=re.MULTILINE))
        case "yaml":
            assert yaml.safe_load(fence.text)
        case "env":
            known = {f"BRAIN_{name.upper()}" for name in Settings.model_fields}
            assert set(re.findall(r"^(\w+)=", fence.text, re.MULTILINE)) <= known, fence.place
        case _:
            assert fence.language in ("text", "js", "html", "ts", "tsx"), (
                f"{fence.place}: a block of {fence.language!r}: name one of the languages above, "
                "or list it in NOT_RUN"
            )


def answers(reader: Reader, target: str) -> None:
    if target.startswith("/ws"):
        with connect(f"ws://127.0.0.1:{reader.port}{target}", proxy=None):
            pass
    elif target:
        assert reader.brain.get(target)[0] == 200, target


def open_in(browser: Browser, fence: Fence, reader: Reader) -> None:
    """The page, or a page with the script, shows a run that changes, and no error."""
    name = fence.name or f"line-{fence.line}.html"
    text = reader.here(fence.text)
    if fence.language == "js":
        given = "" if "client.js'" in text else "import { Runs, watch } from '/client.js';\n"
        text = f"{SCRIPT}\n<script type=module>\n{given}{text}</script>"
        text = text.replace("'/client.js'", f"'http://localhost:{reader.port}/client.js'")
    if not fence.name:
        (reader.folder / name).write_text(text)
    errors: list[str] = []

    def note(said: ConsoleMessage) -> None:
        if said.type in ("error", "warning") and "favicon.ico" not in said.location["url"]:
            errors.append(said.text)

    def fail(error: Error) -> None:
        errors.append(str(error))

    with pages(reader.folder) as origin, ordinary_tab(browser) as tab:
        tab.on("pageerror", fail)
        tab.on("console", note)
        tab.goto(f"{origin}/{name}")
        if fence.language == "html" or "show(" in fence.text:
            run = "INSERT INTO runs (id, agent, status) VALUES ('seen', 'agent-1', 'running')"
            execute(reader.database, f"{run} ON CONFLICT (id) DO UPDATE SET progress = random()")
            expect(tab.locator("body")).to_contain_text("seen")
        # A connection that is still being made when the tab leaves is another error.
        tab.remove_listener("pageerror", fail)
        tab.remove_listener("console", note)
    assert errors == [], fence.place


SCRIPT = """
<!doctype html>
<link rel=icon href=data:,>
<p id=shown></p>
<script>
function show(what) {
  const runs = what instanceof Map ? [...what.values()] : what;
  document.getElementById('shown').textContent += JSON.stringify(runs);
}
</script>"""


# Each block is accounted for


@pytest.mark.parametrize("entry", NOT_RUN, ids=" ".join)
def test_what_is_not_run_is_in_a_document(entry: tuple[str, str]) -> None:
    name, start = entry
    found = [
        fence
        for fence in EVERYTHING
        if name in ("*", fence.path.name) and "\n".join(fence.commands).startswith(start)
    ]
    assert found


# TypeScript

DECLARED = """
declare function show(runs: unknown): void;
declare module 'react' {
  export function useSyncExternalStore<T>(on: (fn: () => void) => () => void, get: () => T): T;
}
declare module 'vue' {
  export function onUnmounted(fn: () => void): void;
  export function shallowRef<T>(value: T): { value: T };
}
declare namespace JSX {
  interface IntrinsicElements { [name: string]: unknown }
}
"""


@needs_tsc
def test_every_block_of_a_script_compiles_strictly(tmp_path: Path) -> None:
    """With the types and the configuration that docs/how-to/client.md tells a reader to use."""
    configuration = next(each for each in EVERYTHING if '"compilerOptions"' in each.text)
    (tmp_path / "tsconfig.json").write_text(configuration.text)
    for name in ("client.d.ts", "client.js"):
        shutil.copy(STATIC / name, tmp_path)
    (tmp_path / "declared.d.ts").write_text(DECLARED)
    scripts = [each for each in EVERYTHING if each.language in ("js", "ts", "tsx")]
    assert scripts
    for number, fence in enumerate(scripts):
        given = "" if "client.js'" in fence.text else "import { Runs, watch } from './client.js';\n"
        kind = "tsx" if fence.language == "tsx" else "ts"
        name = f"{fence.path.stem.replace('.', '-')}-{fence.line}-{number}.{kind}"
        (tmp_path / name).write_text(f"// {fence.place}\n{given}{fence.text}\nexport {{}};\n")
    done = subprocess.run(
        [
            NODE / ".bin" / "tsc",
            *["--noEmit", "--skipDefaultLibCheck", "--jsx", "preserve"],
            "-p",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE * 3,
    )
    assert done.returncode == 0, done.stdout
