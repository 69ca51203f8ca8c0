"""Which field of a request has a value that its column cannot hold.

PostgreSQL names the type, and mostly the value, but not the column (PostgreSQL documentation, 53.8
"Error and Notice Message Fields": it is there only for errors about columns).
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql

from brain.api.errors import InvalidRequest, postgres_message
from brain.api.pool import fetch
from brain.contract.messages import shown
from brain.postgres.connection import Conn
from brain.postgres.table import Description, Table

_TRY = "SELECT jsonb_populate_record(NULL::{}, jsonb_build_object(%s::text, %s::text))"
"""A row of the table's type with one value. Unlike a cast, it has the column's own length."""


async def blamed(
    conn: Conn,
    table: Table,
    description: Description,
    values: Mapping[str, str | None],
    error: psycopg.DataError,
) -> Exception:
    """An InvalidRequest about the first of the `values` that causes this error, or the error."""
    query = sql.SQL(_TRY).format(table.in_query)
    for field, value in values.items():
        if value is None or field not in description.columns:
            continue
        try:
            await fetch(conn, (query, [description.columns[field].name, value]))
        except psycopg.Error as unfit:
            # A text for an array, or for a composite type, fails here for another reason.
            if unfit.diag.message_primary == error.diag.message_primary:
                message = f"{field} cannot be {shown(value)}: {postgres_message(error)}"
                return InvalidRequest(message, (field, message))
    return error
