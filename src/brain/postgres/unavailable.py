"""Why the table cannot be streamed now: a code for programs, a detail and a hint for people."""

import re
from typing import Literal, TypeAlias

import psycopg
from psycopg import sql

from brain.contract.errors import BrainError
from brain.postgres.connection import error_line

UnavailableCode: TypeAlias = Literal[
    # The role, the server, and what stands between it and Brain.
    "role",
    "pg_hba",
    "slots",
    "walsenders",
    "wal_level",
    "pooler",
    "unsupported",
    "standby",
    "synchronous",
    # The table and its publication.
    "view",
    "row_security",
    "unlogged",
    "replica_identity",
    "inheritance",
    "virtual",
    "generated",
    "publication",
    # States that end by themselves.
    "slot_waits",
    "held_back",
    "lost",
    "preparing",
    # Why there is no source at all.
    "connecting",
    "away",
    "table",
    "nats",
    "fault",
    # Everything else.
    "chosen",
    "other",
]
"""Why Brain does not use a better source: the `code` of /readyz, /metrics and `brain doctor`."""


class StreamUnavailable(BrainError):  # noqa: N818 - a state of the database, not an error of Brain
    """The table cannot be streamed now.

    `hint` is what to run or to set, or "" if the state ends by itself. SQL in it can be pasted into
    psql.
    """

    def __init__(self, detail: str, hint: str = "", code: UnavailableCode = "other") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.code = code


class SlotBlocked(StreamUnavailable):
    """PostgreSQL creates the slot only after all open write transactions end."""


BY_SQLSTATE: dict[str, tuple[UnavailableCode, str, str]] = {
    # PostgreSQL documentation, Appendix A.
    "42501": ("role", "the role may not replicate", "ALTER ROLE {user} REPLICATION;"),
    # A stream names a database. So pg_hba.conf must allow that database, as for any connection;
    # its lines for `replication` do not matter (seen on 15 and 18).
    "28000": (
        "pg_hba",
        "pg_hba.conf allows no new connection",
        "give {user} a line for this database in pg_hba.conf, and run SELECT pg_reload_conf();",
    ),
    "53400": (
        "slots",
        "no replication slot is free",
        "raise max_replication_slots, or drop a slot that nobody uses",
    ),
    "53300": (
        "walsenders",
        "no connection for replication is free",
        "raise max_wal_senders or max_connections",
    ),
    "55000": (
        "wal_level",
        "wal_level is not logical",
        "ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL",
    ),
    "08P01": (
        "pooler",
        "what answers is a pooler, which does not support replication",
        "name the database itself in BRAIN_DATABASE_URL",
    ),
    "53100": ("other", "the disk of PostgreSQL is full", "make room on the disk of PostgreSQL"),
    "0A000": ("unsupported", "this server has no logical replication", ""),
}
"""SQLSTATE: the code, the detail and the hint."""

_SQLSTATE_BY_TEXT = {
    "max_wal_senders": "53300",
    "pg_hba.conf": "28000",
    "startup parameter": "08P01",
    "WAL": "42501",
    "walsender": "42501",
    "too many c": "53300",
    "connection slots": "53300",
}
"""libpq does not report the SQLSTATE of an error that ends the start of a connection. These parts
of its text identify it; most of them are the same in every language of PostgreSQL."""


_LIBPQ = re.compile(r"^connection failed: .*? failed: (?=FATAL:)|FATAL:\s+")


def from_error(error: psycopg.Error, user: str) -> StreamUnavailable:
    """What an error on the way to a stream means."""
    if error.sqlstate == "55P03":
        return SlotBlocked(
            "a writing transaction is open, and PostgreSQL creates a slot only after it ends",
            code="slot_waits",
        )
    sqlstate = error.sqlstate or next(
        (sqlstate for text, sqlstate in _SQLSTATE_BY_TEXT.items() if text in str(error)), ""
    )
    if sqlstate == "55000" and "max_replication_slots" in str(error):  # it is 0
        sqlstate = "53400"
    meaning = from_sqlstate(sqlstate, user)
    # libpq's words for a refusal would alarm where Brain polls, and works.
    said = _LIBPQ.sub("", error_line(error)) if sqlstate else error_line(error)
    return StreamUnavailable(f"{meaning.detail}: {said}", meaning.hint, meaning.code)


def from_sqlstate(sqlstate: str, user: str) -> StreamUnavailable:
    """What an SQLSTATE means on the way to a stream."""
    code, detail, hint = BY_SQLSTATE.get(sqlstate, ("other", "replication was refused", ""))
    return StreamUnavailable(detail, hint.format(user=sql.Identifier(user).as_string()), code)
