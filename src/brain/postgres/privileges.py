"""What a role lacks to read and to write the table, as the SQL that grants it."""

from dataclasses import dataclass

from psycopg import sql

from brain.postgres.connection import Conn, deadline
from brain.postgres.table import Table

_PRIVILEGES = """
SELECT current_user, has_schema_privilege(%(schema)s, 'USAGE'),
       has_table_privilege(%(oid)s::oid, 'SELECT'), has_table_privilege(%(oid)s::oid, 'INSERT'),
       has_table_privilege(%(oid)s::oid, 'UPDATE'),
       (SELECT string_agg(s.oid::regclass::text, ', ' ORDER BY s.oid)
          FROM pg_depend d JOIN pg_class s ON s.oid = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
           AND d.refobjid = %(oid)s AND d.deptype = 'a'
           AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') END)
"""
"""An identity column needs no right on its sequence (deptype i); a serial column does (a)."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Statements to run as the table's owner; none if the role may do it."""

    to_read: tuple[str, ...]
    to_write: tuple[str, ...]
    """Besides those."""


async def missing_privileges(conn: Conn, table: Table, oid: int) -> Missing:
    async with deadline():
        row = await (
            await conn.execute(_PRIVILEGES, {"schema": table.schema, "oid": oid})
        ).fetchone()
    assert row is not None
    user, usage, select, insert, update, sequences = row
    role = sql.Identifier(str(user)).as_string()
    name = table.sql.as_string()
    read, write = [], []
    if usage == "f":
        schema = sql.Identifier(table.schema).as_string()
        read.append(f"GRANT USAGE ON SCHEMA {schema} TO {role};")
    if select == "f":
        # A poll reads xmin, which no grant on columns covers.
        read.append(f"GRANT SELECT ON {name} TO {role}; -- on the whole table, not on columns")
    if not insert == update == "t":
        write.append(f"GRANT INSERT, UPDATE ON {name} TO {role};")
    if sequences is not None:
        write.append(f"GRANT USAGE ON SEQUENCE {sequences} TO {role};")
    return Missing(tuple(read), tuple(write))
