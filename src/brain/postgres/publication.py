"""What must hold before the table can be streamed: the table's own, its publication, and the server around them.

PostgreSQL documentation, 29.1 "Publication". A publication is made only where it cannot hurt: on a table without a usable
replica identity it would make the *application's* UPDATEs and DELETEs fail (55000).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import psycopg
import structlog
from psycopg import sql

from brain.contract.messages import FIELDS
from brain.postgres.connection import Conn, deadline, error_line
from brain.postgres.table import Description, Table, describe

log = structlog.get_logger()

UnavailableCode: TypeAlias = Literal[
    # The role, the server, and what stands between.
    "role",
    "pg_hba",
    "slots",
    "walsenders",
    "wal_level",
    "pooler",
    "unsupported",
    "standby",
    "synchronous",
    # The table and its publication.
    "view",
    "unlogged",
    "replica_identity",
    "inheritance",
    "virtual",
    "generated",
    "publication",
    # What passes.
    "slot_waits",
    "held_back",
    "lost",
    "preparing",
    # Why there is no source at all.
    "connecting",
    "away",
    "table",
    "fault",
    # By BRAIN_SOURCE, and all else.
    "chosen",
    "other",
]
"""Why the source is not a better one, in a word, for /metrics and scripts; the sentence beside it says more."""


class StreamUnavailable(Exception):  # noqa: N818 - a state of affairs, not a fault of ours
    """The table cannot be streamed now. `cure` is what to run or set; "" if it mends itself. Where it is SQL, it can be pasted
    into psql as it stands.
    """

    def __init__(self, detail: str, hint: str = "", code: UnavailableCode = "other") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.code = code


class SlotBlocked(StreamUnavailable):
    """An open writing transaction holds up the slot."""


_REFUSALS: dict[str, tuple[UnavailableCode, str, str]] = {
    # SQLSTATE: what it means here, what to do. PostgreSQL documentation, Appendix A.
    "42501": ("role", "the role may not replicate", "ALTER ROLE {user} REPLICATION;"),
    # A stream names a database, so the lines for that database count, as for any connection; those for `replication` do not
    # (seen on 15 and 18). What refuses it has changed since Brain's other connection was let in.
    "28000": (
        "pg_hba",
        "pg_hba.conf lets no new connection in",
        "give {user} a line for this database in pg_hba.conf, and run SELECT pg_reload_conf();",
    ),
    "53400": (
        "slots",
        "no replication slot is free",
        "raise max_replication_slots, or drop a slot that nobody uses",
    ),
    "53300": (
        "walsenders",
        "no connection for replication is free",
        "raise max_wal_senders or max_connections",
    ),
    "55000": (
        "wal_level",
        "wal_level is not logical",
        "ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL",
    ),
    "08P01": (
        "pooler",
        "what answers is a pooler, which passes no replication on",
        "name the database itself in BRAIN_DATABASE_URL",
    ),
    "0A000": ("unsupported", "this server has no logical replication", ""),
}

_SAID = {
    "max_wal_senders": "53300",
    "pg_hba.conf": "28000",
    "startup parameter": "08P01",
    "WAL": "42501",
    "walsender": "42501",
    "too many c": "53300",
    "connection slots": "53300",
}
"""What stands in an error that ends the start of a connection, most of it in any language: libpq keeps its SQLSTATE to itself."""


def from_error(error: psycopg.Error, user: str) -> StreamUnavailable:
    """What an error on the way to a stream means, and its cure."""
    if error.sqlstate == "55P03":
        return SlotBlocked(
            "a writing transaction is open, and a slot waits for it to end", code="slot_waits"
        )
    sqlstate = error.sqlstate or next(
        (sqlstate for word, sqlstate in _SAID.items() if word in str(error)), ""
    )
    found = from_sqlstate(sqlstate, user)
    return StreamUnavailable(f"{found.detail}: {error_line(error)}", found.hint, found.code)


def from_sqlstate(sqlstate: str, user: str) -> StreamUnavailable:
    """What an SQLSTATE means on the way to a stream."""
    code, detail, hint = _REFUSALS.get(sqlstate, ("other", "replication was refused", ""))
    return StreamUnavailable(detail, hint.format(user=sql.Identifier(user).as_string()), code)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What streaming depends on. The watch compares: a stream whose table or publication changed may go silent."""

    description: Description
    publication: dict[str, Any] | None
    """Its row of pg_publication."""
    member: dict[str, Any] | None
    """The table's row of pg_publication_tables: columns and row filter, from PostgreSQL 15 on."""
    listed: tuple[tuple[str, str], ...] = field(compare=False)
    """Schema and name of those of the table's tree that the publication lists one by one. PostgreSQL may say so an instant later than
    `member`, which tells of the same change."""
    standby: bool
    synchronous: str
    version: int
    helpless: tuple[str, str] | None
    """A table that holds rows (this one, a partition, or a published one that inherits) whose UPDATEs a publication would make fail, and
    its relreplident."""
    virtual: str | None
    """A column of the contract that is computed when it is read: no log contains it."""


_FACTS = """
SELECT (SELECT to_jsonb(p) FROM pg_publication p WHERE p.pubname = %(publication)s)::text,
       (SELECT to_jsonb(t) FROM pg_publication_tables t
         WHERE t.pubname = %(publication)s AND t.schemaname = %(schema)s AND t.tablename = %(name)s)::text,
       (SELECT json_agg(json_build_array(s.nspname, c.relname) ORDER BY s.nspname, c.relname)
          FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
          JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace s ON s.oid = c.relnamespace
         WHERE p.pubname = %(publication)s AND c.oid = ANY (%(tree)s::oid[]))::text,
       pg_is_in_recovery(), current_setting('synchronous_standby_names'), current_setting('server_version_num'),
       (SELECT json_build_array(leaf.oid::regclass, leaf.relreplident) FROM pg_class leaf
         WHERE leaf.relkind = 'r' AND leaf.oid = ANY (%(tree)s::oid[])
           AND (leaf.oid = %(oid)s OR leaf.relispartition OR EXISTS (
               SELECT FROM pg_publication_tables t JOIN pg_namespace s ON s.nspname = t.schemaname
                WHERE t.pubname = %(publication)s AND s.oid = leaf.relnamespace AND t.tablename = leaf.relname))
           AND leaf.relreplident <> 'f'
           AND NOT EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = leaf.oid AND i.indisvalid AND i.indimmediate
                  AND CASE leaf.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
         LIMIT 1)::text,
       (SELECT a.attname FROM pg_attribute a
         WHERE a.attrelid = %(oid)s AND a.attgenerated = 'v' AND a.attname = ANY (%(fields)s) LIMIT 1)
"""


async def inspect(conn: Conn, table: Table) -> Inspection:
    """Raises TableError."""
    async with deadline():
        description = await describe(conn, table)
    names = {
        "publication": table.publication,
        "schema": table.schema,
        "name": table.name,
        "oid": description.oid,
        "tree": list(description.tree),
        "fields": list(FIELDS),
    }
    async with deadline():
        row = await (await conn.execute(_FACTS, names)).fetchone()
    assert row is not None
    publication, member, listed, standby, synchronous, version, helpless, virtual = row
    return Inspection(
        description,
        json.loads(publication) if publication else None,
        json.loads(member) if member else None,
        tuple((schema, name) for schema, name in json.loads(listed or "[]")),
        standby == "t",
        str(synchronous),
        int(str(version)),
        tuple(json.loads(helpless)) if helpless else None,
        virtual,
    )


async def ensure_publication(conn: Conn, table: Table, application: str) -> Inspection:
    """The facts, with the publication made if it was missing. Raises Refused, TableError, psycopg.Error.

    `application` is the name by which a primary would know us, unless the URL gives another.
    """
    application = conn.info.parameter_status("application_name") or application
    found = await inspect(conn, table)
    if found.listed and any(each.code in _HARMFUL for each in blockers(found, table, application)):
        found = await _withdraw(conn, table, found)
    if detail := next(blockers(found, table, application), None):
        raise detail
    if found.publication is None or found.member is None:
        for statement in statements(table, found):
            try:
                async with conn.transaction():
                    await conn.execute(statement)
                    # It holds the table's lock now, for which it may have waited until the table was another.
                    now = await inspect(conn, table)
                    # As it will be when this has been rolled back.
                    before = replace(now, member=found.member, listed=found.listed)
                    if detail := next(blockers(before, table, application), None):
                        raise detail
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                pass  # another Brain was quicker, or as quick
            except psycopg.errors.InsufficientPrivilege as error:
                hint = "\n".join(f"{each.as_string(conn)};" for each in statements(table, found))
                raise StreamUnavailable(
                    f"the publication {table.publication} is missing: {error_line(error)}",
                    hint,
                    "publication",
                ) from error
        found = await inspect(conn, table)
    if detail := _unpublished(found, table):
        raise detail
    return found


_HARMFUL: tuple[UnavailableCode, ...] = ("replica_identity", "inheritance")
"""Why a publication must not have the table: its application's UPDATEs fail, or would with the next table that inherits from it."""


async def _withdraw(conn: Conn, table: Table, found: Inspection) -> Inspection:
    """Take the table and its like out of the publication that bears Brain's name, if we may."""
    # ONLY: each is listed for itself, and one that inherited later is not.
    names = sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(sql.Identifier(*each)) for each in found.listed
    )
    name = sql.Identifier(table.publication)
    try:
        if not found.standby:
            async with conn.transaction():
                await conn.execute(
                    sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(name, names)
                )
            log.warning(
                "taken out of the publication",
                publication=table.publication,
                tables=", ".join(map(".".join, found.listed)),
            )
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedObject,
        psycopg.errors.UndefinedTable,
    ):
        pass  # it is not ours, or another Brain was quicker
    return await inspect(conn, table)


def statements(table: Table, found: Inspection) -> list[sql.Composed]:
    """What makes the publication complete."""
    name = sql.Identifier(table.publication)
    if found.publication is not None:
        return [sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, table.sql)]
    options = ["publish_via_partition_root = true"] if found.description.kind == "p" else []
    if any(
        found.description.columns[field].generated
        for field in FIELDS
        if field in found.description.columns
    ):
        options.append("publish_generated_columns = stored")
    text = f" WITH ({', '.join(options)})" if options else ""
    return [sql.SQL("CREATE PUBLICATION {} FOR TABLE {}" + text).format(name, table.sql)]


def blockers(found: Inspection, table: Table, application: str) -> Iterator[StreamUnavailable]:
    """Why the server or the table rules out a stream, whatever the publication."""
    description = found.description
    generated = [c.name for c in description.columns.values() if c.generated and c.name in FIELDS]
    # PostgreSQL compares these names without regard to case.
    names = [name.strip(' "()').lower() for name in found.synchronous.replace("(", ",").split(",")]
    alter = f"ALTER TABLE {table.sql.as_string()}"
    harms = found.helpless and (found.member or found.listed)
    drop = f"DROP PUBLICATION {sql.Identifier(table.publication).as_string()}"
    inherited = description.kind == "r" and len(description.tree) > 1
    if found.standby:
        yield StreamUnavailable(
            "this server is a read replica", "name the primary in BRAIN_DATABASE_URL", "standby"
        )
    if description.kind not in "rp":
        yield StreamUnavailable(
            "what is followed is a view or a foreign table, which has no log of its own", "", "view"
        )
        return
    if not description.logged:
        yield StreamUnavailable(
            "the table is UNLOGGED or temporary", f"{alter} SET LOGGED;", "unlogged"
        )
    if inherited:
        # Its publication would take the children in as tables of their own, keys or not; one made later it would not.
        hint = "make it a partitioned table, or end that with ALTER TABLE … NO INHERIT for each of them"
        yield StreamUnavailable(
            f"other tables inherit from {table} without being its partitions, and the stream would leave their rows out"
            + (
                f"; the publication {table.publication} makes the application's own UPDATEs fail"
                if harms
                else ""
            ),
            f"{drop}; -- then {hint}" if harms else hint,
            "inheritance",
        )
    elif "id" not in description.identity or found.helpless:
        name, identity = found.helpless or ("", description.replica_identity)
        if identity == "d" and not description.primary_key:
            hint = f"{alter} ADD PRIMARY KEY (id);"
        elif identity == "n" and "id" in description.primary_key:
            hint = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
        else:
            hint = f"{f'ALTER TABLE {name}' if name else alter} REPLICA IDENTITY FULL;"
        yield StreamUnavailable(
            "the table has no replica identity that contains id, and "
            + (
                f"the publication {table.publication} makes"
                if harms
                else "a publication could make"
            )
            + " the application's own UPDATEs fail",
            f"{drop}; {hint}" if harms else hint,
            "replica_identity",
        )
    if found.virtual:
        yield StreamUnavailable(
            f"the column {found.virtual} is computed when it is read, and stands in no log",
            "",
            "virtual",
        )
    if generated and found.version < 180000:
        yield StreamUnavailable(
            f"the column {generated[0]} is generated, which the stream leaves out before PostgreSQL 18",
            "",
            "generated",
        )
    if "*" in names or application.lower() in names:
        yield StreamUnavailable(
            "synchronous_standby_names would make every commit wait for Brain",
            "list your standbys by name in synchronous_standby_names",
            "synchronous",
        )


def _unpublished(found: Inspection, table: Table) -> StreamUnavailable | None:
    """Why the publication, as somebody made it, would not tell us everything."""
    drop = (
        f"DROP PUBLICATION {sql.Identifier(table.publication).as_string()}; -- Brain makes it anew"
    )
    if (
        found.publication
        and found.description.kind == "p"
        and not found.publication.get("pubviaroot")
    ):
        return StreamUnavailable(
            f"the publication {table.publication} tells of partitions, not of {table}",
            drop,
            "publication",
        )
    if found.publication is None or found.member is None:
        return StreamUnavailable(
            f"the publication {table.publication} does not contain {table}", drop, "publication"
        )
    for operation in ("insert", "update", "delete", "truncate"):
        if not found.publication[f"pub{operation}"]:
            return StreamUnavailable(
                f"the publication {table.publication} leaves out every {operation}",
                drop,
                "publication",
            )
    if found.member.get("rowfilter"):
        return StreamUnavailable(
            f"the publication {table.publication} filters rows", drop, "publication"
        )
    published = found.member.get("attnames")
    wanted = [field for field in FIELDS if field in found.description.columns]
    if published is not None and not set(wanted) <= set(published):
        return StreamUnavailable(
            f"the publication {table.publication} leaves out columns of {table}",
            drop,
            "publication",
        )
    return None
