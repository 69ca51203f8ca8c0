"""Latency: from before an UPDATE is sent to PostgreSQL until its message is at a client.

`python -m benchmarks.latency [--quick] [--compare REV]`.

Changes at a rate, each a commit of its own. Up to 16 of the clients, spread over all, record the
time of every change. A server that has not delivered everything four seconds after the last change
has fallen behind: it is measured up to that moment, and not asked again for that load, nor for one
of more deliveries a second. The loads are in this order. The C floor, which has no database, says
what the kernel's part of the CPU is.
"""

from benchmarks.peers import PEERS
from benchmarks.suite import SERVERS, Job, Suite, arguments

JOBS = (
    Job("1 idle client", 1, 80, 20),
    Job("200 clients × 100/s", 200, 400, 100),
    Job("1 000 clients × 100/s", 1_000, 400, 100),
    Job("5 000 clients × 200/s", 5_000, 1_000, 200),
    Job("5 000 clients × 1 000/s", 5_000, 5_000, 1_000),
    Job("10 000 clients × 500/s", 10_000, 2_500, 500),
)
QUICK = (Job("1 idle client", 1, 30, 20), Job("200 clients × 100/s", 200, 100, 100))
ONE, FEW, STEADY, HEAVY, HEAVIEST, MOST = (job.name for job in JOBS)
FLOOR = STEADY
"""The one load of the floor."""

RIVAL = "socketify"
MAX_RATIO = {ONE: 1.25, FEW: 1.0, STEADY: 1.0}
"""To the rival, p50 and p99."""
MAX_P99 = {HEAVY: 70.0, HEAVIEST: 110.0, MOST: 180.0}
MAX_CPU_US = 0.2


def main() -> None:
    options = arguments(__doc__)
    with Suite("latency", options) as suite:
        for name in suite.in_turn(*SERVERS, "floor"):
            jobs = [
                job
                for job in (QUICK if options.quick else JOBS)
                if name != "floor" or job.name == FLOOR
            ]
            for clients in dict.fromkeys(job.clients for job in jobs):
                here = [job for job in jobs if job.clients == clients]
                if all(suite.hopeless(name, job) for job in here):
                    continue
                with suite.place(name, clients=clients) as place:
                    for job in here if place else ():
                        if place and not suite.hopeless(name, job):
                            suite.sustain(place, job)
        suite.finish(
            {
                "p50 ms": "p50",
                "p99 ms": "p99",
                "max ms": "max",
                "commit ms": "commit_ms",
                "deliveries/s": "per_second",
                "CPU µs each": "cpu_us",
                "lost": "lost",
                "behind": "behind",
            },
            ratios={"p50": "less", "p99": "less", "cpu_us": "less"},
            targets=() if suite.compare else targets(suite),
        )


def targets(suite: Suite) -> list[tuple[str, float, dict[str, float]]]:
    """The figures to reach."""
    rival = PEERS[RIVAL].title
    found: list[tuple[str, float, dict[str, float]]] = [
        (f"{field} to that of {rival}, {job}", suite.ratio(job, field, RIVAL), {"most": most})
        for job, most in MAX_RATIO.items()
        for field in ("p50", "p99")
    ]
    for job, most in MAX_P99.items():
        found.append((f"p99 ms, {job}", suite.median(job, "brain", "p99"), {"most": most}))
        ratio = suite.ratio(job, "p99", RIVAL)
        found.append((f"p99 to that of {rival}, {job}", ratio, {"most": 1.0}))
    for job in (HEAVIEST, MOST):
        lost, behind = (suite.median(job, "brain", field) for field in ("lost", "behind"))
        found += [
            (f"lost or behind, {job}", lost + behind, {"most": 0.0}),
            (f"CPU µs each, {job}", suite.median(job, "brain", "cpu_us"), {"most": MAX_CPU_US}),
        ]
    return found


if __name__ == "__main__":
    main()
