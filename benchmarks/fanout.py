"""Fan-out: the most deliveries per second, and the server's CPU for each.

`python -m benchmarks.fanout [--quick] [--compare REV]`.

The server has one core to itself; PostgreSQL, the writer and the clients share the other. A burst
is one UPDATE of many rows, to 1 000 clients. The capacity is that of a burst that takes two seconds
or longer.
"""

from functools import partial

from benchmarks.peers import PEERS
from benchmarks.suite import BEFORE, SERVERS, Suite, arguments
from benchmarks.trial import Place, Trial

BURST = "1 000 clients, a burst of 1 000"
CAPACITY = "most deliveries/s, in bursts"
MIN_SECONDS = 2.0
"""A shorter burst does not count as a capacity."""
LARGEST = 20_000
BURSTS = 5
"""Bursts of which the median counts, unless one alone takes a second: they differ by a fifth."""
LEAST_TO_BEFORE = 0.9
"""A burst is one rotation over the groups. To a Brain that sent it to all clients in one sweep, as
commit c5a4772: `--compare c5a4772`, in a minute and a half."""
AT_LEAST = (("socketify", 3.0), ("centrifugo", 30.0), ("node_ws", 80.0), ("fastapi", 80.0))


def burst(place: Place, count: int) -> Trial:
    found = [place.trial(count, 0)]
    while found[0].seconds < 1.0 and len(found) < BURSTS:
        found.append(place.trial(count, 0))
    return sorted(found, key=lambda trial: trial.per_second)[len(found) // 2]


def capacity(place: Place, least: int, largest: int) -> Trial:
    """Send a burst, ten times as large each time, until one takes long enough."""
    count = least
    while True:
        trial = place.trial(count, 0)
        if trial.seconds >= MIN_SECONDS or count >= largest or trial.behind:
            return trial
        count = min(largest, count * 10)


def main() -> None:
    options = arguments(__doc__)
    clients, count, largest = (200, 100, 1_000) if options.quick else (1_000, 1_000, LARGEST)
    job = f"{clients} clients, a burst of {count}" if options.quick else BURST
    with Suite("fanout", options) as suite:
        for name in suite.in_turn(*SERVERS, "floor"):
            with suite.place(name, clients=clients) as place:
                if place is None:
                    continue
                suite.measure(place, job, partial(burst, place, count))
                one = suite.results.get(job, {}).get(name, [{}])[-1]
                if one.get("seconds", 0.0) >= MIN_SECONDS or one.get("behind"):
                    suite.results.setdefault(CAPACITY, {}).setdefault(name, []).append(one)
                else:
                    suite.measure(place, CAPACITY, partial(capacity, place, count * 10, largest))
        columns = {
            "deliveries/s": "per_second",
            "CPU µs each": "cpu_us",
            "p50 ms": "p50",
            "p99 ms": "p99",
            "lost": "lost",
            "behind": "behind",
        }
        suite.finish(
            columns, ratios={"per_second": "more", "cpu_us": "less"}, targets=targets(suite)
        )


def targets(suite: Suite) -> list[tuple[str, float, dict[str, float]]]:
    """The figures to reach; beside another version of Brain, that of one burst."""
    if suite.compare:
        ratio = suite.ratio(BURST, "per_second", BEFORE)
        what = f"deliveries/s, {BURST}, to those of Brain of {suite.compare}"
        return [(what, ratio, {"least": LEAST_TO_BEFORE})]
    return [
        (
            f"most deliveries/s, to those of {PEERS[name].title}",
            suite.ratio(CAPACITY, "per_second", name),
            {"least": least},
        )
        for name, least in AT_LEAST
    ]


if __name__ == "__main__":
    main()
