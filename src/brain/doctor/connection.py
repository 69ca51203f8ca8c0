"""Whether Brain reaches the database, and what stands between."""

import re

import psycopg
from psycopg import conninfo, sql

from brain.doctor.context import Context
from brain.doctor.report import NO_CHANGES, Finding
from brain.postgres.connection import error_line
from brain.postgres.unavailable import from_sqlstate

SUPPORTED, TESTED = 130_000, 150_000
"""server_version_num: the oldest version that works, and the oldest that Brain is tested with."""

_HINTS = {
    "startup parameter": from_sqlstate("08P01", "").hint,
    "password": "set the right role and password in BRAIN_DATABASE_URL,"
    " with %40 for an @, %2F for a / and %25 for a % in them",
    'role "(.+)" does not exist': "CREATE ROLE {} LOGIN REPLICATION;"
    " -- or name another in BRAIN_DATABASE_URL",
    'role "(.+)" is not permitted to log in': "ALTER ROLE {} LOGIN;"
    " -- or name another in BRAIN_DATABASE_URL",
    'permission denied for database "(.+)"': "GRANT CONNECT ON DATABASE {} TO {role};",
    "pg_hba.conf": "give the role a line for this database in pg_hba.conf,"
    " and run SELECT pg_reload_conf();",
    'database "(.+)" does not exist': "CREATE DATABASE {};"
    " -- or name the right one in BRAIN_DATABASE_URL",
    'too many connections for role "(.+)"': "ALTER ROLE {} CONNECTION LIMIT -1;"
    " -- or reduce the number of its clients",
    'too many connections for database "(.+)"': "ALTER DATABASE {} CONNECTION LIMIT -1;"
    " -- or reduce the number of its clients",
    "too many c|connection slots": "reduce the number of clients,"
    " or raise max_connections and restart PostgreSQL",
    "(?:resolve host|translate host name)": "the host name does not resolve:"
    " correct it in BRAIN_DATABASE_URL, or correct the name resolution",
    "the database system is": "wait until PostgreSQL takes connections, and run this again",
    "SSL negotiation|wrong version number|invalid authentication request": "another program than"
    " PostgreSQL answers there: name PostgreSQL's host and port in BRAIN_DATABASE_URL",
    "did not answer within": "correct the host and the port in BRAIN_DATABASE_URL, or let this"
    " machine through the firewall that is on the way",
    "Connection refused|No such file": "start PostgreSQL there,"
    " or name the right host and port in BRAIN_DATABASE_URL",
}
"""A pattern of the error's text, and the hint. libpq does not report the SQLSTATE."""


def unreachable(error: psycopg.Error, url: str) -> Finding:
    text = str(error)
    return Finding(
        "pooler" if "startup parameter" in text else "away",
        "broken",
        error_line(error),
        NO_CHANGES,
        _hint(text, str(conninfo.conninfo_to_dict(url).get("user") or "")),
    )


def _hint(text: str, user: str) -> str:
    for pattern, hint in _HINTS.items():
        if match := re.search(pattern, text):
            name = sql.Identifier(match[1]).as_string() if match.re.groups else ""
            role = sql.Identifier(user).as_string() if user else "PUBLIC"
            return hint.replace("{}", name).replace("{role}", role)
    return (
        "check that it runs, and that BRAIN_DATABASE_URL names the right role, password and"
        " database"
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
