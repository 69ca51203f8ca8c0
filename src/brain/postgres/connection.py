"""Connecting to PostgreSQL: what a URL may say, the session that Brain needs, and its errors in plain words."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import AsyncConnection, conninfo
from psycopg.adapt import AdaptersMap
from psycopg.types.string import TextLoader

from brain.postgres.cancellation import timeout

Text: TypeAlias = tuple[str | None, ...]
Conn: TypeAlias = AsyncConnection[Text]
"""A connection on which every column arrives as the text that its type prints."""

SESSION = {
    "datestyle": "ISO,MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""The text form of a value is the session's, and a role or a database may have set another (seen: `21/11/2026 06:32:03 IST`
and `3e+01` for 30). Start-up options win over both."""

ANSWER = 10.0
"""Seconds in which a question that waits for nobody is answered, or the database is gone."""

_OURS = {
    "schema",
    "pgbouncer",
    "connection_limit",
    "pool_timeout",
    "sslaccept",
    "statement_cache_size",
    "prepared_statements",
}
"""Parameters of other tools' URLs (Prisma, SQLAlchemy) that libpq would refuse and that say nothing to Brain."""


class DatabaseURLError(ValueError):
    """A URL that names no PostgreSQL database. The text names the rule; it never repeats a password."""


def parse_url(url: str) -> str:
    """A libpq connection string from what people paste: `postgres://`, `postgresql+asyncpg://`, `?schema=public`.

    Nothing is decoded and encoded again on the way: libpq takes a `+` for a plus. Raises DatabaseURLError.
    """
    url = url.strip()
    if match := re.match(r"([a-z][a-z0-9.:-]*)(\+\w+)?://", url, re.IGNORECASE):
        if match[1].lower() not in ("postgres", "postgresql"):
            raise DatabaseURLError(
                f"the database URL begins with {match[1]}://, not with postgresql://"
            )
        head, mark, query = url[match.end() :].partition("?")
        authority, _, name = head.partition("/")
        if authority.count("@") > 1 or "@" in name or ("@" in query and "@" not in head):
            raise DatabaseURLError(
                "the database URL has an @, a / or a ? inside its password" + _HINT
            )
        kept = [pair for pair in query.split("&") if pair.partition("=")[0] not in _OURS]
        url = f"postgresql://{head}{mark if any(kept) else ''}{'&'.join(kept)}"
    try:
        info = conninfo.conninfo_to_dict(url)
    except psycopg.Error as error:
        raise DatabaseURLError(
            f"the database URL cannot be read ({_safe(error)})" + _HINT
        ) from None
    for port in str(info.get("port") or 5432).split(","):
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise DatabaseURLError(
                "the port in the database URL is not a number from 1 to 65535" + _HINT
            )
    return url


_HINT = (
    ": write postgresql://user:password@host:5432/database, and in the password %40 for @, %2F for /, "
    "%3F for ?, %25 for % and %20 for a space"
)


def _safe(error: psycopg.Error) -> str:
    """What libpq says of a string that it cannot read, without the pieces of it that may be a password's."""
    text = _first_line(error)
    named = text.startswith(("invalid URI query parameter", "invalid connection option"))
    return text if named else re.sub(r'"[^"]*"?', "…", text)


def redact(url: str) -> str:
    """The URL for a log line: without its password, and without parameters, which may hold one."""
    info = conninfo.conninfo_to_dict(url)
    hosts = str(info.get("host") or info.get("hostaddr") or "localhost").split(",")
    ports = [port or "5432" for port in str(info.get("port") or "").split(",")]
    if len(ports) < len(hosts):  # one port for all
        ports *= len(hosts)
    places = [
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port in zip(hosts, ports, strict=False)
    ]
    user = f"{info['user']}@" if info.get("user") else ""
    return f"postgresql://{user}{','.join(places)}/{info.get('dbname') or ''}"


def parameters(
    url: str, application: str, *, replication: bool = False, **settings: str
) -> dict[str, Any]:
    """Keyword arguments of connect(): the URL's, with Brain's session settings behind whatever options the URL has."""
    given = conninfo.conninfo_to_dict(url)
    options = " ".join(f"-c {name}={value}" for name, value in {**SESSION, **settings}.items())
    return {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,  # ms: a database whose packets vanish is noticed within 15 s
        "application_name": application,
        **given,
        "client_encoding": "UTF8",
        **({"replication": "database"} if replication else {}),
        "options": f"{given.get('options') or ''} {options}".strip(),
    }


async def connect(
    url: str, application: str, *, replication: bool = False, **settings: str
) -> Conn:
    """An autocommit connection with text on every column. Raises psycopg.Error; `why` puts it into words."""
    given = parameters(url, application, replication=replication, **settings)
    conn: Conn = await Session.connect(**given, autocommit=True)
    await configure(conn)
    return conn


class Session(AsyncConnection[Any]):
    """A connection that settles for less where what answers is a pooler, which refuses start-up options."""

    @classmethod
    async def connect(cls, conninfo: str = "", **given: Any) -> Self:
        try:
            return await super().connect(conninfo, **given)
        except psycopg.OperationalError as error:
            if "startup parameter" not in str(error) or given.get("replication"):
                raise
        conn = await super().connect(conninfo, **{**given, "options": ""})
        # What a pooler keeps apart for each of its clients (PgBouncer, "track_extra_parameters"). A SET of anything else would
        # stay behind in a session that is the application's a moment later.
        async with deadline():
            await conn.execute("SET datestyle = 'ISO,MDY'")
            await conn.execute("SET timezone = 'UTC'")
        return conn


@asynccontextmanager
async def deadline(seconds: float = ANSWER, waiting_for: str = "an answer") -> AsyncIterator[None]:
    """Gives up on what has not ended after so many seconds. Raises psycopg.OperationalError.

    TCP notices what vanishes on the way, but not a proxy that takes every question and hands none on.
    """
    try:
        async with timeout(seconds):
            yield
    except TimeoutError as error:
        raise psycopg.OperationalError(
            f"the database has kept Brain waiting for {waiting_for} for {seconds:.0f} s"
        ) from error


async def configure(conn: AsyncConnection[Any]) -> None:
    """Reads every type as text, so that one decoder serves a query and the stream: two would make equal rows differ."""
    conn.prepare_threshold = None  # a pooler between may hand each statement to another session
    for oid in _oids(conn.adapters):
        conn.adapters.register_loader(oid, TextLoader)


def _oids(adapters: AdaptersMap) -> list[int]:
    return [oid for info in adapters.types for oid in (info.oid, info.array_oid) if oid]


def error_line(error: BaseException) -> str:
    """One line for a log or a person: what PostgreSQL said, and its SQLSTATE."""
    sqlstate = getattr(error, "sqlstate", None)
    text = _first_line(error) or type(error).__name__
    return f"{text} ({sqlstate})" if sqlstate else text


def _first_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    # libpq repeats the connection string of a URL that it cannot read, password and all.
    return re.sub(r"://[^@\s]*@", "://…@", text.removeprefix("ERROR: ")).strip()
