"""Connecting to PostgreSQL: the session that Brain needs, and errors as one line."""

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias, cast
from urllib.parse import quote

import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor, conninfo, sql
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.types.string import TextLoader

from brain.postgres.cancellation import timeout
from brain.postgres.text import unreadable

log = structlog.get_logger()

Row: TypeAlias = tuple[str | None, ...]
Conn: TypeAlias = AsyncConnection[Row]
"""A connection on which every column arrives as the text that its type prints."""

APPLICATION = "brain"
"""Brain's application_name, which synchronous_standby_names may contain."""

SESSION = {
    "datestyle": "ISO,MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": r"read\ committed",
    "row_security": "on",
    "quote_all_identifiers": "off",
}
"""A role or a database may have other settings, and start-up options override them. Some decide how
values look as text (seen: `21/11/2026 06:32:03 IST`, and `3e+01` for 30). Others make Brain's
queries fail. With `serializable`, the second of two claims of a run fails (40001); it has to see
the first claim. With `row_security=off`, every query of a table with policies fails."""

FOREIGN_VARIABLES = ("PGDATESTYLE", "PGTZ", "PGGEQO", "PGSERVICE")
"""libpq reads them. It sends the first three after the start-up options, and so they override
these. From PGSERVICE it takes everything that the URL does not say. Brain removes them from its
environment. It gives PGOPTIONS, PGCLIENTENCODING, PGAPPNAME, PGCONNECT_TIMEOUT,
PGTARGETSESSIONATTRS and PGLOADBALANCEHOSTS values of its own or of the URL's. Brain keeps the
others, which say how to reach the database of the URL (PGPASSFILE, PGSSLROOTCERT …)."""

ANSWER_TIMEOUT = 10.0
"""Seconds. A query that waits for no lock is answered within them, or the database is gone."""


def redact(url: str) -> str:
    """The URL for a log line, and for `psql` in the same place: without its password and its
    parameters, which may contain one.
    """
    info = conninfo.conninfo_to_dict(url)
    hosts = str(info.get("host") or info.get("hostaddr") or "localhost").split(",")
    ports = [port or "5432" for port in str(info.get("port") or "").split(",")]
    if len(ports) < len(hosts):  # one port for every host
        ports *= len(hosts)
    places = [
        f"[{quote(host, ':')}]:{port}" if ":" in host else f"{_escaped(host)}:{port}"
        for host, port in zip(hosts, ports, strict=False)
    ]
    user = f"{_escaped(str(info['user']))}@" if info.get("user") else ""
    return f"postgresql://{user}{','.join(places)}/{_escaped(str(info.get('dbname') or ''))}"


def _escaped(part: str) -> str:
    """A part of a URL. libpq needs no escapes of letters, and people cannot read them."""
    return "".join(each if each.isalnum() or each in "-._~" else quote(each, "") for each in part)


def parameters(
    url: str, application: str, *, replication: bool = False, **settings: str
) -> dict[str, Any]:
    """Keyword arguments of connect(): the URL's, and Brain's session settings after its options."""
    given = conninfo.conninfo_to_dict(url)
    session = " ".join(f"-c {name}={value}" for name, value in {**SESSION, **settings}.items())
    return {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,  # ms: the time to notice that packets vanish
        "application_name": application,
        "target_session_attrs": "any",
        "load_balance_hosts": "disable",
        **given,
        "client_encoding": "UTF8",
        **({"replication": "database"} if replication else {}),
        "options": f"{given.get('options') or ''} {session}".strip(),
    }


async def connect(
    url: str, application: str, *, replication: bool = False, **settings: str
) -> Conn:
    """An autocommit connection on which every column is text. Raises psycopg.Error."""
    given = parameters(url, application, replication=replication, **settings)
    try:
        conn: Conn = await Session.connect(**given, autocommit=True)
    except psycopg.errors.ConnectionTimeout as error:  # psycopg says neither where nor how long
        place, seconds = redact(url).rpartition("@")[2], given["connect_timeout"]
        raise psycopg.errors.ConnectionTimeout(
            f"{place.removeprefix('postgresql://')} did not answer within {seconds} s"
        ) from error
    await configure(conn)
    return conn


class Session(AsyncConnection[Any]):
    """A connection that does without start-up options where a pooler refuses them."""

    @classmethod
    async def connect(cls, conninfo: str = "", **given: Any) -> Self:
        _clear_environment(given)
        try:
            return await super().connect(conninfo, **given)
        except psycopg.OperationalError as error:
            if "startup parameter" not in str(error) or given.get("replication"):
                raise
        conn = await super().connect(conninfo, **{**given, "options": ""})
        # A pooler keeps these two apart for each of its clients (PgBouncer,
        # "track_extra_parameters"). Any other SET would remain in a session that the application
        # uses a moment later.
        async with deadline():
            await conn.execute("SET datestyle = 'ISO,MDY'")
            await conn.execute("SET timezone = 'UTC'")
        return conn

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection also if the roll-back that comes first is cancelled."""
        try:
            await super().__aexit__(kind, error, traceback)
        except BaseException:
            await self.close()
            raise


def _clear_environment(given: Mapping[str, Any]) -> None:
    """Remove the variables by which libpq would make another session of it, or go elsewhere."""
    # With a host in the URL, PGHOSTADDR would be another server than the one that the URL names.
    names = (*FOREIGN_VARIABLES, *(("PGHOSTADDR",) if given.get("host") else ()))
    if found := [name for name in names if os.environ.pop(name, None) is not None]:
        log.info(
            "variables ignored",
            names=" ".join(found),
            hint="only the database URL decides what Brain's sessions are like",
        )


@asynccontextmanager
async def deadline(
    seconds: float = ANSWER_TIMEOUT, waiting_for: str = "an answer"
) -> AsyncIterator[None]:
    """Raise psycopg.OperationalError if the body takes longer than this.

    TCP notices a peer that vanishes, but not a proxy that accepts every query and forwards none.
    """
    try:
        async with timeout(seconds):
            yield
    except TimeoutError as error:
        raise psycopg.OperationalError(
            f"the database has kept Brain waiting for {waiting_for} for {seconds:.0f} s"
        ) from error


async def configure(conn: AsyncConnection[Any]) -> None:
    """Read every type as text: one decoder for queries and the stream keeps equal rows equal.

    A server whose encoding is not UTF8 fails a query, or the stream, if one row has bytes that it
    cannot convert: any in SQL_ASCII (22021), 0x81 in WIN1252 (22P05). So it converts nothing here,
    and Brain decodes the texts.
    """
    conn.prepare_threshold = None  # a pooler may give each statement to another session
    text: type[Loader] = TextLoader
    encoding = conn.info.parameter_status("server_encoding") or "UTF8"
    if encoding != "UTF8":
        try:
            async with deadline():
                await conn.execute(b"SET client_encoding = " + encoding.encode())
            text = _tolerant_loader(codec_of(conn))
        except psycopg.NotSupportedError:  # Python cannot decode EUC_TW and MULE_INTERNAL
            async with deadline():
                await conn.execute(b"SET client_encoding = UTF8")
        if encoding == "SQL_ASCII":
            conn.cursor_factory = _Utf8Cursor
    for oid in _oids(conn.adapters):
        conn.adapters.register_loader(oid, text)


def codec_of(conn: AsyncConnection[Any]) -> str:
    """Python's name of the encoding in which the texts arrive. Raises NotSupportedError."""
    encoding = conn.info.encoding
    return "utf-8" if encoding == "ascii" else encoding  # ascii: of SQL_ASCII


def _tolerant_loader(codec: str) -> type[Loader]:
    """Psycopg's own is written in C, but fails the whole query if one value is no text."""

    class TolerantLoader(Loader):
        def load(self, data: Buffer) -> str:
            encoded = bytes(data)
            try:
                return encoded.decode(codec)
            except UnicodeDecodeError:
                return unreadable(encoded, codec)

    return TolerantLoader


class _Utf8Cursor(AsyncCursor[Any]):
    """For a database without an encoding. psycopg would encode only ASCII there."""

    async def execute(self, query: Any, *arguments: Any, **given: Any) -> Self:
        return await super().execute(_encoded(query), *arguments, **given)

    def stream(self, query: Any, *arguments: Any, **given: Any) -> AsyncGenerator[Any]:
        return cast("AsyncGenerator[Any]", super().stream(_encoded(query), *arguments, **given))


def _encoded(query: Any) -> bytes:
    if isinstance(query, bytes):
        return query
    text = query.as_string() if isinstance(query, sql.Composable) else query
    return str(text).encode()


def _oids(adapters: AdaptersMap) -> list[int]:
    return [oid for info in adapters.types for oid in (info.oid, info.array_oid) if oid]


def error_line(error: BaseException) -> str:
    """The first line of PostgreSQL's message, with the SQLSTATE."""
    sqlstate = getattr(error, "sqlstate", None)
    text = _first_line(error) or type(error).__name__
    return f"{text} ({sqlstate})" if sqlstate else text


def _first_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    # libpq repeats a connection string that it cannot read, including the password.
    return re.sub(r"://[^@\s]*@", "://…@", text.removeprefix("ERROR: ")).strip()
