"""The code of docs/client.md compiles, strictly, and its page works in a browser."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support import ROOT
from tests.support.browser import chromium, needs_browser
from tests.support.postgres import execute
from tests.support.served import Brain, served

DOCUMENT = (ROOT / "docs" / "client.md").read_text()
STATIC = ROOT / "src" / "brain" / "page" / "static"
NODE = ROOT / "tests" / "support" / "node" / "node_modules"

PRELUDE = """
declare function show(runs: unknown): void;
"""
FRAMEWORKS = """
declare module 'react' {
  export function useSyncExternalStore<T>(on: (fn: () => void) => () => void, get: () => T): T;
}
declare module 'vue' {
  export function onUnmounted(fn: () => void): void;
  export function shallowRef<T>(value: T): { value: T };
}
"""


def blocks(*languages: str) -> list[str]:
    names = "|".join(languages)
    return [
        text
        for _, text in re.findall(rf"^```({names})\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.skipif(not (NODE / "typescript").exists(), reason="tsc needs Node, and `make test`")
def test_every_snippet_for_a_browser_compiles(tmp_path: Path) -> None:
    shutil.copy(STATIC / "client.d.ts", tmp_path)
    (tmp_path / "frameworks.d.ts").write_text(FRAMEWORKS)
    snippets = blocks("js", "ts", "tsx")
    assert len(snippets) == 5
    files = []
    for number, snippet in enumerate(snippets):
        imports = "" if "client.js'" in snippet else "import { Runs, watch } from './client.js';\n"
        path = tmp_path / f"snippet{number}.ts"
        path.write_text(
            imports + PRELUDE + snippet.replace("http://localhost:5221/client", "./client")
        )
        files.append(path)
    options = "--strict --noEmit --target es2023 --module esnext --moduleResolution bundler"
    run = subprocess.run(
        [NODE / ".bin" / "tsc", *options.split(), tmp_path / "frameworks.d.ts", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.skipif(not (NODE / "typescript").exists(), reason="tsc needs Node, and `make test`")
@pytest.mark.parametrize("source", ["./client.js", "http://localhost:5221/client.js"])
def test_typescript_finds_the_types_with_the_documented_configuration(
    tmp_path: Path, source: str
) -> None:
    (configuration,) = blocks("json")
    (tmp_path / "tsconfig.json").write_text(configuration)
    shutil.copy(STATIC / "client.d.ts", tmp_path)
    shutil.copy(STATIC / "client.js", tmp_path)
    (tmp_path / "page.ts").write_text(
        f"import {{ Runs, watch }} from '{source}';\n"
        "export const ids: string[] = new Runs().all.map(run => run.id);\n"
        "watch('/ws', { message: ({ data }) => console.log(data.id.trim()) });\n"
        "// @ts-expect-error: a run has no such field, so the types were found\n"
        "console.log(new Runs().all[0].colour);\n"
    )
    run = subprocess.run(
        [NODE / ".bin" / "tsc", "--noEmit", "-p", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.fixture
def brain(database: str) -> Iterator[Brain]:
    with served(database_url=database) as brain:
        yield brain


@needs_browser
def test_the_whole_page_works_from_another_origin(brain: Brain, database: str) -> None:
    (text,) = blocks("html")
    page = text.replace("localhost:5221", f"localhost:{brain.port}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    execute(database, "INSERT INTO runs (id) VALUES ('one')")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever).start()
        try:
            tab = browser.new_page()
            tab.goto(f"http://localhost:{server.server_port}/")
            expect(tab.locator("#sign")).to_have_text("live")
            execute(database, "UPDATE runs SET status = 'running', progress = 4")
            expect(tab.locator("li")).to_have_text("one: running 4")
        finally:
            server.shutdown()
