"""What a client of `/ws` asks for: a filter, and where to start."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from brain.contract.messages import AGENT, STATUS, STATUSES, TASK_ID, Micros, Run, parse_time

FIELDS = ("run_id", "task_id", "agent", "status")
"""The fields of a filter, the most selective first."""

_INDEXES = {"agent": AGENT, "task_id": TASK_ID}

MAX_VALUES = 100
"""Values of all fields of a filter together."""

MAX_CHARACTERS = 1024
"""Characters of one value."""

Facet: TypeAlias = tuple[str, str | None, str | None]
"""What filters test besides the id: status, agent, task_id."""

ANY = "\0"
"""An unknown agent or task_id, which matches every filter. No text in PostgreSQL contains NUL."""


def facet(run: Run) -> Facet:
    return (run[STATUS], run[AGENT], run[TASK_ID])


class FilterError(ValueError):
    """The query of `/ws` is not valid. The message names the parameter, the value and the rule."""


@dataclass(frozen=True, slots=True)
class Filter:
    """OR within a field, AND between fields. An empty field matches every run."""

    run_id: frozenset[str] = frozenset()
    task_id: frozenset[str] = frozenset()
    agent: frozenset[str] = frozenset()
    status: frozenset[str] = frozenset()
    bounds: frozenset[tuple[str, frozenset[str]]] = frozenset()
    """What a token permits: pairs of a field (agent or task_id) and its values.

    Bounds test only what a run *is*. That a run was in bounds is no reason to show what it is now,
    and an unknown past must not grant access.
    """

    def permits(self, run: Run) -> bool:
        return all(run[_INDEXES[name]] in values for name, values in self.bounds)

    def matches(self, run_id: str, facets: Collection[Facet]) -> bool:
        """Whether a run that is or was any of `facets` passes the filter."""
        if self.run_id and run_id not in self.run_id:
            return False
        return any(
            (not self.status or status in self.status)
            and (not self.agent or agent in self.agent or agent == ANY)
            and (not self.task_id or task_id in self.task_id or task_id == ANY)
            for status, agent, task_id in facets
        )


ALL = Filter()


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a client of `/ws` asks for. `snapshot` and `since` exclude each other."""

    filter: Filter = ALL
    snapshot: bool = False
    """First send the current state of every unfinished run."""
    since: Micros | None = None
    """First send the current state of every run that changed at or after this time."""


def parse_subscription(query: Collection[tuple[str, str]]) -> Subscription:
    """Parse the decoded query parameters of `/ws`. Raises FilterError."""
    fields: dict[str, set[str]] = {name: set() for name in FIELDS}
    once: dict[str, str] = {}
    for name, value in query:
        if name in fields:
            if not value or len(value) > MAX_CHARACTERS:
                raise FilterError(
                    f"{name} takes a text of 1 to {MAX_CHARACTERS} characters, not {value[:40]!r}"
                )
            fields[name].add(value)
        elif name in ("snapshot", "since"):
            if name in once:
                raise FilterError(f"{name} may be given once")
            once[name] = value
        else:
            known = ", ".join((*FIELDS, "snapshot", "since"))
            raise FilterError(f"unknown parameter {name[:40]!r}: /ws knows {known}")
    if sum(map(len, fields.values())) > MAX_VALUES:
        raise FilterError(
            f"a filter takes at most {MAX_VALUES} values: leave it out and filter in the client"
        )
    if unknown := fields["status"] - set(STATUSES):
        raise FilterError(f"status is one of {', '.join(STATUSES)}, not {min(unknown)[:40]!r}")
    if once.get("snapshot", "true") not in ("true", "false"):
        raise FilterError(f"snapshot is true or false, not {once['snapshot'][:40]!r}")
    snapshot = once.get("snapshot") == "true"
    if snapshot and "since" in once:
        raise FilterError(
            "snapshot and since exclude each other: since already sends what has changed"
        )
    try:
        since = parse_time(once["since"]) if "since" in once else None
    except ValueError as error:
        raise FilterError(f"since: {error}; in a URL, write + as %2B") from None
    run_ids, task_ids, agents, statuses = (frozenset(fields[name]) for name in FIELDS)
    return Subscription(Filter(run_ids, task_ids, agents, statuses), snapshot, since)
