"""The URL of a database: as people paste it from other tools, and as libpq reads it."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

import psycopg
from psycopg import conninfo, pq

from brain.contract.errors import BrainError

_OF_SCHEMAS: Final = ("schema", "currentSchema", "search_path", "searchPath")
"""Where other tools look for tables. BRAIN_TABLE has the schema of the table instead."""

_OF_DRIVERS: Final = {
    "Prisma": "pgbouncer connection_limit pool_timeout socket_timeout statement_cache_size"
    " max_connection_lifetime max_idle_connection_lifetime sslaccept sslidentity",
    "Rails": "pool encoding timeout reaping_frequency checkout_timeout prepared_statements",
    "asyncpg": "command_timeout prepared_statement_cache_size prepared_statement_name_func"
    " async_fallback",
    "SQLAlchemy": "pool_size pool_recycle pool_pre_ping max_overflow",
    "Go": "pool_max_conns pool_min_conns pool_max_conn_lifetime pool_max_conn_idle_time"
    " pool_health_check_period default_query_exec_mode statement_cache_capacity"
    " description_cache_capacity binary_parameters",
    "Django": "conn_max_age conn_health_checks",
    "JavaScript": "uselibpqcompat max idle_timeout max_lifetime",
    "Supabase": "supa workaround",
}
"""How other tools pool, prepare and encode. libpq refuses such parameters. Brain leaves them out:
its own connections depend on none of them."""

_SSL: Final = {
    "true": "require",
    "1": "require",
    "false": "disable",
    "0": "disable",
    "no-verify": "require",
}
"""Other tools' values of `ssl` and `sslmode`, for libpq's `sslmode`. The others are its own."""

_INTEGERS: Final = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    }
)

_WORDS: Final = {
    "sslmode": "disable, allow, prefer, require, verify-ca or verify-full",
    "target_session_attrs": "any, read-write, read-only, primary, standby or prefer-standby",
}
"""What to say about a value that libpq does not know."""

_LIKE: Final = (
    "write postgresql://user:password@host:5432/database,"
    " and in the password %40 for @, %2F for /, %3F for ?, %25 for % and %20 for a space"
)

_UNESCAPED: Final = f"the database URL has an @, a / or a ? inside its password: {_LIKE}"


class DatabaseURLError(BrainError, ValueError):
    """The URL names no PostgreSQL database.

    The text never contains a password. A ValueError too, because pydantic reports only those.
    """


def parse_url(url: str) -> str:
    """A libpq connection string from `postgres://`, `postgresql+asyncpg://`, `?schema=public` …

    Nothing is decoded and encoded again: to libpq a `+` is a plus. Raises DatabaseURLError.
    """
    url = url.strip()
    if parts := _split(url):
        scheme, head, query = parts
        if scheme not in ("postgres", "postgresql"):
            raise DatabaseURLError(
                f"the database URL begins with {scheme}://, not with postgresql://"
            )
        authority, _, name = head.partition("/")
        if authority.count("@") > 1 or "@" in name or ("@" in query and "@" not in head):
            raise DatabaseURLError(_UNESCAPED)
        url = f"postgresql://{head}"
        _check_port(_read(url))  # before any parameter is named: it may be a part of a password
        kept = "&".join(_kept(query))
        url += f"?{kept}" if kept else ""
    given = _read(url)
    _check_port(given)
    _check_values(given)
    return url


def schema_of(url: str) -> str | None:
    """The one schema that a URL for other tools names (`?schema=app`), or None."""
    _, _, query = _split(url.strip()) or ("", "", "")
    named = {unquote(value) for name, value in _pairs(query) if name in _OF_SCHEMAS and value}
    single = len(named) == 1 and not any(mark in value for value in named for mark in ",$")
    return named.pop() if single else None


def _split(url: str) -> tuple[str, str, str] | None:
    """The scheme without a driver, what is before the `?`, and what is after it."""
    match = re.match(r"([a-z][a-z0-9.:-]*)(?:\+\w+)?://", url, re.IGNORECASE)
    if match is None:
        return None
    head, _, query = url[match.end() :].partition("?")
    return match[1].lower(), head, query


def _pairs(query: str) -> list[tuple[str, str]]:
    """The parameters that are not empty, as they are written."""
    return [
        (unquote(name), value)
        for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)
    ]


def _kept(query: str) -> Iterator[str]:
    """The parameters for libpq, as `name=value`."""
    known = _known()
    left_out = {*_OF_SCHEMAS, *" ".join(_OF_DRIVERS.values()).split()}
    values: dict[str, str] = {}
    for name, value in _with_sslmode(_pairs(query)):
        if name in left_out:
            continue
        if name not in known:
            raise DatabaseURLError(_UNESCAPED if "@" in query else _unknown(name))
        if values.setdefault(name, value) != value:
            raise DatabaseURLError(
                f"the database URL has the parameter {name} more than once: give it one value"
            )
    for name, value in values.items():
        yield f"{name}={value}"


def _with_sslmode(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """`sslmode` instead of `ssl`, unless both are there; with libpq's words."""
    both = any(name == "sslmode" for name, _ in pairs)
    for name, value in pairs:
        if name not in ("ssl", "sslmode"):
            yield name, value
        elif name == "sslmode" or not both:
            yield "sslmode", _SSL.get(value.lower(), value)


def _unknown(name: str) -> str:
    nearest = _nearest(name)
    hint = (
        f"did you mean {nearest}?"
        if nearest
        else "remove it, or use one of libpq's (sslmode, sslrootcert, connect_timeout,"
        " application_name, options, target_session_attrs …; PostgreSQL documentation, 34.1.2)"
    )
    return (
        f"the database URL has the parameter {name[:40]!r}, which PostgreSQL does not know: {hint}"
    )


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), _known(), 1)), None)


def _known() -> list[str]:
    """The parameters of libpq, without those for debugging."""
    return [each.keyword.decode() for each in pq.Conninfo.get_defaults() if each.dispchar != b"D"]


def _read(url: str) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.Error as error:
        raise DatabaseURLError(
            f"the database URL cannot be read ({_safe(error)}): {_LIKE}"
        ) from None


def _safe(error: psycopg.Error) -> str:
    """The error about a string that libpq cannot read, without what may be part of a password."""
    text = str(error).strip()
    option = re.fullmatch(r'invalid connection option "(.*)"', text)
    if option and (nearest := _nearest(option[1])):
        return f"{text}: did you mean {nearest}?"
    # What libpq names itself; the rest between quotes is from the URL, and may have quotes too.
    text = text.replace('"="', "=").replace('"]"', "]")
    return re.sub(r'".*"', "…", text, flags=re.DOTALL)


def _check_port(given: Mapping[str, str]) -> None:
    for port in given.get("port", "").split(","):
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise DatabaseURLError(
                f"the port in the database URL is not a number from 1 to 65535: {_LIKE}"
            )


def _check_values(given: Mapping[str, str]) -> None:
    for name in _INTEGERS & given.keys():
        if not given[name].isdecimal():
            raise DatabaseURLError(
                f"{name} in the database URL is a whole number, not {given[name][:40]!r}"
            )
    # libpq checks the words (sslmode, target_session_attrs …) before it connects. A folder that
    # does not exist keeps it from going further.
    elsewhere = {"host": "/nonexistent", "hostaddr": "", "port": "1"}
    tried = {name: value for name, value in {**given, **elsewhere}.items() if name != "service"}
    connection = pq.PGconn.connect_start(conninfo.make_conninfo("", **tried).encode())
    text = connection.error_message.decode(errors="replace").strip()
    connection.finish()
    # It could be about one of libpq's environment variables.
    if text.startswith("invalid ") and any(f'"{value}"' in text for value in given.values()):
        words = next((f": it is {words}" for name, words in _WORDS.items() if name in text), "")
        raise DatabaseURLError(f"the database URL has an {text}{words}")
