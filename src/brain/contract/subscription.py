"""What a client of `/ws` asks for: a filter, and where to start.

`GET /api/runs` takes the same filters.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from brain.contract.include import INCLUDE, NOTHING, Include, Included
from brain.contract.messages import (
    AGENT,
    MAX_ID_BYTES,
    STATUS,
    STATUSES,
    TASK_ID,
    Micros,
    Run,
    parse_time,
    shown,
    storable,
)

FIELDS = ("run_id", "task_id", "agent", "status")
"""The fields of a filter, the most selective first."""

BOUNDS: Final = {"agent": AGENT, "task_id": TASK_ID}
"""The fields by which a token can be limited to some runs, and their places in a run."""

MAX_VALUES = 100
"""Values of all fields of a filter together."""
MAX_CHARACTERS = 1024
"""Of a task_id or an agent. A run_id has at most MAX_ID_BYTES."""

Form: TypeAlias = Callable[[str, Collection[str]], "frozenset[str] | None"]
"""A field and its values → the texts by which the field's column prints them: `7` for `007` where
it holds integers. None: the column's type is not known yet.

A value that the column cannot hold stays as it is, so it equals that of no row.
"""


def as_given(_field: str, values: Collection[str]) -> frozenset[str]:
    """The Form of columns of text."""
    return frozenset(values)


Facet: TypeAlias = tuple[str, str | None, str | None]
"""What filters test besides the id: status, agent, task_id."""

ANY = "\0"
"""An unknown agent or task_id, which matches every filter. No text in PostgreSQL contains NUL."""


def facet(run: Run) -> Facet:
    return (run[STATUS], run[AGENT], run[TASK_ID])


class FilterError(ValueError):
    """The query is not valid. The message names the parameter, the value and the rule."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


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

    def printed(self, form: Form) -> "Filter | None":
        """The filter in the texts that the columns print. None: they are not known yet."""
        if not (self.run_id or self.task_id or self.agent):
            return self
        run_id, task_id = form("run_id", self.run_id), form("task_id", self.task_id)
        agent = form("agent", self.agent)
        if run_id is None or task_id is None or agent is None:
            return None
        return replace(self, run_id=run_id, task_id=task_id, agent=agent)

    def permits(self, run: Run) -> bool:
        return all(run[BOUNDS[name]] in values for name, values in self.bounds)

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
    include: Included = NOTHING
    """What it receives beyond the contract."""


def parse_filter(
    query: Collection[tuple[str, str]], others: Collection[str], path: str
) -> tuple[Filter, Mapping[str, str]]:
    """Parse a decoded query into its filter and its `others`, which may each be given once.

    `path` is named in errors. Raises FilterError.
    """
    fields: dict[str, set[str]] = {name: set() for name in FIELDS}
    once: dict[str, str] = {}
    for name, value in query:
        if name in fields:
            fields[name].add(_checked(name, value))
        elif name in once:
            raise FilterError(name, f"{name} may be given once, and {shown(value)} is another")
        elif name in others:
            once[name] = value
        else:
            known = ", ".join((*FIELDS, *others))
            raise FilterError(name, f"unknown parameter {shown(name)}: {path} knows {known}")
    if sum(map(len, fields.values())) > MAX_VALUES:
        largest = max(FIELDS, key=lambda name: len(fields[name]))
        raise FilterError(
            largest,
            f"a filter takes at most {MAX_VALUES} values: "
            f"leave {largest} out and filter in the client",
        )
    run_ids, task_ids, agents, statuses = (frozenset(fields[name]) for name in FIELDS)
    return Filter(run_ids, task_ids, agents, statuses), once


def _checked(name: str, value: str) -> str:
    if name == "status":
        if value not in STATUSES:
            raise FilterError(name, f"status is one of {', '.join(STATUSES)}, not {shown(value)}")
        return value
    try:
        storable(value)
    except ValueError as error:
        raise FilterError(name, f"{name} {error}: {shown(value)}") from None
    if name == "run_id":
        fits, bound = len(value.encode()) <= MAX_ID_BYTES, f"{MAX_ID_BYTES} bytes"
    else:
        fits, bound = len(value) <= MAX_CHARACTERS, f"{MAX_CHARACTERS} characters"
    if not value or not fits:
        raise FilterError(name, f"{name} takes a text of 1 to {bound}, not {shown(value)}")
    return value


def _included(values: Iterable[str]) -> Included:
    """The words of `include`, which may be repeated, or separated by commas. Raises FilterError."""
    words: set[Include] = set()
    for word in (word.strip() for value in values for word in value.split(",")):
        if word not in INCLUDE:
            known = ", ".join(INCLUDE)
            raise FilterError("include", f"include is one or more of {known}, not {shown(word)}")
        words.add(word)
    return frozenset(words)


def parse_subscription(query: Collection[tuple[str, str]]) -> Subscription:
    """The parameters of `/ws`, decoded, in their order. Raises FilterError."""
    include = _included(value for name, value in query if name == "include")
    others = [pair for pair in query if pair[0] != "include"]
    filter_, once = parse_filter(others, ("snapshot", "since", "include"), "/ws")
    if once.get("snapshot", "true") not in ("true", "false"):
        raise FilterError("snapshot", f"snapshot is true or false, not {shown(once['snapshot'])}")
    snapshot = once.get("snapshot") == "true"
    if snapshot and "since" in once:
        raise FilterError(
            "since",
            "snapshot and since exclude each other: since already sends what has changed",
        )
    try:
        since = parse_time(once["since"]) if "since" in once else None
    except ValueError as error:
        raise FilterError("since", f"since: {error}; in a URL, write + as %2B") from None
    return Subscription(filter_, snapshot, since, include)
