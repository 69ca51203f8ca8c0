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
    Step("latency", 8.8),
    Step("fanout", 3.0),
    Step("turns", 0.9),
    Step("intervals", 0.9),
    Step("writers", 3.5),
    Step("ingest", 1.1),
    Step("connections", 2.6),
    Step("churn", 0.9),
    Step("restart", 1.3),
    Step("first_look", 0.4),
    Step("growth", 0.6),
    Step("polling", 0.9),
    Step("stalled", 0.6),
    Step("silent", 0.8),
    Step("huge", 0.4),
    Step("pauses", 0.5),
    Step("freshness", 1.5),
    Step("page", 0.7),
    Step("handshake", 0.3),
)

ALONE = ("nodes",)
"""Programs with results in the report for which those minutes have no room."""
