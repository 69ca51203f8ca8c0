"""What must hold before the table can be streamed: the table's own, its publication, and the server around them.

PostgreSQL documentation, 29.1 "Publication". A publication is made only where it cannot hurt: on a table without a usable
replica identity it would make the *application's* UPDATEs and DELETEs fail (55000).
"""

import json
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from brain.database import Conn, why
from brain.messages import FIELDS
from brain.runs import Description, Table, describe


class Refused(Exception):  # noqa: N818 - a state of affairs, not a fault of ours
    """The table cannot be streamed now. `cure` is what to run or set; "" if it mends itself."""

    def __init__(self, reason: str, cure: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.cure = cure


class SlotWaits(Refused):
    """An open writing transaction holds up the slot."""


_REFUSALS: dict[str, tuple[str, str]] = {
    # SQLSTATE: what it means here, what to do. PostgreSQL documentation, Appendix A.
    "42501": ("the role may not replicate", "ALTER ROLE {user} REPLICATION"),
    "28000": ("pg_hba.conf or the role refuses a replication connection", "ALTER ROLE {user} REPLICATION"),
    "53400": ("no replication slot is free", "raise max_replication_slots, or drop a slot that nobody uses"),
    "53300": ("no connection for replication is free", "raise max_wal_senders or max_connections"),
    "55000": ("wal_level is not logical", "ALTER SYSTEM SET wal_level = logical, then restart PostgreSQL"),
    "08P01": (
        "what answers is a pooler, which passes no replication on",
        "name the database itself in BRAIN_DATABASE_URL",
    ),
    "0A000": ("this server has no logical replication", ""),
}


def refusal(error: psycopg.Error, user: str) -> Refused:
    """What an error on the way to a stream means, and its cure."""
    if error.sqlstate == "55P03":
        return SlotWaits("a writing transaction is open, and a slot waits for it to end")
    reason, cure = _REFUSALS.get(error.sqlstate or "", ("replication was refused", ""))
    return Refused(f"{reason}: {why(error)}", cure.format(user=f'"{user}"'))


@dataclass(frozen=True, slots=True)
class Facts:
    """What streaming depends on. The watch compares: a stream whose table or publication changed may go silent."""

    description: Description
    publication: dict[str, Any] | None
    """Its row of pg_publication."""
    member: dict[str, Any] | None
    """The table's row of pg_publication_tables: columns and row filter, from PostgreSQL 15 on."""
    standby: bool
    synchronous: str
    version: int


_FACTS = """
SELECT (SELECT to_jsonb(p) FROM pg_publication p WHERE p.pubname = %(publication)s)::text,
       (SELECT to_jsonb(t) FROM pg_publication_tables t
         WHERE t.pubname = %(publication)s AND t.schemaname = %(schema)s AND t.tablename = %(name)s)::text,
       pg_is_in_recovery(), current_setting('synchronous_standby_names'), current_setting('server_version_num')
"""


async def facts(conn: Conn, table: Table) -> Facts:
    """Raises TableError."""
    description = await describe(conn, table)
    names = {"publication": table.publication, "schema": table.schema, "name": table.name}
    row = await (await conn.execute(_FACTS, names)).fetchone()
    assert row is not None
    publication, member, standby, synchronous, version = row
    return Facts(
        description,
        json.loads(publication) if publication else None,
        json.loads(member) if member else None,
        standby == "t",
        str(synchronous),
        int(str(version)),
    )


async def ensure(conn: Conn, table: Table, application: str) -> Facts:
    """The facts, with the publication made if it was missing. Raises Refused, TableError, psycopg.Error."""
    found = await facts(conn, table)
    if reason := _unfit(found, application):
        raise reason
    if found.publication is None or found.member is None:
        for statement in statements(table, found):
            try:
                await conn.execute(statement)
            except psycopg.errors.DuplicateObject:
                pass  # another Brain was quicker
            except psycopg.errors.InsufficientPrivilege as error:
                cure = "; ".join(each.as_string(conn) for each in statements(table, found))
                raise Refused(
                    f"the publication {table.publication} is missing: {why(error)}", cure
                ) from error
        found = await facts(conn, table)
    if reason := _unpublished(found, table):
        raise reason
    return found


def statements(table: Table, found: Facts) -> list[sql.Composed]:
    """What makes the publication complete."""
    name = sql.Identifier(table.publication)
    if found.publication is not None:
        return [sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, table.sql)]
    options = ["publish_via_partition_root = true"] if found.description.kind == "p" else []
    if any(
        found.description.columns[field].generated for field in FIELDS if field in found.description.columns
    ):
        options.append("publish_generated_columns = stored")
    text = f" WITH ({', '.join(options)})" if options else ""
    return [sql.SQL("CREATE PUBLICATION {} FOR TABLE {}" + text).format(name, table.sql)]


def _unfit(found: Facts, application: str) -> Refused | None:
    """Why the server or the table rules out a stream, whatever the publication."""
    description = found.description
    generated = [c.name for c in description.columns.values() if c.generated and c.name in FIELDS]
    names = [name.strip(' "()') for name in found.synchronous.replace("(", ",").split(",")]
    if found.standby:
        return Refused("this server is a read replica", "name the primary in BRAIN_DATABASE_URL")
    if description.kind not in "rp":
        return Refused("what is followed is a view or a foreign table, which has no log of its own")
    if not description.logged:
        return Refused("the table is UNLOGGED or temporary", "ALTER TABLE … SET LOGGED")
    if "id" not in description.identity:
        return Refused(
            "the table's replica identity does not contain id, and a publication could make the application's own UPDATEs fail",
            "ALTER TABLE … ADD PRIMARY KEY (id)",
        )
    if generated and found.version < 180000:
        return Refused(
            f"the column {generated[0]} is generated, which the stream leaves out before PostgreSQL 18"
        )
    if "*" in names or application in names:
        return Refused(
            "synchronous_standby_names would make every commit wait for Brain",
            "list your standbys by name in synchronous_standby_names",
        )
    return None


def _unpublished(found: Facts, table: Table) -> Refused | None:
    """Why the publication, as somebody made it, would not tell us everything."""
    if found.publication is None or found.member is None:
        return Refused(f"the publication {table.publication} does not contain {table}")
    drop = f"DROP PUBLICATION {table.publication}; Brain makes it anew"
    for operation in ("insert", "update", "delete", "truncate"):
        if not found.publication[f"pub{operation}"]:
            return Refused(f"the publication {table.publication} leaves out every {operation}", drop)
    if found.description.kind == "p" and not found.publication.get("pubviaroot"):
        return Refused(f"the publication {table.publication} tells of partitions, not of {table}", drop)
    if found.member.get("rowfilter"):
        return Refused(f"the publication {table.publication} filters rows", drop)
    published = found.member.get("attnames")
    wanted = [field for field in FIELDS if field in found.description.columns]
    if published is not None and not set(wanted) <= set(published):
        return Refused(f"the publication {table.publication} leaves out columns of {table}", drop)
    return None
