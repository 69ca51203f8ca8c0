"""Soak: does anything grow while 200 000 connections come and go in a storm of changes?

`python -m benchmarks.soak [--quick]`.

Rounds of 1 000 connections: silent ones, half a request, a client, a client with `snapshot`, a
client that sends a close frame. They end by FIN and by RST in turn. 50 clients stay and read in
some rounds only, so they lag and catch up; 20 more stay and read. All the time, one in ten of 500
runs is updated, 40 times per second. After each round, when its connections have ended, Brain is
measured: resident memory, descriptors, threads, connections. (Its tasks are not visible from
outside: the tests of the server count them.) Each connection has an address of its own, so the
limiter's memory of addresses (4 096 at most) is soon full. After 100 000 connections Brain counts
as warm: until then the heap finds its size. From then on everything has to be flat, for 100 000
more. Medians of ten rounds are compared, because an allocator's use varies from round to round.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import machine
from tests.support import crowd
from tests.support.crowd import Crowd
from tests.support.served import Brain
from tests.support.wire import PONG, closing, descriptors, frame, memory, request

ROUND = 1_000
WARM = 100
"""Number of rounds before which nothing is compared."""
WINDOW = 10

ASKS = (
    b"",
    request()[:60],
    request(),
    request("/ws?snapshot=true&status=failed"),
    request() + closing(1000),
)
PLOT = Path(__file__).parents[1] / "docs" / "explanation" / "soak.svg"


@contextmanager
def storm(url: str) -> Iterator[dict[str, int]]:
    """Change runs until the end of the block. The dictionary holds the number of changes."""
    stop, count = threading.Event(), {"changes": 0}

    def work() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not stop.wait(0.025):
                count["changes"] += conn.execute(
                    "UPDATE runs SET progress = random() * 100, error = repeat('e', 200)"
                    " WHERE random() < 0.1"
                ).rowcount

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def round_(brain: Brain, number: int) -> None:
    """A thousand connections come and go."""
    each = ROUND // len(ASKS)
    for ask in ASKS:
        half = ask == ASKS[1]
        with Crowd(brain.port, b"" if half else ask) as crowd:
            crowd.connect(each, window=each)
            if half:
                crowd.send(ask)
            assert not crowd.refused, crowd.refused[0]
            crowd.close(reset=bool(number % 2))


def gone(brain: Brain, stay: int) -> float:
    """Wait until only `stay` clients are connected. Returns how many there are."""
    until = time.monotonic() + 10
    while (left := brain.metric("brain_connections") - 1) > stay and time.monotonic() < until:
        time.sleep(0.01)  # between two looks
    return left


def soak(brain: Brain, url: str, rounds: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    samples: list[dict[str, float]] = []
    with (
        storm(url) as count,
        Crowd.clients(brain.port, 20) as reading,
        Crowd.clients(brain.port, 50, rcvbuf=4096) as lagging,
    ):
        began, stay = time.monotonic(), 70
        for number in range(rounds):
            round_(brain, number)
            for stays in (reading, lagging):
                stays.send(frame(b"", PONG))
            reading.pump(0.02)
            if number % 3 == 0:
                lagging.pump(0.1)
            for member in (*reading.members, *lagging.members):
                member.data = b""
            left = gone(brain, stay)
            samples.append(
                {
                    "connections": (number + 1) * ROUND,
                    "seconds": round(time.monotonic() - began, 2),
                    "rss_mb": round(memory(brain.process.pid) / 2**20, 3),
                    "descriptors": descriptors(brain),
                    "threads": threads(brain),
                    "left": left - stay,
                    "lagging": brain.metric("brain_clients_lagging"),
                }
            )
            if number % 10 == 9:
                print(samples[-1], flush=True)
        assert len(reading.present) == 20, "a client that stays was closed"
        totals = {
            "changes": count["changes"],
            "deliveries": brain.metric("brain_deliveries_total"),
            "lags": brain.metric("brain_lags_total"),
            "failures": brain.metric("brain_client_failures_total"),
            "seconds": round(time.monotonic() - began, 1),
        }
    return samples, totals


def threads(brain: Brain) -> int:
    return len(list(Path(f"/proc/{brain.process.pid}/task").iterdir()))


def growth(samples: list[dict[str, float]], field: str, warm: int) -> tuple[float, float]:
    """The median of the first warm rounds, and that of the last rounds."""
    first = statistics.median(each[field] for each in samples[warm : warm + WINDOW])
    return first, statistics.median(each[field] for each in samples[-WINDOW:])


def plot(samples: list[dict[str, float]], path: Path, warm: int) -> None:
    """Memory over connections, as SVG."""
    width, height, left, low = 720, 260, 60, 220
    most = max(each["rss_mb"] for each in samples) * 1.2
    last = samples[-1]["connections"]

    def x(connections: float) -> float:
        return round(left + (width - left - 20) * connections / last, 1)

    def y(mb: float) -> float:
        return round(low - (low - 30) * mb / most, 1)

    line = " ".join(f"{x(each['connections'])},{y(each['rss_mb'])}" for each in samples)
    text = 'font-family="sans-serif" font-size="12" fill="#555"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Resident memory of Brain while connections come and go</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        (
            f'<text x="{left}" y="18" {text}>'
            "Resident memory of Brain (MB) over connections that came and went</text>"
        ),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        mb, count = most * share / 1.2, last * share
        parts += [
            f'<line x1="{left}" x2="{width - 20}" y1="{y(mb)}" y2="{y(mb)}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y(mb) + 4}" text-anchor="end" {text}>{mb:.0f}</text>',
            f'<text x="{x(count)}" y="{low + 18}" text-anchor="middle" {text}>{count:,.0f}</text>',
        ]
    warm_at = x(warm * ROUND)
    parts += [
        (
            f'<line x1="{warm_at}" x2="{warm_at}" y1="30" y2="{low}" stroke="#bbb" '
            'stroke-dasharray="4 4"/>'
        ),
        f'<text x="{warm_at + 4}" y="{low - 6}" {text}>warm</text>',
        f'<polyline points="{line}" fill="none" stroke="#0a6" stroke-width="2"/>',
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n")


def main() -> None:
    options = machine.options(__doc__)
    rounds, warm = (6, 2) if options.quick else (200, WARM)
    crowd.PER_ADDRESS = 1
    with machine.database() as url:
        machine.statements(
            url,
            "INSERT INTO runs (id, status, progress)"
            " SELECT i, 'running', 0 FROM generate_series(1, 500) i",
        )
        with machine.brain(url) as brain:
            samples, totals = soak(brain, url, rounds)
    compared: dict[str, Any] = {}
    for field in ("rss_mb", "descriptors", "threads"):
        before, after = growth(samples, field, warm)
        compared[field] = {"warm": before, "end": after, "growth": round(after / before - 1, 4)}
    targets = [
        machine.target(
            "growth of memory, of the warm baseline", compared["rss_mb"]["growth"], most=0.02
        ),
        machine.target(
            "growth of descriptors",
            compared["descriptors"]["end"] - compared["descriptors"]["warm"],
            most=0,
        ),
        machine.target(
            "growth of threads", compared["threads"]["end"] - compared["threads"]["warm"], most=0
        ),
        machine.target("connections left behind", samples[-1]["left"], most=0),
        machine.target("clients that failed", totals["failures"], most=0),
    ]
    document = {"totals": totals, "compared": compared, "targets": targets, "samples": samples}
    machine.write("soak", document, quick=options.quick)
    if not options.quick:
        plot(samples, PLOT, warm)


if __name__ == "__main__":
    main()
