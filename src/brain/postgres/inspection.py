"""What the catalog says about the table, its publication and the server."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from brain.postgres.connection import Conn, deadline
from brain.postgres.row_security import RowSecurity, row_security
from brain.postgres.table import Description, Table, describe

PUBLISHES_GENERATED = 180_000
"""The first server_version_num that publishes stored generated columns, if it is asked to, and that
refuses UPDATEs where a publication has only a part of the replica identity."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything a stream depends on.

    Brain compares two of them while it streams: a stream whose table or publication has changed may
    stop sending without an error.
    """

    description: Description
    table: Table
    """The table, and the publication that is its own, or would be."""
    publication: dict[str, Any] | None
    """Its row of pg_publication, and whether our role is its owner, or a member of that."""
    member: dict[str, Any] | None
    """The table's row of pg_publication_tables: from PostgreSQL 15, with columns and row filter."""
    listed: tuple[tuple[str, str], ...] = field(compare=False)
    """Schema and name of each table of the tree that the publication lists by name. Not compared:
    PostgreSQL may show a change here an instant after it shows the same change in `member`."""
    standby: bool
    synchronous_standby_names: str
    version: int
    """server_version_num."""
    unidentified: tuple[str, str] | None
    """A table whose UPDATEs a publication would make fail, and its relreplident. Only tables that
    hold rows: this one, a partition, or a published table that inherits from it."""
    unpublished: tuple[str, str, str] | None
    """A table that holds rows, a generated column in its replica identity (FULL has every column),
    and the pg_attribute.attgenerated of it, if a publication that lacks the column makes UPDATEs
    fail: since PostgreSQL 18. A publication may have stored ones (s), and no virtual one (v)."""
    files: str
    """The partitions' files. Nothing in a stream of the whole table says that one was truncated."""
    unlogged: tuple[str, str] | None
    """A partition whose changes are in no log, and its relkind: r unlogged, f foreign."""
    virtual: str | None
    """A column of the contract that PostgreSQL computes when it is read: it is in no log."""
    readable: bool
    """Our role may read the table. The stream shows it to every role that may replicate."""
    row_security: RowSecurity | None
    """Policies that restrict what our role sees: the stream has every row."""


_INSPECT = """
SELECT (SELECT to_jsonb(p) || jsonb_build_object('owned', pg_has_role(p.pubowner, 'USAGE'))
          FROM pg_publication p WHERE p.pubname = %(publication)s)::text,
       (SELECT to_jsonb(t) FROM pg_publication_tables t
         WHERE t.pubname = %(publication)s AND t.schemaname = %(schema)s
           AND t.tablename = %(name)s)::text,
       (SELECT json_agg(json_build_array(s.nspname, c.relname) ORDER BY s.nspname, c.relname)
          FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
          JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace s ON s.oid = c.relnamespace
         WHERE p.pubname = %(publication)s AND c.oid = ANY (%(tree)s::oid[]))::text,
       pg_is_in_recovery(), current_setting('synchronous_standby_names'),
       current_setting('server_version_num'),
       (SELECT json_build_array(leaf.oid::regclass, leaf.relreplident) FROM pg_class leaf
         WHERE leaf.relkind = 'r' AND leaf.oid = ANY (%(tree)s::oid[])
           AND (leaf.oid = %(oid)s OR leaf.relispartition OR EXISTS (
               SELECT FROM pg_publication_tables t JOIN pg_namespace s ON s.nspname = t.schemaname
                WHERE t.pubname = %(publication)s AND s.oid = leaf.relnamespace
                  AND t.tablename = leaf.relname))
           AND leaf.relreplident <> 'f'
           AND NOT EXISTS (
               SELECT FROM pg_index i
                WHERE i.indrelid = leaf.oid AND i.indisvalid AND i.indimmediate
                  AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary
                      WHEN 'i' THEN i.indisreplident ELSE false END)
         ORDER BY leaf.oid LIMIT 1)::text,
       (SELECT json_build_array(leaf.oid::regclass, a.attname, a.attgenerated)
          FROM pg_class leaf JOIN pg_attribute a ON a.attrelid = leaf.oid
         WHERE leaf.relkind = 'r' AND leaf.oid = ANY (%(tree)s::oid[])
           AND (leaf.oid = %(oid)s OR leaf.relispartition)
           AND a.attgenerated <> '' AND NOT a.attisdropped
           AND current_setting('server_version_num')::int >= %(publishes_generated)s
           AND (leaf.relreplident = 'f' OR EXISTS (
               SELECT FROM pg_index i
                WHERE i.indrelid = leaf.oid AND a.attnum = ANY (i.indkey)
                  AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary
                      WHEN 'i' THEN i.indisreplident END))
         ORDER BY a.attgenerated = 's', leaf.oid, a.attnum LIMIT 1)::text,
       (SELECT string_agg(pg_catalog.concat(leaf.oid, '/', leaf.relfilenode), ' ' ORDER BY leaf.oid)
          FROM pg_class leaf
         WHERE leaf.relispartition AND leaf.oid <> %(oid)s AND leaf.oid = ANY (%(tree)s::oid[])),
       (SELECT json_build_array(leaf.oid::regclass, leaf.relkind) FROM pg_class leaf
         WHERE leaf.relispartition AND leaf.oid <> %(oid)s AND leaf.oid = ANY (%(tree)s::oid[])
           AND (leaf.relkind = 'f' OR leaf.relkind = 'r' AND leaf.relpersistence <> 'p')
         ORDER BY leaf.oid LIMIT 1)::text,
       (SELECT a.attname FROM pg_attribute a
         WHERE a.attrelid = %(oid)s AND a.attgenerated = 'v' AND a.attname = ANY (%(fields)s)
         ORDER BY a.attnum LIMIT 1),
       has_table_privilege(%(oid)s::oid, 'SELECT')
         AND has_schema_privilege(%(schema)s, 'USAGE')
"""


# The usual name is taken if it lists another table, whose usual name it is too, and not this one. A
# publication that lists both, as earlier versions made it, stays that of both.
_NAME = """
SELECT CASE WHEN EXISTS (SELECT FROM pg_publication WHERE pubname = %(other)s) OR EXISTS (
            SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
              JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace s ON s.oid = c.relnamespace
             WHERE p.pubname = %(usual)s AND c.oid <> ALL (%(tree)s::oid[])
               AND pg_catalog.concat('brain_', s.nspname, '_', c.relname)::name = p.pubname)
       THEN NOT EXISTS (
            SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
             WHERE p.pubname = %(usual)s AND r.prrelid = ANY (%(tree)s::oid[]))
       END
"""


async def _publication(conn: Conn, table: Table, tree: Collection[int]) -> Table:
    """The table with the name of its publication."""
    usual, other = table.publications
    values = {"usual": usual, "other": other, "tree": list(tree)}
    row = await (await conn.execute(_NAME, values)).fetchone()
    assert row is not None
    return replace(table, published_as=other if row[0] == "t" else usual)


async def inspect(conn: Conn, table: Table) -> Inspection:
    """Raises TableError, psycopg.Error."""
    async with deadline():
        description = await describe(conn, table)
        table = await _publication(conn, table, description.tree)
    values = {
        "publication": table.publication,
        "schema": table.schema,
        "name": table.name,
        "oid": description.oid,
        "tree": list(description.tree),
        "publishes_generated": PUBLISHES_GENERATED,
        "fields": [column.name for column in description.columns.values()],
    }
    async with deadline():
        row = await (await conn.execute(_INSPECT, values)).fetchone()
    assert row is not None
    publication, member, listed, standby, names, version, *rest = row
    unidentified, unpublished, files, unlogged, virtual, readable = rest
    return Inspection(
        description=description,
        table=table,
        publication=json.loads(publication) if publication else None,
        member=json.loads(member) if member else None,
        listed=tuple((schema, name) for schema, name in json.loads(listed or "[]")),
        standby=standby == "t",
        synchronous_standby_names=str(names),
        version=int(str(version)),
        unidentified=tuple(json.loads(unidentified)) if unidentified else None,
        unpublished=tuple(json.loads(unpublished)) if unpublished else None,
        files=files or "",
        unlogged=tuple(json.loads(unlogged)) if unlogged else None,
        virtual=virtual,
        readable=readable == "t",
        row_security=await row_security(conn, description.oid),
    )
