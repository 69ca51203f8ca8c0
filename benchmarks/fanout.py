"""Fan-out: deliveries per second, the server's CPU for each, and whether any was lost.

`python -m benchmarks.fanout [--quick]`.

The server has one core to itself; PostgreSQL, the writer and the clients share the other. A server
that has not delivered everything four seconds after the last change has fallen behind. It is
measured up to that moment.
"""

from dataclasses import dataclass
from functools import partial

from benchmarks.peers import PEERS
from benchmarks.suite import SERVERS, Suite, arguments
from benchmarks.trial import Place, Trial


@dataclass(frozen=True)
class Job:
    name: str
    clients: int
    count: int
    rate: float
    """Changes per second; 0: all in one transaction."""


JOBS = (
    Job("1 000 clients, a burst of 1 000", 1_000, 1_000, 0),
    Job("1 000 clients × 100/s", 1_000, 1_000, 100),
    Job("5 000 clients × 1 000/s", 5_000, 10_000, 1_000),
    Job("10 000 clients × 500/s", 10_000, 5_000, 500),
)
QUICK = (Job("200 clients × 100/s", 200, 100, 100),)

CAPACITY = "most deliveries/s, in bursts"
MIN_SECONDS = 2.0
"""Seconds: a shorter burst does not count as a capacity."""


def capacity(place: Place, largest: int) -> Trial:
    """Send a burst, ten times as large each time, until one takes long enough."""
    count = 100
    while True:
        trial = place.trial(count, 0)
        if trial.seconds >= MIN_SECONDS or count >= largest or trial.behind:
            return trial
        count = min(largest, count * 10)


def main() -> None:
    options = arguments(__doc__)
    jobs = QUICK if options.quick else JOBS
    with Suite("fanout", options) as suite:
        for name in suite.in_turn(*SERVERS, "floor"):
            for clients in dict.fromkeys(job.clients for job in jobs):
                with suite.place(name, clients=clients) as place:
                    if place is None:
                        continue
                    for job in (job for job in jobs if job.clients == clients):
                        suite.measure(place, job.name, partial(place.trial, job.count, job.rate))
                    if clients == jobs[0].clients:
                        suite.measure(
                            place,
                            CAPACITY,
                            partial(capacity, place, 1_000 if options.quick else 20_000),
                        )
        columns = {
            "changes/s": "changes_per_second",
            "deliveries/s": "per_second",
            "CPU µs each": "cpu_us",
            "lost": "lost",
            "behind": "behind",
        }
        suite.finish(
            columns, ratios={"per_second": "more", "cpu_us": "less"}, targets=targets(suite)
        )


def targets(suite: Suite) -> list[tuple[str, float, dict[str, float]]]:
    """The figures to reach."""
    steady, heavy = JOBS[1].name, JOBS[2].name
    best, floor = (
        suite.median(CAPACITY, "brain", "per_second"),
        suite.median(steady, "floor", "cpu_us"),
    )
    flushed = suite.median(steady, "brain", "cpu_us")
    at_once = suite.median(steady, "brain_at_once", "cpu_us")
    found = [
        (f"CPU µs per delivery, {heavy}", suite.median(heavy, "brain", "cpu_us"), {"most": 0.35}),
        (f"lost, {heavy}", suite.median(heavy, "brain", "lost"), {"most": 0.0}),
        (f"CPU to the floor's, {steady}, flush interval 0", at_once / floor, {"most": 1.25}),
        (f"CPU to the floor's, {steady}", flushed / floor, {"most": 0.5}),
    ]
    for name, least in (("node_ws", 20.0), ("centrifugo", 10.0), ("fastapi", 80.0)):
        other = suite.median(CAPACITY, name, "per_second")
        found.append(
            (f"most deliveries/s, to those of {PEERS[name].title}", best / other, {"least": least})
        )
    return found


if __name__ == "__main__":
    main()
