"""What the page says of its own age: it is never live without proof, and misses nothing."""

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import LivePage, live_page, needs_browser
from tests.support.patience import wait_until
from tests.support.postgres import Postgres, execute, running
from tests.support.proxy import Proxy
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = [pytest.mark.long, needs_browser]

STALE = re.compile("d48806")
"""The colour of the icon of a page that is not current."""


@pytest.fixture
def proxy(brain: Brain) -> Iterator[Proxy]:
    with Proxy(brain.port) as proxy:
        yield proxy


@pytest.fixture
def table(shared: str) -> str:
    """The database, with these running runs."""
    execute(shared, "DELETE FROM runs")
    execute(
        shared,
        "INSERT INTO runs (id, status, started_at) "
        "SELECT id, 'running', now() - interval '3605 s' FROM unnest(ARRAY['ends', 'goes']) id",
    )
    return shared


def change(url: str) -> None:
    execute(url, "UPDATE runs SET status = 'failed', error = 'missed' WHERE id = 'ends'")
    execute(url, "DELETE FROM runs WHERE id = 'goes'")
    execute(url, "INSERT INTO runs (id) VALUES ('comes')")


def caught_up(page: LivePage) -> None:
    page.is_("live")
    page.shows("ends", "failed")
    page.shows("comes", "queued")
    page.lacks("goes")
    assert [page.count(each) for each in ("queued", "running", "failed")] == [1, 0, 1]


def test_a_cut_is_said_and_made_up_for(browser: Browser, proxy: Proxy, table: str) -> None:
    with live_page(browser, f"http://localhost:{proxy.port}") as page:
        page.is_("live")
        page.shows("goes", "running")
        expect(page.cell("ends", "elapsed")).to_have_text(re.compile(r"^1h \d\dm$"))
        proxy.refuse()
        page.is_("away")
        expect(page.tab.locator(".sign")).to_have_text(re.compile("Disconnected since .*:"))
        expect(page.tab).to_have_title(re.compile("^⚠"))
        expect(page.tab.locator("#icon")).to_have_attribute("href", STALE)
        expect(page.cell("ends", "elapsed")).to_have_text(re.compile(r"^≥ 1h \d\dm$"))
        change(table)
        proxy.refuse(False)
        caught_up(page)
        expect(page.tab).not_to_have_title(re.compile("⚠"))
        expect(page.tab.locator("#icon")).not_to_have_attribute("href", STALE)


def test_a_silent_connection_is_not_live_for_more_than_ten_seconds(
    browser: Browser, proxy: Proxy, table: str
) -> None:
    with live_page(browser, f"http://localhost:{proxy.port}", clock=True) as page:
        page.is_("live")
        page.shows("goes", "running")
        proxy.fall_silent()
        page.tab.clock.run_for(10_000)
        page.is_not("live")
        page.is_("away")
        change(table)
        proxy.cut()
        proxy.speak()
        caught_up(page)


def test_a_restart_of_brain_loses_nothing(browser: Browser, table: str) -> None:
    brain = Brain(database_url=table)
    try:
        with live_page(browser, f"http://localhost:{brain.port}") as page:
            page.is_("live")
            page.shows("goes", "running")
            brain.process.kill()
            brain.process.wait()
            page.is_("away")
            change(table)
            brain = Brain(database_url=table, port=brain.port)
            caught_up(page)
    finally:
        brain.stop()


@pytest.mark.parametrize("how", ["frozen", "left"])
def test_a_page_that_does_not_run_has_no_connection_and_comes_back(
    browser: Browser, brain: Brain, table: str, how: str
) -> None:
    with live_page(browser, f"http://localhost:{brain.port}") as page:
        page.is_("live")
        page.shows("goes", "running")
        if how == "frozen":
            # The event alone: a headless tab is always visible, and so is never frozen.
            page.tab.evaluate("document.dispatchEvent(new Event('freeze'))")
        else:
            page.tab.goto("about:blank")
        wait_until(lambda: brain.get("/readyz")[1]["clients"] == 0)
        change(table)
        if how == "frozen":
            page.is_("away")
            page.tab.evaluate("document.dispatchEvent(new Event('resume'))")
        else:
            page.tab.go_back()
        caught_up(page)


def test_a_truncated_table_is_empty(browser: Browser, brain: Brain, table: str) -> None:
    with live_page(browser, f"http://localhost:{brain.port}") as page:
        page.is_("live")
        page.shows("ends", "running")
        execute(table, "TRUNCATE runs")
        page.lacks("ends")
        page.is_("live")
        expect(page.tab.locator(".box h2")).to_have_text("No runs yet")


def test_says_that_brain_polls_and_why(browser: Browser, table: str) -> None:
    with (
        served(database_url=table, source="poll", follows="poll") as brain,
        live_page(browser, f"http://localhost:{brain.port}") as page,
    ):
        page.is_("polled")
        expect(page.tab.locator("#foot .hint")).to_contain_text("Brain polls the database")
        execute(table, "UPDATE runs SET status = 'completed' WHERE id = 'ends'")
        page.shows("ends", "completed")
        page.is_("polled")


@pytest.fixture
def own() -> Iterator[Postgres]:
    """A server that the test may stop."""
    with running() as server:
        yield with_template(server)


def test_a_silent_or_stopped_database_is_said(browser: Browser, own: Postgres) -> None:
    """Although the connection to Brain lives and answers pings."""
    url = own.url(own.create_database(TEMPLATE, ROLE), ROLE)
    execute(url, "INSERT INTO runs (id, status) VALUES ('ends', 'running')")
    with (
        served(database_url=url) as brain,
        live_page(browser, f"http://localhost:{brain.port}") as page,
    ):
        page.is_("live")
        walsender = execute(own.url(), "SELECT pid FROM pg_stat_replication")[0][0]
        os.kill(walsender, signal.SIGSTOP)
        try:
            page.is_("behind")
            expect(page.tab.locator(".sign")).to_have_text(re.compile(r"Behind by \d+s"))
        finally:
            os.kill(walsender, signal.SIGCONT)
        page.is_("live")
        own.stop("immediate")
        page.is_("behind")
        own.start()
        execute(url, "UPDATE runs SET status = 'completed'")
        page.is_("live")
        page.shows("ends", "completed")
