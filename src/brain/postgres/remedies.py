"""What to do about an error after which Brain has no source at all: it cannot connect, or its role
may not read the table. `detail` of /readyz has the error, and `hint` what is here.
"""

import re

import psycopg
from psycopg import conninfo, sql

from brain.postgres.table import Table
from brain.postgres.unavailable import from_sqlstate

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
    "the database system is": "wait until PostgreSQL takes connections",
    "SSL negotiation|wrong version number|invalid authentication request": "another program than"
    " PostgreSQL answers there: name PostgreSQL's host and port in BRAIN_DATABASE_URL",
    "did not answer within": "correct the host and the port in BRAIN_DATABASE_URL, or let this"
    " machine through the firewall that is on the way",
    "Connection refused|No such file": "start PostgreSQL there,"
    " or name the right host and port in BRAIN_DATABASE_URL",
}
"""A pattern of the error's text, and the hint. libpq does not report the SQLSTATE."""


def remedy(error: BaseException, url: str, table: Table) -> str:
    """SQL for the table's owner, or a sentence; "" if the state ends by itself, or nobody knows."""
    if not isinstance(error, psycopg.Error):
        return ""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        schema, role = sql.Identifier(table.schema).as_string(), _role(url)
        # Which of the two is missing, PostgreSQL says in its own language. The other one is there.
        return (
            f"GRANT USAGE ON SCHEMA {schema} TO {role};"
            f" GRANT SELECT ON {table.sql.as_string()} TO {role};"
        )
    return "" if error.sqlstate else connecting(str(error), url)


def connecting(text: str, url: str) -> str:
    """Of an error's text on the way to a connection. "" if no rule knows it."""
    for pattern, hint in _HINTS.items():
        if match := re.search(pattern, text):
            name = sql.Identifier(match[1]).as_string() if match.re.groups else ""
            return hint.replace("{}", name).replace("{role}", _role(url))
    return ""


def _role(url: str) -> str:
    """As libpq chooses it: PGUSER, or the user of the system, if the URL names none."""
    defaults = {option.keyword: option.val for option in psycopg.pq.Conninfo.get_defaults()}
    user = conninfo.conninfo_to_dict(url).get("user") or (defaults[b"user"] or b"").decode()
    return sql.Identifier(str(user)).as_string() if user else "PUBLIC"
