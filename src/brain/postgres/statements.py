"""SQL that has parameters."""

from typing import TypeAlias

from psycopg import sql

Statement: TypeAlias = tuple[sql.Composed, list[object]]
"""The SQL, and the values of its parameters."""


def escaped(part: sql.Composable) -> str:
    """As SQL for a query that has parameters, in which psycopg takes a % for a placeholder."""
    return part.as_string().replace("%", "%%")
