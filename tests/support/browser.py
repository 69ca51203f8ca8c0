"""A real Chromium, driven by Playwright, and the live page in it.

Playwright's own API is synchronous here: such a test has no event loop of its own. Its
`wait_for_function` evaluates text in the page, which the page's Content-Security-Policy forbids:
wait for a locator, or with `wait_until`.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from brain.contract.messages import STATUSES
from tests.support.patience import PATIENCE, wait_until
from tests.support.postgres import execute

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

SHELL = shutil.which("chromium-headless-shell") or BROWSER
"""The same engine without the user interface of a browser, for half of the CPU time."""

needs_browser = pytest.mark.skipif(
    SHELL is None, reason="neither chromium nor google-chrome is installed"
)

OPTIONS = [
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]

expect.set_options(timeout=PATIENCE * 1000)


@contextlib.contextmanager
def headless(folder: Path, url: str) -> Iterator[None]:
    """A browser that shows `url`, and that nobody drives. `folder` is for its profile.

    In a session of its own: Debian's chromium-headless-shell is a script, whose end would leave the
    browser.
    """
    assert SHELL
    more = ("--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}")
    with subprocess.Popen(
        [SHELL, "--headless", *OPTIONS, *more, url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def chromium(program: str | None = SHELL) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            _kept.pop(browser, None)
            browser.close()


ORDINARY: dict[str, Any] = {"locale": "en-GB", "viewport": {"width": 1280, "height": 720}}
"""The context of a tab for which nothing else is asked."""

_kept: dict[Browser, Page] = {}


@contextlib.contextmanager
def ordinary_tab(browser: Browser) -> Iterator[Page]:
    """A tab without a past, which may be an earlier one: the first page of a new tab takes 1.7 s of
    a core, the next one of the same site 0.35 s. It must not get a script for all its pages.
    """
    tab = _kept.pop(browser, None) or browser.new_context(**ORDINARY).new_page()
    try:
        yield tab
    except BaseException:
        tab.context.close()
        raise
    try:
        _forget(tab)
    except PlaywrightError:  # its server has ended
        tab.context.close()
        return
    if browser in _kept:
        tab.context.close()
    else:
        _kept[browser] = tab


def _forget(tab: Page) -> None:
    parts = urlsplit(tab.url)  # another site would get a process of its own
    tab.goto(f"{parts.scheme}://{parts.netloc}/healthz" if parts.netloc else "about:blank")
    tab.evaluate("try { localStorage.clear(); sessionStorage.clear() } catch {}")
    tab.context.clear_cookies()
    tab.context.clear_permissions()
    tab.set_viewport_size(ORDINARY["viewport"])


class LivePage:
    """The page `/` of a Brain, in a tab of its own."""

    def __init__(self, tab: Page, origin: str) -> None:
        self.tab = tab
        self.origin = origin
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._listeners: dict[Any, Callable[..., None]] = {
            "console": lambda said: self._note(said.type, said.text),
            "pageerror": lambda error: self.errors.append(str(error)),
            "request": lambda request: self.requested.append(request.url),
            "websocket": lambda socket: self.requested.append(socket.url),
        }
        for event, listener in self._listeners.items():
            tab.on(event, listener)

    def leave(self) -> None:
        """Hear of nothing that happens in the tab from here on."""
        for event, listener in self._listeners.items():
            self.tab.remove_listener(event, listener)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def open(self, query: str = "") -> None:
        self.tab.goto(f"{self.origin}/{query}")

    # What it shows

    def is_(self, state: str) -> None:
        """Wait until the sign of freshness says this."""
        expect(self.tab.locator(f".freshness.{state}")).to_be_attached()

    def is_not(self, state: str) -> None:
        expect(self.tab.locator(f".freshness.{state}")).not_to_be_attached()

    def row(self, run_id: str) -> Locator:
        return self.tab.locator(f"#rows [data-run={_quoted(run_id)}]")

    def cell(self, run_id: str, name: str) -> Locator:
        return self.row(run_id).locator(f".cell.{name}")

    def shows(self, run_id: str, status: str) -> None:
        expect(self.row(run_id).locator(f".status.{status}")).to_be_attached()

    def lacks(self, run_id: str) -> None:
        expect(self.row(run_id)).not_to_be_attached()

    def count(self, status: str) -> int:
        text = self.tab.locator(f".chip.{status} b").inner_text()
        return int(re.sub(r"\D", "", text))

    def rows(self) -> list[dict[str, Any]]:
        """Every run of the list, from the first to the last: the list is scrolled through."""
        found: list[dict[str, Any]] = self.tab.evaluate(_COLLECT)
        return found

    def equals(self, url: str) -> None:
        """Wait until the page is the table, row by row and in every count."""
        truth = {
            run_id: (status, "" if progress is None else f"{progress:g}%")
            for run_id, status, progress in execute(url, "SELECT id, status, progress FROM runs")
        }

        def shown() -> dict[str, tuple[str, str]]:
            return {row["id"]: (row["status"], row["progress"]) for row in self.rows()}

        wait_until(lambda: shown() == truth, lambda: set(shown().items()) ^ set(truth.items()))
        for status in STATUSES:
            assert self.count(status) == sum(1 for each, _ in truth.values() if each == status)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def has_cursor(self, run_id: str) -> None:
        expect(self.tab.locator("#rows .current")).to_have_attribute("data-run", run_id)

    @property
    def foreign(self) -> list[str]:
        """The requests to other servers."""
        own = urlsplit(self.origin).netloc
        return [
            url
            for url in self.requested
            if urlsplit(url).netloc != own and not url.startswith("data:")
        ]


@contextlib.contextmanager
def live_page(
    browser: Browser,
    origin: str,
    query: str = "",
    *,
    script: str = "",
    clock: bool = False,
    **context: Any,
) -> Iterator[LivePage]:
    """`script` runs in the tab before the page does. With `clock`, `page.tab.clock.fast_forward`
    lets time pass there. `context` goes to Playwright.
    """
    viewport = context.pop("viewport", ORDINARY["viewport"])
    with contextlib.ExitStack() as stack:
        context = {**ORDINARY, **context}
        if script or clock or context != ORDINARY:
            context["viewport"] = viewport
            made = stack.enter_context(contextlib.closing(browser.new_context(**context)))
            if script:
                made.add_init_script(script)
            if clock:
                made.clock.install()
            tab = made.new_page()
        else:
            tab = stack.enter_context(ordinary_tab(browser))
            tab.set_viewport_size(viewport)
        page = LivePage(tab, origin)
        stack.callback(page.leave)
        page.open(query)
        yield page


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\a ") + '"'


_COLLECT = """async () => {
  const grid = document.getElementById('grid'), found = new Map();
  const frame = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (grid.scrollTop = 0; ;) {
    await frame();
    for (const row of document.querySelectorAll('#rows .row')) {
      const text = name => row.querySelector(`.cell.${name}`).textContent.trim();
      found.set(+row.id.slice(4), {
        id: row.dataset.run, status: row.classList[1], progress: text('progress'),
        task: text('task'), agent: text('agent'), error: text('error'),
      });
    }
    const before = grid.scrollTop;
    grid.scrollTop += grid.clientHeight / 2;
    if (grid.scrollTop === before) break;
  }
  grid.scrollTop = 0;
  await frame();
  return [...found.keys()].sort((a, b) => a - b).map(index => found.get(index));
}"""
