"""A real Chromium, driven by Playwright, and the live page in it.

Playwright's own API is synchronous here: such a test has no event loop of its own. Its
`wait_for_function` evaluates text in the page, which the page's Content-Security-Policy forbids:
wait for a locator, or with `wait_until`.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from brain.contract.messages import STATUSES
from tests.support.patience import PATIENCE, wait_until
from tests.support.postgres import execute

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="neither chromium nor google-chrome is installed"
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
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class LivePage:
    """The page `/` of a Brain, in a tab of its own."""

    def __init__(self, tab: Page, origin: str) -> None:
        self.tab = tab
        self.origin = origin
        self.errors: list[str] = []
        self.requested: list[str] = []
        tab.on("console", lambda said: self._note(said.type, said.text))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("request", lambda request: self.requested.append(request.url))
        tab.on("websocket", lambda socket: self.requested.append(socket.url))

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
    context = {"locale": "en-GB", "viewport": {"width": 1280, "height": 720}, **context}
    with contextlib.closing(browser.new_context(**context)) as made:
        if script:
            made.add_init_script(script)
        if clock:
            made.clock.install()
        page = LivePage(made.new_page(), origin)
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
