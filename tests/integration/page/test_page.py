"""The live page in Chromium: what it shows, how it is used, and that nothing leaves the origin."""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.support.browser import LivePage, live_page, needs_browser
from tests.support.issuer import SECRET, token
from tests.support.patience import wait_until
from tests.support.postgres import execute
from tests.support.random_changes import write_randomly
from tests.support.served import Brain, served

FAULTS = pytest.mark.faults

pytestmark = [pytest.mark.long, needs_browser]


@pytest.fixture(scope="module")
def origin(brain: Brain) -> str:
    return f"http://localhost:{brain.port}"


@pytest.fixture
def table(shared: str) -> Iterator[str]:
    """The database, with an empty table."""
    execute(shared, "DELETE FROM runs")
    yield shared
    execute(shared, "DELETE FROM runs")


@pytest.fixture
def page(browser: Browser, origin: str, table: str) -> Iterator[LivePage]:
    """Live, and nothing that the console would show."""
    assert table
    with live_page(browser, origin) as page:
        page.is_("live")
        yield page
        assert page.errors == []
        assert page.foreign == []


def many(url: str, prefix: str, count: int, ago: float) -> None:
    execute(
        url,
        "INSERT INTO runs (id, status, started_at) SELECT %s || lpad(n::text, 3, '0'), 'running', "
        "now() - make_interval(secs => %s - n * 0.001) FROM generate_series(1, %s) n",
        prefix,
        ago,
        count,
    )


def add(url: str, *ids: str, status: str = "running", ago: float = 0, **more: object) -> None:
    names = ["id", "status", *more]
    marks = ", ".join(["%s"] * len(names))
    query = (
        f"INSERT INTO runs ({', '.join(names)}, started_at) "
        f"VALUES ({marks}, now() - make_interval(secs => {ago}))"
    )
    for each in ids:
        execute(url, query, each, status, *more.values())


# What it shows


def test_hostile_texts_stay_text(page: LivePage, table: str) -> None:
    evil = "<img src=x onerror=alert(1)>"
    add(table, evil, status="failed", task_id=evil, agent=evil, error=evil)
    for name in ("run", "task", "agent", "error"):
        expect(page.cell(evil, name)).to_have_text(evil)
    page.row(evil).click()
    expect(page.tab.locator("#detail dd.error")).to_contain_text(evil)
    assert page.tab.locator("img").count() == 0
    assert any(url.startswith("ws://") for url in page.requested), "the socket was seen"


def test_a_change_reaches_the_page_whoever_made_it(page: LivePage, table: str) -> None:
    add(table, "one", status="queued")
    page.shows("one", "queued")
    execute(table, "UPDATE runs SET status = 'running', progress = 42.5, agent = 'me'")
    page.shows("one", "running")
    expect(page.cell("one", "progress")).to_have_text("42.5%")
    expect(page.cell("one", "agent")).to_have_text("me")
    execute(table, "UPDATE runs SET status = 'failed', error = 'no disk'")
    expect(page.cell("one", "error")).to_have_text("no disk")
    assert [page.count(each) for each in ("queued", "running", "failed")] == [0, 0, 1]


def test_a_deleted_run_leaves(page: LivePage, table: str) -> None:
    add(table, "stays", "goes")
    page.row("goes").click()
    execute(table, "DELETE FROM runs WHERE id = 'goes'")
    page.lacks("goes")
    page.shows("stays", "running")
    assert page.count("running") == 1
    expect(page.tab.locator("#detail .note")).to_have_text("This run has been deleted.")


def test_equals_the_table_after_many_random_changes(page: LivePage, table: str) -> None:
    many(table, "run-", 120, 1000)
    write_randomly(table, random.Random(13), changes=500, ids=130)
    page.equals(table)


def test_what_was_there_before_is_loaded_with_the_finished(
    browser: Browser, origin: str, table: str
) -> None:
    add(table, "new", ago=10)
    add(table, "old", status="completed", ago=100)
    add(table, "older", status="failed", ago=1000, error="gone")
    execute(table, "INSERT INTO runs (id) VALUES ('waits')")
    with live_page(browser, origin) as page:
        page.is_("live")
        ids = [row["id"] for row in page.rows()]
        assert ids == ["waits", "new", "old", "older"], "the newest start first"


def test_an_empty_table_shows_commands_that_work_when_they_are_pasted(
    page: LivePage, table: str, brain: Brain
) -> None:
    import subprocess

    lines = page.tab.locator(".commands pre").all_inner_texts()
    assert len(lines) == 3
    for line, status in zip(lines, ("queued", "running", "completed"), strict=True):
        subprocess.run(line, shell=True, check=True, cwd=brain.folder, stdout=subprocess.DEVNULL)
        page.shows("test-run-1", status)
    assert execute(table, "SELECT id, progress FROM runs") == [("test-run-1", 100.0)]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_commands_fit_the_window_and_can_be_copied(
    browser: Browser, origin: str, table: str, width: int
) -> None:
    assert table
    with live_page(browser, origin, viewport={"width": width, "height": 700}) as page:
        page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        line = page.tab.locator(".commands pre").nth(1)
        button = page.tab.get_by_role("button", name="Copy: Start it")
        for each in (line, button):
            box = each.bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        assert line.evaluate("pre => pre.scrollWidth <= pre.clientWidth"), "nothing is cut off"
        button.click()
        expect(button).to_have_text("Copied")
        assert page.tab.evaluate("navigator.clipboard.readText()") == line.inner_text()


def test_what_is_loaded_has_the_time_of_its_last_change(
    browser: Browser, origin: str, table: str
) -> None:
    """Brain remembers it. Before, the page knew only that it had seen no change yet."""
    add(table, "changed", "ended")
    execute(table, "UPDATE runs SET status = 'failed' WHERE id = 'ended'")
    with live_page(browser, origin, "?quiet=1") as page:
        page.is_("live")
        for run_id in ("changed", "ended"):
            expect(page.cell(run_id, "changed")).to_have_text(re.compile(r"\d+s"))
            expect(page.cell(run_id, "changed")).not_to_contain_text("≥")
        expect(page.cell("changed", "quiet")).to_be_attached()


def test_a_filter_that_matches_nothing_can_be_cleared(page: LivePage, table: str) -> None:
    add(table, "one")
    page.shows("one", "running")
    expect(page.tab.locator("#foot .number")).to_have_text("1 run")
    page.tab.locator("#search").fill("nothing like it")
    page.lacks("one")
    expect(page.tab.locator("#foot .number")).to_have_text("0 of 1 run")
    page.tab.get_by_role("button", name="Show all runs").click()
    page.shows("one", "running")
    assert "q=" not in page.tab.url


@pytest.mark.parametrize("language", ["en", "zh"])
def test_neither_counts_nor_the_sign_move_the_list_or_leave_the_window(
    browser: Browser, origin: str, table: str, language: str
) -> None:
    execute(
        table,
        "INSERT INTO runs (id, status) SELECT n::text, status FROM generate_series(1, 1100) n, "
        "unnest('{queued,running,completed,failed}'::text[]) WITH ORDINALITY AS s (status, i) "
        "WHERE n % 4 = 0 OR i = 2 ON CONFLICT DO NOTHING",
    )
    with live_page(browser, origin, f"?quiet=1&lang={language}") as page:
        expect(page.tab.locator(".chip.quiet")).to_be_attached()
        for width in (320, 390, 760, 928, 1152, 1280):
            page.tab.set_viewport_size({"width": width, "height": 640})
            heights = set()
            for sign in ("x", "Disconnected since 11:54:59"):
                overflow, height, right = page.tab.evaluate(_BAR, [sign, "12,345"])
                assert overflow <= 0
                assert right <= width
                heights.add(height)
            assert len(heights) == 1, width


_BAR = """([sign, count]) => {
  const write = (element, text) => {  // into the text itself: lit-html keeps comments beside it
    [...element.childNodes].find(node => node.nodeType === Node.TEXT_NODE).data = text;
  };
  const [bar, bell] = [document.getElementById('bar'), document.querySelector('#bar > .icon')];
  write(bar.querySelector('.sign'), sign);
  for (const number of bar.querySelectorAll('.chip b')) write(number, count);
  return [bar.scrollWidth - bar.clientWidth, bar.offsetHeight, bell.getBoundingClientRect().right];
}"""


def test_the_line_of_a_traceback_is_the_one_that_says_what_went_wrong(
    page: LivePage, table: str
) -> None:
    trace = "Traceback (most recent call last):\n  File ...\nValueError: no currency\n"
    add(table, "python", status="failed", error=trace)
    add(table, "cut", status="failed", error=f"{trace}… [cut]")
    add(table, "other", status="failed", error="first\nsecond")
    expect(page.cell("python", "error")).to_have_text("ValueError: no currency")
    expect(page.cell("cut", "error")).to_contain_text("Traceback")
    expect(page.cell("other", "error")).to_contain_text("first")


# Rows hold still


def top_of(page: LivePage, run_id: str) -> float:
    box = page.row(run_id).bounding_box()
    assert box
    return box["y"]


@pytest.mark.parametrize("how", ["scrolled", "focused"])
def test_what_is_read_does_not_move_when_newer_runs_come(
    page: LivePage, table: str, how: str
) -> None:
    many(table, "old-", 100, 1000)
    page.shows("old-100", "running")
    if how == "scrolled":
        page.tab.locator("#grid").evaluate("grid => { grid.scrollTop = 500.5; }")
        read = "old-080"
    else:
        page.press("j", "j", "j")
        read = "old-098"
        page.has_cursor(read)
    page.shows(read, "running")
    before = top_of(page, read)
    many(table, "new-", 200, 10)
    expect(page.tab.locator(".pill")).to_have_text("↑ 200 newer")
    assert top_of(page, read) == before
    execute(table, "DELETE FROM runs WHERE id LIKE 'new-1%%'")
    wait_until(lambda: page.count("running") == 200)
    assert top_of(page, read) == before
    if how == "focused":
        page.has_cursor(read)  # it follows the run, not the index
    page.tab.locator(".pill").click()
    page.shows("new-200", "running")
    expect(page.tab.locator(".pill")).not_to_be_attached()


def test_at_the_top_newer_runs_are_shown_at_once(page: LivePage, table: str) -> None:
    add(table, "first", ago=10)
    page.shows("first", "running")
    add(table, "second")
    page.shows("second", "running")
    assert [row["id"] for row in page.rows()] == ["second", "first"]
    execute(table, "UPDATE runs SET progress = 1 WHERE id = 'first'")
    expect(page.cell("first", "progress")).to_have_text("1%")
    assert [row["id"] for row in page.rows()] == ["second", "first"], "only new runs move rows"


def test_of_ten_thousand_runs_few_are_in_the_document(page: LivePage, table: str) -> None:
    execute(
        table,
        "INSERT INTO runs (id, status, progress) "
        "SELECT 'r' || n, 'running', 5 FROM generate_series(1, 10000) n",
    )
    wait_until(lambda: page.count("running") == 10_000)
    for top in (0, 200_000, 10**9):
        page.tab.locator("#grid").evaluate(f"grid => {{ grid.scrollTop = {top}; }}")
        page.tab.evaluate("() => new Promise(requestAnimationFrame)")
        assert page.tab.locator("*").count() < 600


# Time


@pytest.mark.parametrize("hours", [pytest.param(-1, marks=FAULTS), 1])
def test_a_browser_whose_clock_is_wrong_shows_the_right_times(
    browser: Browser, origin: str, table: str, hours: int
) -> None:
    wrong = f"""{{
      const RealDate = Date, shift = {hours} * 3600e3;
      Date = class extends RealDate {{
        constructor(...given) {{ given.length ? super(...given) : super(RealDate.now() + shift); }}
        static now() {{ return RealDate.now() + shift; }}
      }};
    }}"""
    add(table, "early", ago=3600)
    with live_page(browser, origin, script=wrong) as page:
        page.is_("live")
        expect(page.cell("early", "elapsed")).to_have_text("1h 00m")
        add(table, "late", ago=120)
        expect(page.cell("late", "elapsed")).to_contain_text("2m")


def test_no_time_is_negative(page: LivePage, table: str) -> None:
    add(table, "future", ago=-500)
    expect(page.cell("future", "elapsed")).to_have_text("0s")


def test_a_run_without_changes_is_marked_quiet_and_can_be_filtered(
    browser: Browser, origin: str, table: str
) -> None:
    add(table, "dead", "alive")
    with live_page(browser, origin, "?quiet=2") as page:
        expect(page.cell("dead", "quiet")).to_contain_text("quiet")
        expect(page.cell("alive", "quiet")).to_be_attached()
        execute(table, "UPDATE runs SET progress = 3 WHERE id = 'alive'")
        expect(page.cell("alive", "quiet")).not_to_be_attached()
        page.tab.locator(".chip.quiet").click()
        expect(page.cell("dead", "quiet")).to_be_attached()
        assert "only=quiet" in page.tab.url


# The address


def test_every_filter_and_the_open_run_are_in_the_address(page: LivePage, table: str) -> None:
    add(table, "works", agent="Ann")
    add(table, "fails", status="failed", error="no disk")
    add(table, "ends", status="completed", agent="ann")
    page.tab.locator(".chip.failed").click()
    page.lacks("works")
    page.tab.locator(".chip.completed").click()
    page.tab.locator("#search").fill("ANN")
    page.lacks("fails")
    page.row("ends").click()
    expect(page.tab.locator("#detail h2")).to_have_text("ends")
    assert page.tab.url.endswith("?status=completed,failed&q=ANN&run=ends")
    page.tab.reload()
    expect(page.tab.locator("#detail dd.agent")).to_contain_text("ann")
    page.shows("ends", "completed")
    page.lacks("fails")
    page.lacks("works")
    assert page.tab.locator(".chip[aria-pressed=true]").count() == 2


def test_all_statuses_are_not_the_same_as_no_filter(page: LivePage, table: str) -> None:
    add(table, "one")
    page.press("1", "2", "3", "4")
    expect(page.tab.locator(".chip[aria-pressed=true]")).to_have_count(4)
    page.tab.reload()
    expect(page.tab.locator(".chip[aria-pressed=true]")).to_have_count(4)
    page.press("1", "2", "3", "4")
    expect(page.tab.locator(".chip[aria-pressed=true]")).to_have_count(0)
    assert "status" not in page.tab.url


def test_back_closes_the_details(page: LivePage, table: str) -> None:
    add(table, "one", "two")
    page.row("one").click()
    expect(page.tab.locator("#detail h2")).to_have_text("one")
    page.row("two").click()
    expect(page.tab.locator("#detail h2")).to_have_text("two")
    page.tab.go_back()
    expect(page.tab.locator("#detail")).to_be_hidden()
    page.shows("one", "running")


def test_a_filter_that_was_set_beside_the_details_stays_when_they_close(
    page: LivePage, table: str
) -> None:
    add(table, "one", "two")
    search = page.tab.locator("#search")
    for by_key in (True, False):
        search.fill("one")
        page.row("one").click()
        expect(page.tab.locator("#detail h2")).to_have_text("one")
        search.fill("two")
        page.tab.locator(".chip").nth(1).click()
        page.shows("two", "running")
        if by_key:
            page.press("Escape")
        else:
            page.tab.go_back()
        expect(page.tab.locator("#detail")).to_be_hidden()
        expect(search).to_have_value("two")
        page.shows("two", "running")
        page.lacks("one")
        assert "q=two&status=running" in page.tab.url
        page.tab.locator(".chip").nth(1).click()


# The keyboard


def test_every_action_has_a_key(page: LivePage, table: str) -> None:
    many(table, "r-", 60, 100)
    page.shows("r-060", "running")
    page.press("j", "ArrowDown", "j", "k", "ArrowUp")
    page.has_cursor("r-060")
    page.press("End")
    page.has_cursor("r-001")
    expect(page.row("r-001")).to_be_in_viewport()
    page.press("Home")
    page.has_cursor("r-060")
    page.press("PageDown")
    expect(page.row("r-060")).not_to_have_class(re.compile("current"))
    page.press("PageUp")
    page.has_cursor("r-060")
    page.press("Enter")
    expect(page.tab.locator("#detail h2")).to_have_text("r-060")
    page.press("j")
    expect(page.tab.locator("#detail h2")).to_have_text("r-059")
    page.press("Escape")
    expect(page.tab.locator("#detail")).to_be_hidden()
    page.press("/")
    page.tab.keyboard.type("r-00 jp")
    expect(page.tab.locator("#search")).to_have_value("r-00 jp")
    page.press("Escape")
    expect(page.tab.locator("#search")).to_have_value("")
    page.press("ArrowDown", "?")
    expect(page.tab.locator("#help")).to_be_visible()
    page.press("Escape")
    expect(page.tab.locator("#help")).to_be_hidden()
    page.press("2")
    expect(page.tab.locator(".chip.running")).to_have_attribute("aria-pressed", "true")
    described = page.tab.locator("#grid").get_attribute("aria-activedescendant")
    expect(page.tab.locator(f"#{described}")).to_have_class(re.compile("current"))


def test_a_pause_stops_the_drawing_and_not_the_data(page: LivePage, table: str) -> None:
    add(table, "one")
    page.shows("one", "running")
    page.press("p")
    execute(table, "UPDATE runs SET status = 'completed'")
    add(table, "two")
    expect(page.tab.locator(".pill.paused")).to_have_text("Paused · 2 changes")
    page.shows("one", "running")
    page.lacks("two")
    page.press("p")
    page.shows("one", "completed")
    page.shows("two", "running")


# For everybody


COMBINATIONS = [
    pytest.param(
        (scheme, language, width),
        marks=[] if (scheme == "dark") == (language == "zh-CN") == (width == 1280) else [FAULTS],
    )
    for scheme in ("light", "dark")
    for language in ("en-GB", "zh-CN")
    for width in (1280, 390)
]
"""Each value once in `make test`, all combinations in `make faults`."""


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_axe_finds_nothing(
    browser: Browser, origin: str, table: str, combination: tuple[Any, ...]
) -> None:
    scheme, language, width = combination
    add(table, "works", agent="ann", task_id="t", progress=5)
    add(table, "fails", status="failed", error="no disk")
    add(table, "waits", status="queued")
    add(table, "ends", status="completed")
    size = {"width": width, "height": 700}
    with live_page(
        browser, origin, "?quiet=1", color_scheme=scheme, locale=language, viewport=size
    ) as page:
        expect(page.cell("works", "quiet")).to_be_attached()
        language_shown = "zh-Hans" if language == "zh-CN" else "en"
        expect(page.tab.locator("html")).to_have_attribute("lang", language_shown)
        if width < 1000:  # else the list is beside the details
            accessible(page)
        page.press("j", "Enter")
        expect(page.tab.locator("#detail")).to_be_visible()
        accessible(page)
        page.press("?")
        expect(page.tab.locator("#help")).to_be_visible()
        accessible(page)


def accessible(page: LivePage) -> None:
    found = Axe().run(page.tab)
    assert found.violations_count == 0, found.generate_report()


def test_says_freshness_and_counts_to_a_screen_reader_and_no_rows(
    browser: Browser, origin: str, table: str
) -> None:
    with live_page(browser, origin, clock=True) as page:
        page.is_("live")
        region = page.tab.locator("[aria-live]")
        expect(region).to_have_count(1)
        add(table, "one")
        page.shows("one", "running")
        page.tab.clock.fast_forward(10_000)  # ms, between two sentences
        expect(region).to_have_text("Live. 1 running, 0 queued, 0 failed.")
        expect(page.tab.locator("#grid")).to_have_attribute("aria-rowcount", "2")
        expect(page.row("one")).to_have_attribute("aria-rowindex", "2")


def test_the_language_can_be_chosen(browser: Browser, origin: str) -> None:
    with live_page(browser, origin, "?lang=zh", locale="en-GB") as page:
        page.is_("live")
        expect(page.tab.locator(".sign")).to_have_text("实时")


# Titles, icons, notifications

HIDDEN = """
let isHidden = false;
Object.defineProperty(document, 'hidden', { get: () => isHidden });
globalThis.hide = hidden => {
  isHidden = hidden;
  document.dispatchEvent(new Event('visibilitychange'));
};
globalThis.notified = [];
globalThis.Notification = class {
  static permission = 'default';
  static asked = 0;
  static async requestPermission() { this.asked++; return (this.permission = 'granted'); }
  constructor(title) { notified.push(title); }
};
"""


def test_notifies_of_what_happens_while_the_tab_is_hidden(
    browser: Browser, origin: str, table: str
) -> None:
    add(table, "seen", "fails", "ends", "other")
    add(table, "long-ago", status="failed")
    with live_page(browser, origin, script=HIDDEN) as page:
        page.shows("ends", "running")
        assert page.tab.evaluate("Notification.asked") == 0, "only when it is wanted"
        page.tab.locator("#bar .icon").click()
        page.row("ends").click()
        page.tab.get_by_role("button", name="Notify me when it ends").click()
        execute(table, "UPDATE runs SET status = 'failed' WHERE id = 'seen'")
        page.shows("seen", "failed")
        page.tab.evaluate("hide(true)")
        execute(table, "UPDATE runs SET status = 'failed' WHERE id = 'fails'")
        execute(table, "UPDATE runs SET status = 'completed' WHERE id IN ('ends', 'other')")
        page.shows("other", "completed")
        assert page.tab.evaluate("notified") == ["fails failed", "ends is completed"]
        icon, red = page.tab.locator("#icon"), re.compile("c62f24")
        expect(icon).to_have_attribute("href", red)  # failed since it was looked at
        page.tab.evaluate("hide(false)")
        expect(icon).not_to_have_attribute("href", red)
        # An end that has come is none to wait for.
        expect(page.tab.get_by_role("button", name="Copy as JSON")).to_be_attached()
        expect(page.tab.get_by_role("button", name="Notify me when it ends")).not_to_be_attached()


# Tokens


def test_asks_for_a_token_and_says_why_one_is_not_accepted(browser: Browser, table: str) -> None:
    add(table, "mine", agent="ann")
    add(table, "theirs", agent="bob")
    with served(database_url=table, jwt_secret=SECRET) as guarded:
        origin = f"http://localhost:{guarded.port}"
        with live_page(browser, origin) as page:
            field = page.tab.get_by_label("Token")
            expect(field).to_be_visible()
            expect(page.tab.locator(".reason")).to_have_text("")  # nothing was wrong yet
            expect(field).to_be_focused()
            expect(page.tab.locator(".chip.running b")).to_have_text("\u2013")  # nobody knows
            expect(page.tab).to_have_title("⚠ Brain")
            field.fill("nonsense")
            field.press("Enter")
            expect(page.tab.locator(".reason")).to_have_text("the token is not valid")
            field.fill(token(scope="write"))
            field.press("Enter")
            expect(page.tab.locator(".box")).to_contain_text("'read'")
            page.tab.evaluate("sessionStorage.clear()")
            page.tab.reload()
            field.fill(token(agent="ann"))
            field.press("Enter")
            page.is_("live")
            page.shows("mine", "running")
            page.lacks("theirs")
            page.tab.reload()
            page.is_("live")


def test_works_where_the_browser_keeps_nothing(browser: Browser, origin: str, table: str) -> None:
    forbidden = """
    for (const kind of ['localStorage', 'sessionStorage'])
      Object.defineProperty(globalThis, kind, { get() { throw new Error('forbidden'); } });
    """
    add(table, "one")
    with live_page(browser, origin, script=forbidden) as page:
        page.is_("live")
        page.shows("one", "running")
        assert page.errors == []
