"""The session has Brain's settings, whatever a role or a database has set."""

import asyncio

import pytest
from psycopg import AsyncConnection, OperationalError, errors

from brain.postgres.connection import (
    SESSION,
    configure,
    connect,
    deadline,
    error_line,
    parameters,
)
from brain.postgres.database_url import parse_url
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.proxy import Proxy


async def test_an_error_shows_no_password() -> None:
    with pytest.raises(OperationalError) as refused:
        await connect("postgresql://u:secret@127.0.0.1:1/d", "test")
    assert "secret" not in error_line(refused.value)
    assert "\n" not in error_line(refused.value)
    assert error_line(ValueError()) == "ValueError"
    assert (
        error_line(OperationalError("cannot read postgresql://u:secret@h/d"))
        == "cannot read postgresql://…@h/d"
    )


async def test_the_error_line_has_the_sqlstate(database: str) -> None:
    conn = await connect(database, "test")
    async with conn:
        with pytest.raises(errors.UndefinedTable) as refused:
            await conn.execute("SELECT * FROM nothing")
    assert error_line(refused.value) == 'relation "nothing" does not exist (42P01)'


async def settings(url: str, *names: str, statement_timeout: str = "0") -> list[str | None]:
    conn = await connect(url, "test", statement_timeout=statement_timeout)
    async with conn:
        return [
            (await (await conn.execute(f"SHOW {name}".encode())).fetchall())[0][0] for name in names
        ]


async def test_the_session_overrides_a_role_and_a_database(
    database: str, superuser_url: str
) -> None:
    name = superuser_url.rpartition("/")[2]
    odd = {
        "datestyle": "'SQL, DMY'",
        "timezone": "'Asia/Kolkata'",
        "client_encoding": "'LATIN1'",
        "intervalstyle": "iso_8601",
        "extra_float_digits": "-15",
        "bytea_output": "escape",
        "default_transaction_isolation": "serializable",
        "row_security": "off",
        "search_path": "odd",
        "quote_all_identifiers": "on",
        "statement_timeout": "1",  # the last: it holds for these statements as well
    }
    for setting, value in odd.items():
        execute(superuser_url, f"ALTER ROLE cecelia IN DATABASE {name} SET {setting} = {value}")
        execute(superuser_url, f"ALTER DATABASE {name} SET {setting} = {value}")
    names = [*SESSION, "client_encoding", "search_path"]
    found = dict(zip(names, await settings(database, *names), strict=True))
    assert found == {
        **SESSION,
        "datestyle": "ISO, MDY",
        "default_transaction_isolation": "read committed",
        "client_encoding": "UTF8",
        "search_path": "odd",
    }

    conn = await connect(database, "test")
    async with conn:
        query = (
            "SELECT timestamptz '2026-11-21 06:32:03.5+05:30', 33.3::float8, 30::float8, '€', true,"
            " 'x'::char(3), ARRAY[1, 2]"
        )
        row = await (await conn.execute(query)).fetchone()
    assert row == ("2026-11-21 01:02:03.5+00", "33.3", "30", "€", "t", "x  ", "{1,2}")


async def test_options_of_the_url_are_kept(database: str) -> None:
    url = parse_url(
        f"{database}?options=-c%20search_path%3Done,two%20-c%20datestyle%3DGerman&application_name=mine&connect_timeout=9"
    )
    names = ("search_path", "datestyle", "application_name", "statement_timeout")
    assert await settings(url, *names, statement_timeout="7s") == [
        "one,two",
        "ISO, MDY",
        "mine",
        "7s",
    ]
    assert parameters(url, "test")["connect_timeout"] == "9"
    assert await settings(database, "application_name") == ["test"]


async def test_every_type_arrives_as_text(database: str) -> None:
    execute(
        database,
        "CREATE TYPE state AS ENUM ('a'); CREATE DOMAIN low AS int;"
        " CREATE TYPE pair AS (a int, b text)",
    )
    async with await AsyncConnection.connect(**parameters(database, "test")) as conn:
        await configure(conn)
        query = """SELECT 1::int2, 2::int8, 3.50::numeric, gen_random_uuid(), '{"a":1}'::jsonb,
            '\\x00'::bytea, now(), now()::date, interval '1 day', int4range(1, 2), inet '::1',
            'a'::state, 5::low, (1, 'x')::pair, ARRAY['a'::state], NULL, 'x'::name, 7::oid"""
        row = await (await conn.execute(query)).fetchone()
    assert row is not None
    assert all(isinstance(value, str) for value in row if value is not None)
    assert row[:3] == ("1", "2", "3.50")
    assert row[4:6] == ('{"a": 1}', "\\x00")


async def test_a_deadline_ends_a_query_that_is_never_answered(database: str) -> None:
    """Psycopg first asks the server to cancel: the deadline ends that too."""
    with Proxy(database) as proxy:
        conn = await connect(proxy.url, "test")
        proxy.fall_silent()
        with pytest.raises(OperationalError, match=r"waiting for an answer for 0 s"):
            async with asyncio.timeout(PATIENCE), deadline(0.3):
                await conn.execute("SELECT 1")
        await conn.close()
