"""The API's connections to the database."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import psycopg
from psycopg_pool import AsyncConnectionPool

from brain.postgres.connection import Conn, Row, Session, configure, deadline, parameters
from brain.postgres.statements import Statement

Pool: TypeAlias = AsyncConnectionPool[Conn]

CONNECTIONS = 8
"""For all requests of the API. concurrency.py shares them out by address."""

STATEMENT_DEADLINE = 15.0
"""Seconds. `statement_timeout` is shorter; this one also covers a server that does not answer."""


@asynccontextmanager
async def open_pool(url: str) -> AsyncIterator[Pool]:
    """Opens at once, whether or not the database answers, and connects with the first request.

    `url` is one that postgres.database_url.parse_url returned.
    """
    # The pool warns at every try. postgres/follow.py logs once what is wrong with the database.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    pool: Pool = AsyncConnectionPool(
        connection_class=Session,
        # A client that locks a row for minutes must not use up the pool.
        kwargs={
            **parameters(url, "brain-api", statement_timeout="10s", lock_timeout="3s"),
            "autocommit": True,
        },
        configure=configure,
        check=_check,
        min_size=0,
        max_size=CONNECTIONS,
        open=False,
        timeout=2.0,
        # Then it gives up, and the next request tries again. By default the pauses grow to minutes.
        reconnect_timeout=2.0,
    )
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close(timeout=1.0)


async def _check(conn: Conn) -> None:
    # Without the deadline, a connection whose packets vanish keeps its request waiting for ever.
    async with deadline(1.0):
        await AsyncConnectionPool.check_connection(conn)


async def fetch(conn: Conn, statement: Statement) -> list[Row]:
    """Raises psycopg.Error."""
    query, values = statement
    async with deadline(STATEMENT_DEADLINE):
        try:
            return await (await conn.execute(query, values)).fetchall()
        except UnicodeEncodeError as error:
            encoding = conn.info.parameter_status("server_encoding")
            raise psycopg.errors.UntranslatableCharacter(
                f"the database's encoding, {encoding}, has no character "
                f"{error.object[error.start]!a}"
            ) from error
