"""Which field of a request has a value that the table does not take.

PostgreSQL names the type, and mostly the value, but not the column; of a CHECK it names the
constraint (PostgreSQL documentation, 53.8 "Error and Notice Message Fields").
"""

import json
from collections.abc import Mapping
from typing import TypeAlias

import psycopg
from psycopg import errors, sql

from brain.api.errors import InvalidRequest, postgres_message
from brain.api.pool import fetch
from brain.contract.messages import shown
from brain.postgres.connection import Conn
from brain.postgres.table import Description, Table

Values: TypeAlias = Mapping[str, str | None]

_TRY = "SELECT pg_catalog.jsonb_populate_record(NULL::{}, jsonb_build_object(%s::text, %s::text))"
"""A row of the table's type with one value. Unlike a cast, it has the column's own length."""

_CHECK = """
SELECT pg_get_constraintdef(k.oid),
       (SELECT json_agg(a.attname) FROM pg_attribute a
         WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey))::text
  FROM pg_constraint k
 WHERE k.contype = 'c' AND k.conrelid = ANY (%s::oid[]) AND k.conname = %s
"""


async def blamed(
    conn: Conn, table: Table, description: Description, values: Values, error: psycopg.Error
) -> Exception:
    """An InvalidRequest about the `values` that cause this error, or the error itself."""
    fields = await _of_type(conn, table, description, values, error)
    if not fields and isinstance(error, errors.CheckViolation):
        fields = await _of_check(conn, description, values, error)
    return InvalidRequest("; ".join(fields.values()), *fields.items()) if fields else error


async def _of_type(
    conn: Conn, table: Table, description: Description, values: Values, error: psycopg.Error
) -> dict[str, str]:
    """The first value that its column's type, or domain, does not take for this reason."""
    query = sql.SQL(_TRY).format(table.in_query)
    for field, value in values.items():
        if value is None or field not in description.columns:
            continue
        try:
            await fetch(conn, (query, [description.columns[field].name, value]))
        except psycopg.Error as unfit:
            # A text for an array, or for a composite type, fails here for another reason.
            if unfit.diag.message_primary == error.diag.message_primary:
                return {field: f"{field} cannot be {shown(value)}: {postgres_message(error)}"}
    return {}


async def _of_check(
    conn: Conn, description: Description, values: Values, error: errors.CheckViolation
) -> dict[str, str]:
    """Every value of a column that the constraint is about."""
    name = error.diag.constraint_name
    rows = await fetch(conn, (sql.SQL(_CHECK).format(), [list(description.tree), name]))
    rule, columns = rows[0] if rows else (None, None)
    if rule is None:  # the constraint has been dropped, or is being dropped
        return {}
    about = {description.field(column) for column in json.loads(columns or "[]")}
    return {
        field: f"{field} cannot be {shown(value)}: the table's constraint {name} is {rule}"
        for field, value in values.items()
        if field in about
    }
