"""The live page in a storm of changes, with outages: it ends as the table is, and grows no more."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, CDPSession

from tests.support.browser import chromium, live_page, needs_browser
from tests.support.postgres import execute
from tests.support.proxy import Proxy
from tests.support.random_changes import write_randomly
from tests.support.served import served

pytestmark = needs_browser

SECONDS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def storm(url: str, end: threading.Event) -> None:
    chance = random.Random(7)
    while not end.is_set():
        write_randomly(url, chance, changes=200, ids=300)


def heap(session: CDPSession) -> float:
    """MB that are in use after a collection."""
    session.send("HeapProfiler.collectGarbage")
    answer = session.send("Performance.getMetrics")
    (used,) = [each["value"] for each in answer["metrics"] if each["name"] == "JSHeapUsedSize"]
    return float(used) / 1e6


@pytest.mark.parametrize("outages", [False, True], ids=["steady", "outages"])
def test_after_a_storm_the_page_is_the_table(
    browser: Browser, database: str, outages: bool
) -> None:
    end = threading.Event()
    with (
        served(database_url=database) as brain,
        Proxy(brain.port) as proxy,
        live_page(browser, f"http://localhost:{proxy.port}") as page,
    ):
        page.is_("live")
        session = page.tab.context.new_cdp_session(page.tab)
        session.send("Performance.enable")
        writer = threading.Thread(target=storm, args=(database, end))
        writer.start()
        try:
            time.sleep(SECONDS / 4)
            before = heap(session)
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                time.sleep(5)
                if outages:
                    random.choice([proxy.cut, proxy.reset])()
        finally:
            end.set()
            writer.join()
        page.is_("live")
        page.equals(database)
        assert heap(session) < before + 3
        assert page.tab.locator("*").count() < 600
        execute(database, "DELETE FROM runs")
        page.equals(database)
