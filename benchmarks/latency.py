"""Latency: from before an UPDATE is sent to PostgreSQL until its message is at a client.

`python -m benchmarks.latency [--quick]`.

Real commits (the results name the server's fsync settings) and real clients. Up to 16 of the
clients, spread over all, record the time of every change.
"""

from functools import partial

from benchmarks.fanout import Job
from benchmarks.suite import SERVERS, Suite, arguments

JOBS = (
    Job("1 idle client", 1, 200, 20),
    Job("1 000 clients × 100/s", 1_000, 1_000, 100),
    Job("5 000 clients × 200/s", 5_000, 2_000, 200),
)
QUICK = (Job("1 idle client", 1, 30, 20), Job("200 clients × 100/s", 200, 100, 100))


def main() -> None:
    options = arguments(__doc__)
    with Suite("latency", options) as suite:
        for name in suite.in_turn(*SERVERS):
            for job in QUICK if options.quick else JOBS:
                with suite.place(name, clients=job.clients) as place:
                    if place is not None:
                        suite.measure(place, job.name, partial(place.trial, job.count, job.rate))
        idle, steady, heavy = (job.name for job in JOBS)
        suite.finish(
            {
                "p50 ms": "p50",
                "p99 ms": "p99",
                "max ms": "max",
                "commit ms": "commit_ms",
                "behind": "behind",
            },
            ratios={"p50": "less", "p99": "less"},
            targets=[
                (f"p50 ms, {idle}", suite.median(idle, "brain", "p50"), {"most": 2.0}),
                (f"p99 ms, {steady}", suite.median(steady, "brain", "p99"), {"most": 40.0}),
                (f"p99 ms, {heavy}", suite.median(heavy, "brain", "p99"), {"most": 80.0}),
            ],
        )


if __name__ == "__main__":
    main()
