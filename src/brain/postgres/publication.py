"""The publication of the table: created where the rule in `blockers` allows it, and checked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import psycopg
import structlog
from psycopg import sql

from brain.postgres.blockers import HARMFUL, blockers, drop_statement
from brain.postgres.connection import Conn, codec_of, deadline, error_line
from brain.postgres.inspection import Inspection, inspect
from brain.postgres.names import shown
from brain.postgres.table import MissingTableError, Table, TableError, init_sql
from brain.postgres.unavailable import StreamUnavailable

log = structlog.get_logger()


async def ensure_publication(conn: Conn, table: Table, application: str) -> Inspection:
    """Create the publication if it is missing. Raises StreamUnavailable, TableError, psycopg.Error.

    `application` is the name under which a primary would know Brain, unless the URL sets another.
    """
    application = conn.info.parameter_status("application_name") or application
    found = await inspect(conn, table)
    table = found.table
    if found.listed and any(each.code in HARMFUL for each in blockers(found, application)):
        found = await _withdraw(conn, table, found)
    _raise_first(blockers(found, application))
    if statements := _statements(table, found):
        await _publish(conn, table, found, application, statements)
        found = await inspect(conn, table)
        table = found.table
    _raise_first(_omissions(found, table))
    return found


def _raise_first(unavailable: Iterator[StreamUnavailable]) -> None:
    if first := next(unavailable, None):
        raise first


async def keep_harmless(conn: Conn, table: Table, application: str) -> bool:
    """Take the table out of Brain's publication if that makes the application's UPDATEs fail: for a
    Brain that only polls. False if a lock is in the way, such as that of VACUUM. Raises TableError,
    psycopg.Error.
    """
    found = await inspect(conn, table)
    if not (found.listed and any(each.code in HARMFUL for each in blockers(found, application))):
        return True
    try:
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '200ms'")
            await _withdraw(conn, found.table, found)
    except psycopg.errors.LockNotAvailable:
        return False
    return True


async def _publish(
    conn: Conn,
    table: Table,
    found: Inspection,
    application: str,
    statements: Sequence[sql.Composed],
) -> None:
    try:
        async with conn.transaction():
            for statement in statements:
                await conn.execute(statement)
            # The statement may have waited for the table's lock, and another session may have
            # changed the table before. The rule is applied to the publication without the
            # statement, because a blocker rolls it back.
            now = await inspect(conn, table)
            before = replace(now, member=found.member, listed=found.listed)
            _raise_first(blockers(before, application))
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        pass  # another Brain created it first, or at the same time
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.ReadOnlySqlTransaction,  # default_transaction_read_only of the role
    ) as error:
        raise StreamUnavailable(
            f"the publication {shown(table.publication)} is missing: {error_line(error)}",
            _pasted(conn, statements),
            "publication",
        ) from error


async def _withdraw(conn: Conn, table: Table, found: Inspection) -> Inspection:
    """Take the table and its tree out of Brain's publication, if the role may."""
    # ONLY: each table is listed by itself, and one that inherited later is not.
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
                publication=shown(table.publication),
                tables=", ".join(str(Table(*each)) for each in found.listed),
            )
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedObject,
        psycopg.errors.UndefinedTable,
    ):
        pass  # the publication belongs to another role, or another Brain was first
    return await inspect(conn, table)


def _pasted(conn: Conn, statements: Sequence[sql.Composed]) -> str:
    return " ".join(f"{statement.as_string(conn)};" for statement in statements)


def _statements(table: Table, found: Inspection) -> list[sql.Composed]:
    """What creates the publication, or lets it have generated columns, and adds the table. Nothing
    if that does not help.
    """
    name = sql.Identifier(table.publication)
    statements: list[sql.Composed] = []
    if _lacks_generated(found):
        if not (found.publication or {}).get("owned"):
            return []
        text = "ALTER PUBLICATION {} SET (publish_generated_columns = stored)"
        statements.append(sql.SQL(text).format(name))
    if found.member is not None or _names_partitions(found):
        return statements
    if found.publication is not None:
        text = "ALTER PUBLICATION {} ADD TABLE {}"
        return [*statements, sql.SQL(text).format(name, table.sql)]
    # A plain table may become a partitioned one later, and the option costs it nothing.
    options = "publish_via_partition_root = true"
    if found.unpublished or any(each.generated for each in found.description.columns.values()):
        options += ", publish_generated_columns = stored"
    text = f"CREATE PUBLICATION {{}} FOR TABLE {{}} WITH ({options})"
    return [sql.SQL(text).format(name, table.sql)]


def _omissions(found: Inspection, table: Table) -> Iterator[StreamUnavailable]:
    """What the publication, as somebody created or changed it, leaves out."""
    for omission in _omitted(found, table):
        yield StreamUnavailable(
            f"the publication {shown(table.publication)} {omission}",
            f"{drop_statement(table)}; -- Brain creates it again",
            "publication",
        )


def _names_partitions(found: Inspection) -> bool:
    if found.publication is None or found.description.kind != "p":
        return False
    return not found.publication.get("pubviaroot")


def _omitted(found: Inspection, table: Table) -> Iterator[str]:
    publication, member = found.publication, found.member
    if _names_partitions(found):
        yield f"names partitions in its changes, not {table}"
    if publication is None or member is None:
        yield f"does not contain {table}"
        return
    if _lacks_generated(found):
        yield (
            "lacks a generated column of the replica identity, and makes the application's own"
            " UPDATEs fail"
        )
    for operation in ("insert", "update", "delete", "truncate"):
        if not publication[f"pub{operation}"]:
            yield f"leaves out every {operation}"
    if member.get("rowfilter"):
        yield "filters rows"
    published = member.get("attnames")
    wanted = {column.name for column in found.description.columns.values()}
    if published is not None and not wanted <= set(published):
        yield f"leaves out columns of {table}"


def _lacks_generated(found: Inspection) -> bool:
    """The publication exists, and is to have the stored generated columns of the identity too."""
    return bool(
        found.unpublished is not None
        and found.publication is not None
        and found.publication.get("pubgencols") != "s"
    )


# For `brain init-db`.


_OWN = """
SELECT p.pubname, bool_and(coalesce(s.nspname = %s AND c.relname = %s, true)) AND NOT {schemas}
  FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid
  LEFT JOIN pg_class c ON c.oid = r.prrelid LEFT JOIN pg_namespace s ON s.oid = c.relnamespace
 WHERE p.pubname = ANY (%s) AND NOT p.puballtables
 GROUP BY p.oid, p.pubname
HAVING count(r.prrelid) = 0 AND NOT {schemas} OR bool_or(s.nspname = %s AND c.relname = %s)
 ORDER BY p.pubname
"""

_SCHEMAS = "EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)"
"""Whether it has all tables of a schema. Since PostgreSQL 15, it may."""

_EXISTS = """
SELECT FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
 WHERE s.nspname = %s AND c.relname = %s
"""


async def removal(conn: Conn, table: Table, *, drop_table: bool) -> list[sql.Composed]:
    """The statements that remove what `initialize` creates. Raises psycopg.Error.

    A publication that lists other tables too only loses this one. One of all tables, or of a
    schema, is not Brain's.
    """
    name = (table.schema, table.name)
    own = _OWN.format(schemas=_SCHEMAS if conn.info.server_version >= 150_000 else "false")
    async with deadline():
        cursor = await conn.execute(own.encode(), (*name, list(table.publications), *name))
        found = await cursor.fetchall()
        exists = await (await conn.execute(_EXISTS, name)).fetchall()
    statements = [
        sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(str(publication)))
        if alone == "t"
        else sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(
            sql.Identifier(str(publication)), table.sql
        )
        for publication, alone in found
    ]
    if drop_table and exists:
        statements.append(sql.SQL("DROP TABLE IF EXISTS {}").format(table.sql))
    return statements


async def initialize(conn: Conn, table: Table, application: str) -> StreamUnavailable | None:
    """Create the table and its publication, where they are missing.

    Returns why Brain cannot stream the table by its publication. Raises TableError, psycopg.Error.
    """
    await conn.execute(init_sql(table).encode(codec_of(conn)))
    try:
        await ensure_publication(conn, table, application)
    except StreamUnavailable as unavailable:
        return unavailable
    return None


async def publication_sql(conn: Conn, table: Table, application: str) -> str:
    """What `initialize` would do about the publication of a table that exists, as SQL to paste.

    A comment where it would do nothing. "" if there is no table: `init_sql` then creates both.
    Raises psycopg.Error.
    """
    try:
        found = await inspect(conn, table)
    except MissingTableError:
        return ""
    except TableError as error:
        return _comment(str(error))
    table = found.table
    unavailable = next(blockers(found, application), None)
    if unavailable is None and (statements := _statements(table, found)):
        return _pasted(conn, statements)
    unavailable = unavailable or next(_omissions(found, table), None)
    if unavailable is None:
        return _comment(f"The publication {shown(table.publication)} exists, and is complete.")
    return _comment(polled(table, unavailable))


def polled(table: Table, unavailable: StreamUnavailable) -> str:
    """For people: that Brain polls the table, why, and what to do, on lines of their own."""
    text = f"Brain polls {table} and does not stream it: {unavailable.detail}"
    return f"{text}\n{unavailable.hint}".rstrip()


def _comment(text: str) -> str:
    return "\n".join(f"-- {line}" for line in text.splitlines())
