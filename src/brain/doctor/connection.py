"""Whether Brain reaches the database, and what stands between."""

import psycopg

from brain.doctor.context import Context
from brain.doctor.report import NO_CHANGES, Finding
from brain.postgres.connection import error_line
from brain.postgres.remedies import connecting
from brain.postgres.unavailable import from_sqlstate

SUPPORTED, TESTED = 130_000, 150_000
"""server_version_num: the oldest version that works, and the oldest that Brain is tested with."""


def unreachable(error: psycopg.Error, url: str) -> Finding:
    text = str(error)
    return Finding(
        "pooler" if "startup parameter" in text else "away",
        "broken",
        error_line(error),
        NO_CHANGES,
        connecting(text, url)
        or "check that it runs, and that BRAIN_DATABASE_URL names the right role, password and"
        " database",
    )


def interrupted(error: psycopg.Error) -> Finding:
    what = f"the examination was interrupted: {error_line(error)}"
    return Finding("away", "broken", what, NO_CHANGES, "run this again")


def version(name: str, number: int) -> list[Finding]:
    if number < SUPPORTED:
        what = f"PostgreSQL {name} has no pg_current_snapshot()"
        return [Finding("version", "broken", what, NO_CHANGES, "upgrade it to 15 or newer")]
    if number < TESTED:
        what = f"PostgreSQL {name} is older than the versions that Brain is tested with"
        return [Finding("version", "note", what, "it should work")]
    return []


async def pooler(context: Context) -> list[Finding]:
    """A pooler in transaction mode gives consecutive queries to different backends."""
    if context.conn.info.backend_pid == context.backend_pid or context.report.has("pooler"):
        return []
    return [
        Finding(
            "pooler",
            "better",
            "a pooler between Brain and the database gives each transaction to another session",
            "it adds a hop, and not every pooler supports replication",
            from_sqlstate("08P01", context.user).hint,
        )
    ]
