"""Why the HTTP API cannot do what a request asks: errors in terms of runs, without HTTP.

RunError
├── RunNotFound           there is no such run
├── RunConflict           the run, or the table, does not allow the change
│   ├── RunExists
│   ├── TransitionNotAllowed
│   ├── UnknownStatus
│   ├── RowRejected
│   ├── RowNotInContract
│   └── ConcurrentChange
├── InvalidRequest        a value of the request is wrong
│   ├── ColumnNotWritable
│   ├── IdRequired
│   ├── CursorInvalid
│   └── ParameterRepeated
├── NotJSON
├── BeyondToken
└── TooManyRequests

`problems.py` says with which status each is answered.
"""

# ruff: noqa: N818 - an exception is named for what is wrong: RunNotFound, TransitionNotAllowed

from collections.abc import Iterable

import psycopg

from brain.contract.errors import BrainError
from brain.contract.messages import TRANSITIONS, Status

FieldErrors = tuple[tuple[str, str], ...]
"""Pairs of a field and what is wrong with it."""


class RunError(BrainError):
    """The request about runs cannot be carried out."""

    fields: FieldErrors = ()


class RunNotFound(RunError):
    """`detail` says why a row of that id is not a run, if there is one."""

    def __init__(self, run_id: str, detail: str = "") -> None:
        super().__init__(detail or f"there is no run {run_id!r}")
        self.run_id = run_id


class RunConflict(RunError):
    """The run, or the table, does not allow the change."""


class RunExists(RunConflict):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is a run {run_id!r} already: change that one")
        self.run_id = run_id


class TransitionNotAllowed(RunConflict):
    def __init__(self, run_id: str, present: Status, wanted: Status) -> None:
        others = " or ".join(sorted(TRANSITIONS[present] - {present}))
        rule = f"from {present} it can become {others}" if others else f"{present} is final"
        super().__init__(f"run {run_id!r} is {present} and cannot become {wanted}: {rule}")
        self.run_id = run_id
        self.present = present
        self.wanted = wanted


class UnknownStatus(RunConflict):
    """`word` is what the table has in the column `status`."""

    def __init__(self, run_id: str, word: str | None) -> None:
        super().__init__(
            f"run {run_id!r} has the status {word!r}, which Brain does not know and does not "
            "change: map it with BRAIN_STATUS_MAP"
        )
        self.run_id = run_id
        self.word = word


class RowRejected(RunConflict):
    """The table stored no row: one of its triggers or rules rejected it."""


class RowNotInContract(RunConflict):
    """The row was written, but Brain cannot show it."""

    def __init__(self, word: str | None) -> None:
        super().__init__(
            f"the row has the status {word!r} or an id that has no place in the contract: "
            "map the table's own words with BRAIN_STATUS_MAP"
        )
        self.word = word


class ConcurrentChange(RunConflict):
    """Each try found a status that allows the change, and none changed the row."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"run {run_id!r} was not changed: a trigger or a rule of the table rejected the "
            "change, or others keep changing the run; try again"
        )
        self.run_id = run_id


class InvalidRequest(RunError):
    """A value of the request is wrong; `fields` says which."""

    def __init__(self, detail: str, *fields: tuple[str, str]) -> None:
        super().__init__(detail)
        self.fields = fields


class ColumnNotWritable(InvalidRequest):
    """`wrong` has at least one pair."""

    def __init__(self, wrong: Iterable[tuple[str, str]]) -> None:
        fields = tuple(wrong)
        name, detail = fields[0]
        super().__init__(f"{name} cannot be set: {detail}", *fields)


class IdRequired(InvalidRequest):
    def __init__(self, detail: str) -> None:
        super().__init__(f"give an id, because the table has no default for it: {detail}")


class CursorInvalid(InvalidRequest):
    def __init__(self, cursor: str, detail: str = "") -> None:
        rule = "is not the next_cursor of a page"
        super().__init__(f"cursor {cursor[:100]!r} {rule}", ("cursor", detail or rule))
        self.cursor = cursor


class ParameterRepeated(InvalidRequest):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is given more than once", (name, "give it once"))
        self.name = name


class NotJSON(RunError):
    def __init__(self, content_type: str) -> None:
        super().__init__(f"the Content-Type is {content_type[:100]!r}: send application/json")
        self.content_type = content_type


class BeyondToken(RunError):
    """The request would make a run that its token does not cover."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the token is for other values of {name}: give one of those that it is for"
        )
        self.name = name


class TooManyRequests(RunError):
    def __init__(self, address: object, limit: int, waited: float) -> None:
        super().__init__(
            f"{limit} requests of {address} are at the database, and this one waited "
            f"{waited:.0f} s: send fewer at a time"
        )
        self.address = address


def postgres_message(error: psycopg.Error) -> str:
    """PostgreSQL's message. Its detail is added only where that names keys, not a whole row."""
    parts = [error.diag.message_primary or str(error)]
    if error.diag.message_detail and (error.sqlstate or "") in ("23503", "23505"):
        parts.append(error.diag.message_detail)
    return ": ".join(parts)
