"""The programs of `make bench`, in their order, with the minutes that each takes."""

from dataclasses import dataclass

LIMIT_MINUTES = 30.0


@dataclass(frozen=True)
class Step:
    name: str
    """A module of this package, and its result."""
    minutes: float
    """On two cores. What an earlier run on this machine took counts more."""


PLAN = (
    Step("latency", 9.0),
    Step("fanout", 4.0),
    Step("turns", 1.5),
    Step("intervals", 1.2),
    Step("writers", 4.0),
    Step("ingest", 1.2),
    Step("connections", 2.0),
    Step("churn", 1.0),
    Step("restart", 0.8),
    Step("first_look", 0.5),
    Step("growth", 0.8),
    Step("polling", 0.8),
    Step("stalled", 0.6),
    Step("silent", 0.9),
    Step("pauses", 0.4),
    Step("freshness", 0.8),
    Step("page", 0.8),
    Step("handshake", 0.3),
)
