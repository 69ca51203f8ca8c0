"""Why the HTTP API cannot do what a request asks: errors in terms of runs, without HTTP.

RunError
├── RunNotFound           there is no such run
├── RunConflict           the run, or the table, does not allow the change
│   ├── RunExists
│   ├── TransitionNotAllowed
│   ├── RunEnded
│   ├── IdNotUnique
│   ├── UnknownStatus
│   ├── RowRejected
│   ├── RowNotInContract
│   └── ConcurrentChange
├── InvalidRequest        a value of the request is wrong
│   ├── ColumnNotWritable
│   ├── IdRequired
│   └── CursorInvalid
├── NotJSON
├── EncodedBody
├── PreconditionFailed
├── BeyondToken
├── PolicyMissing
├── PrivilegeMissing
├── TableNotRead
├── NodeBehind
├── IdNotComparable
└── TooManyRequests

`problems.py` says with which status each is answered.
"""

# ruff: noqa: N818 - an exception is named for what is wrong: RunNotFound, TransitionNotAllowed

from collections.abc import Collection, Iterable

import psycopg

from brain.contract.errors import BrainError
from brain.contract.messages import TRANSITIONS, Status, shown

FieldErrors = tuple[tuple[str, str], ...]
"""Pairs of a field and what is wrong with it."""


class RunError(BrainError):
    """The request about runs cannot be carried out."""

    fields: FieldErrors = ()


class RunNotFound(RunError):
    """`detail` says why the row of that id is not a run, if there is one. By `fields` a client
    distinguishes the two.
    """

    def __init__(self, run_id: str, detail: str = "") -> None:
        super().__init__(detail or f"there is no run {shown(run_id)}")
        self.run_id = run_id
        self.fields = (("status", detail),) if detail else ()


class RunConflict(RunError):
    """The run, or the table, does not allow the change."""


class RunExists(RunConflict):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is a run {shown(run_id)} already: change that one")
        self.run_id = run_id


class TransitionNotAllowed(RunConflict):
    def __init__(self, run_id: str, present: Status, wanted: Status) -> None:
        others = " or ".join(sorted(TRANSITIONS[present] - {present}))
        rule = f"from {present} it can become {others}" if others else f"{present} is final"
        super().__init__(f"run {shown(run_id)} is {present} and cannot become {wanted}: {rule}")
        self.run_id = run_id
        self.present = present
        self.wanted = wanted


class RunEnded(RunConflict):
    """`fields` are those that the change would have changed."""

    def __init__(self, run_id: str, present: Status, changed: Collection[str]) -> None:
        super().__init__(
            f"run {shown(run_id)} is {present}, and an end is final: "
            f"the change would give it another {' and another '.join(changed)}"
        )
        self.run_id = run_id
        self.present = present
        self.fields = tuple((name, f"{name} of an ended run stays as it is") for name in changed)


class IdNotUnique(RunConflict):
    def __init__(self, run_id: str, table: object) -> None:
        super().__init__(
            f"more than one row of the table {table} has the id {shown(run_id)}, so Brain shows "
            "and changes none of them: make id unique on its own (a primary key or a unique index)"
        )
        self.run_id = run_id


class UnknownStatus(RunConflict):
    """`word` is what the table has in the column `status`."""

    def __init__(self, run_id: str, word: str | None) -> None:
        super().__init__(
            f"run {shown(run_id)} has the status {shown(word)}, which Brain does not know and does "
            "not change: map it with BRAIN_STATUS_MAP"
        )
        self.run_id = run_id
        self.word = word


class RowRejected(RunConflict):
    """The table stored no row: one of its triggers or rules rejected it."""


class RowNotInContract(RunConflict):
    """The row was written, but Brain cannot show it."""

    def __init__(self, word: str | None) -> None:
        super().__init__(
            f"the row has the status {shown(word)} or an id that has no place in the contract: "
            "map the table's own words with BRAIN_STATUS_MAP"
        )
        self.word = word


class ConcurrentChange(RunConflict):
    """Each try found a status that allows the change, and none changed the row."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"run {shown(run_id)} was not changed: a trigger or a rule of the table rejected the "
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
        message = f"cursor is the next_cursor of a page in this order, not {shown(cursor)}"
        message += f": {detail}" if detail else ""
        super().__init__(message, ("cursor", message))
        self.cursor = cursor


class NotJSON(RunError):
    def __init__(self, content_type: str) -> None:
        given = f"not {shown(content_type)}" if content_type else "and this request has none"
        super().__init__(
            f"the Content-Type is application/json (with or without a charset), {given}"
        )
        self.content_type = content_type


class EncodedBody(RunError):
    def __init__(self, encoding: str) -> None:
        super().__init__(f"a body has no Content-Encoding, and this one has {shown(encoding)}")
        self.encoding = encoding


class PreconditionFailed(RunError):
    """If-Match, or If-None-Match, does not allow the request."""

    def __init__(self, run_id: str, etag: str) -> None:
        super().__init__(
            f"run {shown(run_id)} is no longer, or not yet, as If-Match or If-None-Match says: its "
            f'ETag is "{etag}"'
        )
        self.run_id = run_id
        self.etag = etag


class BeyondToken(RunError):
    """The request would make a run that its token does not cover."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the token is for other values of {name}: give one of those that it is for"
        )
        self.name = name


class PolicyMissing(RunError):
    """Row security rejects what the request would write. `policy` is SQL that permits it."""

    def __init__(self, message: str, role: str, policy: str) -> None:
        super().__init__(
            f"{message}: the role {role}, as which Brain connects, needs a policy that permits the "
            f"row, such as {policy}"
        )
        self.policy = policy


class TableNotRead(RunError):
    def __init__(self) -> None:
        super().__init__(
            "Brain has not read the table yet, so it does not know which runs changed last: "
            "try again, or list by order=id"
        )


class NodeBehind(RunError):
    def __init__(self) -> None:
        super().__init__(
            "another node has sent the first page of this list, and this one has not read yet "
            "what that one had: try again"
        )


class IdNotComparable(RunError):
    """A composite type, json, a geometric type; or one of an extension (ltree) whose schema the
    role's search_path lacks, and with it the operators.
    """

    def __init__(self, table: object, type_: str) -> None:
        type_ = type_.replace("%%", "%")
        schema = type_.rpartition(".")[0]
        otherwise = ""
        if schema not in ('"pg_catalog"', '"public"'):
            otherwise = f", or add the schema {schema} to the search_path of the role of Brain"
        super().__init__(
            f"PostgreSQL does not compare values of the type {type_} with a text, so Brain cannot "
            f"find the runs of {table} by their id: give the column another type, such as text, "
            f"uuid or bigint{otherwise}"
        )


class PrivilegeMissing(RunError):
    """Brain's role lacks a right. `grants` are statements that give it to it."""

    def __init__(self, message: str, grants: Collection[str]) -> None:
        super().__init__(f"{message}: run {' '.join(grants)}")
        self.grants = tuple(grants)


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
