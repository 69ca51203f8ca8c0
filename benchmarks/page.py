"""Page: what the live page costs a browser, with 10 000 running runs and 1 000 changes a second.

`python -m benchmarks.page [--quick] [--minutes 0.5] [--runs 10000] [--rate 1000]`.

Chromium, half a minute long: the time from an UPDATE to the document, the times between frames, the
CPU of the page's main thread, the elements of the document, and the growth of its heap, which
`--minutes 10` shows to be flat. A change is seen when the row's text changes: a visible run carries
the time of its UPDATE as its agent. Before that, the first paint, of five loads with an empty
cache, and the size of all files of the page, compressed. All share all cores.
"""

import argparse
import json
import statistics
import threading
import time
from typing import Any

import psycopg
from playwright.sync_api import Browser

from benchmarks import machine
from brain.page.assets import Asset, load
from tests.support.browser import BROWSER, chromium, live_page
from tests.support.postgres import running
from tests.support.served import served
from tests.support.template import ROLE, TEMPLATE, with_template

PROBE = "zz-probe"
EVERY = 0.2
"""Seconds between two changes of the run that is looked at."""

LOADS = 5
"""Of which the first paint is the median."""

MOST = {
    "first_paint_ms": 300.0,
    "assets_kb": 60.0,
    "update_to_document_p95_ms": 150.0,
    "frame_p99_ms": 34.0,
    "cpu_ms_per_second": 250.0,
    "elements": 600.0,
    "heap_growth_mb": 3.0,
}

MEASURE = """
globalThis.frames = [];
globalThis.delays = [];
const watchFrames = last => requestAnimationFrame(now => {
  frames.push(now - last);
  watchFrames(now);
});
globalThis.begin = () => {
  frames.length = delays.length = 0;
  requestAnimationFrame(watchFrames);
  const row = document.querySelector('[data-run="zz-probe"] .agent');
  new MutationObserver(() => delays.push(Date.now() - Number(row.textContent)))
    .observe(row, { characterData: true, childList: true, subtree: true });
};
"""


def write(url: str, runs: int, rate: int, end: threading.Event) -> None:
    """In slices of 10 ms, so that changes come evenly."""
    share = max(1, rate // 100)
    with psycopg.connect(url, autocommit=True) as connection:
        due, number, probed = time.monotonic(), 0, 0.0
        while not end.is_set():
            ids = [f"run-{(number + i) * 7919 % runs}" for i in range(share)]
            number += share
            connection.execute(
                "UPDATE runs SET progress = (coalesce(progress, 0) + 1)::int %% 100 "
                "WHERE id = ANY(%s)",
                [ids],
            )
            if time.monotonic() - probed > EVERY:
                probed = time.monotonic()
                stamp = str(int(time.time() * 1000))
                connection.execute("UPDATE runs SET agent = %s WHERE id = %s", [stamp, PROBE])
            due += share / rate
            time.sleep(max(0.0, due - time.monotonic()))  # the rate


def first_paint(browser: Browser, origin: str) -> float:
    """Ms from the request of the page to its first content, on loopback."""
    with live_page(browser, origin) as page:
        page.is_("live")
        found: float = page.tab.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        return found


def asset_kilobytes() -> float:
    return sum(len(Asset.of(name, body).zipped) for name, body in load().items()) / 1024


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a smoke test: little, for seconds")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.runs, options.rate = 0.05, 500, 100
    if BROWSER is None:
        reason = "neither chromium nor google-chrome is installed"
        print(f"skipped: {reason}")
        nothing: dict[str, Any] = {"jobs": {}, "targets": [], "skipped": {"Chromium": reason}}
        machine.write("page", nothing, quick=options.quick)
        return
    with running() as empty:
        server = with_template(empty)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO runs (id, status, progress, started_at) "
                "SELECT 'run-' || n, 'running', 0, now() FROM generate_series(0, %s) n",
                [options.runs - 1],
            )
            connection.execute(
                "INSERT INTO runs (id, status, agent, started_at) "
                "VALUES (%s, 'running', '0', now() + interval '1 s')",
                [PROBE],
            )
        with served(database_url=url) as brain, chromium() as browser:
            origin = f"http://localhost:{brain.port}"
            paints = [first_paint(browser, origin) for _ in range(LOADS)]
            with live_page(browser, origin, script=MEASURE) as page:
                page.is_("live")
                page.shows(PROBE, "running")
                end = threading.Event()
                writer = threading.Thread(
                    target=write, args=(url, options.runs, options.rate, end), daemon=True
                )
                writer.start()
                time.sleep(2)  # the writer has reached its rate
                session = page.tab.context.new_cdp_session(page.tab)
                session.send("Performance.enable")

                def metrics() -> dict[str, float]:
                    session.send("HeapProfiler.collectGarbage")
                    answer = session.send("Performance.getMetrics")
                    return {each["name"]: each["value"] for each in answer["metrics"]}

                page.tab.evaluate("begin()")
                before, began = metrics(), time.monotonic()
                time.sleep(60 * options.minutes)  # measured: frames, delays and memory
                frames = page.tab.evaluate("frames.slice(1)")
                delays = page.tab.evaluate("delays.slice(1)")
                after, took = metrics(), time.monotonic() - began
                end.set()
                writer.join()
                elements = page.tab.locator("*").count()
    busy = (after["TaskDuration"] - before["TaskDuration"]) / took * 1000
    figures = {
        "first_paint_ms": statistics.median(paints),
        "assets_kb": asset_kilobytes(),
        "update_to_document_p50_ms": statistics.median(delays),
        "update_to_document_p95_ms": percentile(delays, 0.95),
        "frame_p50_ms": statistics.median(frames),
        "frame_p99_ms": percentile(frames, 0.99),
        "cpu_ms_per_second": busy,
        "elements": float(elements),
        "heap_growth_mb": (after["JSHeapUsedSize"] - before["JSHeapUsedSize"]) / 1e6,
    }
    print(json.dumps(figures, indent=2))
    job = f"{options.runs} runs, {options.rate} changes/s, {options.minutes:g} min"
    document = {
        "jobs": {job: {"runs": [figures], "figures": machine.spreads([figures])}},
        "targets": [
            machine.target(field.replace("_", " "), figures[field], most=most)
            for field, most in MOST.items()
        ],
    }
    machine.write("page", document, quick=options.quick)


if __name__ == "__main__":
    main()
