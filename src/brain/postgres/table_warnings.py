"""What is doubtful about a table, although Brain can follow it: ids that may repeat, and times in a
zone that is not BRAIN_TIMEZONE. `brain serve` logs it, /readyz and `brain doctor` report it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
import structlog
from psycopg import sql

from brain.postgres.connection import APPLICATION, Conn, Session, deadline, error_line, parameters
from brain.postgres.source_state import SourceState, TableWarning
from brain.postgres.table import Description, Table
from brain.postgres.time_zone import TimeZone, without_zone

log = structlog.get_logger()


class TableWarnings:
    """Looks once after each connect, and when the catalog has changed."""

    def __init__(self, url: str, table: Table, zone: TimeZone, state: SourceState) -> None:
        self._url = url
        self._table = table
        self._zone = zone
        self._state = state
        self._seen: int | None = None

    def reset(self) -> None:
        """Look again, whatever the fingerprint: the database's TimeZone is no part of it."""
        self._seen = None

    async def look(self, conn: Conn, description: Description, seen: int | None) -> None:
        """`seen` is the catalog's fingerprint. Raises psycopg.OperationalError."""
        if seen == self._seen:
            return
        self._seen = seen
        found = table_warnings(conn, self._url, self._table, description, self._zone)
        try:
            self._state.warn([warning async for warning in found])
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:  # no reason not to follow the table
            log.info("table warnings unknown", detail=error_line(error))


async def table_warnings(
    conn: Conn, url: str, table: Table, description: Description, zone: TimeZone
) -> AsyncIterator[TableWarning]:
    """Raises psycopg.Error."""
    if warning := await _repeating_ids(conn, table, description):
        yield warning
    if columns := without_zone(description):
        writers = await _writers(conn, url, description)
        if warning := await _other_zone(conn, columns, writers, zone):
            yield warning


# Ids.

_IDS = """
SELECT EXISTS (
           SELECT FROM pg_index i
            WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
              AND i.indnkeyatts = 1 AND CASE i.indkey[0] WHEN 0 THEN (
                  SELECT array_agg(DISTINCT d.refobjsubid) = ARRAY[a.attnum::int] FROM pg_depend d
                   WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                     AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
                     AND d.refobjsubid > 0)
              ELSE i.indkey[0] = a.attnum END),
       NOT EXISTS (
           SELECT FROM pg_partitioned_table p, unnest(p.partattrs::int2[]) AS key (attnum)
            WHERE p.partrelid = ANY (%(tree)s::oid[])
              AND NOT EXISTS (SELECT FROM pg_attribute k WHERE k.attrelid = p.partrelid
                               AND k.attnum = key.attnum AND k.attname = a.attname))
FROM pg_attribute a
WHERE a.attrelid = %(oid)s AND a.attname = %(id)s AND NOT a.attisdropped
"""
"""Whether an index of id alone, or of an expression of it, is unique; whether one can be."""


async def _repeating_ids(conn: Conn, table: Table, description: Description) -> TableWarning | None:
    """A view says nothing about its ids."""
    if description.kind not in "rpm":
        return None
    column = description.columns["id"].name
    values = {"oid": description.oid, "tree": list(description.tree), "id": column}
    async with deadline():
        row = await (await conn.execute(_IDS, values)).fetchone()
    if row is None or (row[0] == "t" and not description.inherited):
        return None
    name, run_id = table.sql.as_string(), description.in_sql("id")
    if description.inherited or row[1] != "t":
        # An index of a partitioned table is unique only together with the partition key, and none
        # spans the tables that inherit from one.
        query = sql.SQL("SELECT {id}, count(*) FROM {table} GROUP BY {id} HAVING count(*) > 1;")
        repeated = query.format(id=sql.SQL(run_id), table=table.sql).as_string()
        hint = f"{repeated} -- make these unique: no index can"
    elif description.primary_key or description.kind == "m":
        hint = f"CREATE UNIQUE INDEX ON {name} ({run_id});"
    else:
        hint = f"ALTER TABLE {name} ADD PRIMARY KEY ({run_id});"
    return TableWarning(
        "id_unique",
        f"no index keeps two rows of {table} from having the same id",
        "Brain takes such rows for one run, so clients see the one that changed last, and the API"
        " answers 409",
        hint,
    )


# Time zones.


@dataclass(frozen=True, slots=True)
class _Writers:
    """The time zones of sessions that write the table."""

    ordinary: str | None
    """Of a role without a setting of its own. None: unknown."""
    roles: tuple[tuple[str, str, str], ...]
    """Those that have one: the role, where the setting counts (SQL), and the zone."""


_ROLES = """
SELECT DISTINCT ON (r.rolname) r.rolname,
       CASE WHEN s.setdatabase = 0 THEN ''
            ELSE pg_catalog.format(' IN DATABASE %%I', d.datname) END,
       substr(c.option, strpos(c.option, '=') + 1), r.rolname = session_user
FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
     JOIN pg_database d ON d.datname = current_database(), unnest(s.setconfig) AS c(option)
WHERE s.setdatabase IN (0, d.oid) AND c.option ILIKE 'timezone=%%'
  AND (r.rolname = session_user OR has_table_privilege(r.oid, %s::oid, 'INSERT, UPDATE'))
ORDER BY r.rolname, s.setdatabase DESC
"""


async def _writers(conn: Conn, url: str, description: Description) -> _Writers:
    """Our own sessions are in UTC, so one without our settings is asked."""
    async with deadline():
        found = await (await conn.execute(_ROLES, (description.oid,))).fetchall()
    roles = tuple((str(role), str(where), str(zone)) for role, where, zone, _ in found)
    if any(ours == "t" for *_, ours in found):
        return _Writers(None, roles)
    try:
        given = {**parameters(url, APPLICATION), "options": ""}
        async with await Session.connect(**given, autocommit=True) as other, deadline():
            row = await (await other.execute("SELECT current_setting('TimeZone')")).fetchone()
    except (psycopg.Error, OSError) as error:
        log.info("time zone of the database unknown", detail=error_line(error))
        return _Writers(None, roles)
    assert row is not None
    return _Writers(str(row[0]), roles)


_DIFFERENT = """
SELECT z FROM unnest(%s::text[]) WITH ORDINALITY AS s(z, n) WHERE EXISTS (
    SELECT FROM generate_series(now() - interval '2 years', now() + interval '1 year', '1 day') t
     WHERE t AT TIME ZONE z <> t AT TIME ZONE %s)
ORDER BY n
"""


async def _other_zone(
    conn: Conn, columns: list[str], writers: _Writers, zone: TimeZone
) -> TableWarning | None:
    names = " and ".join(columns)
    effect = f"Brain takes times without a zone for times in {zone} (BRAIN_TIMEZONE)"
    ordinary = () if writers.ordinary is None else (writers.ordinary,)
    asked = [*ordinary, *(each for _, _, each in writers.roles)]
    try:
        async with deadline():
            rows = await (await conn.execute(_DIFFERENT, (asked, zone.name))).fetchall()
    except psycopg.errors.InvalidParameterValue as error:
        return TableWarning(
            "time_zone",
            f"the database does not know the time zone of BRAIN_TIMEZONE: {error_line(error)}",
            f"POST and PATCH /api/runs cannot write {names}",
            "update the time zone data of PostgreSQL, or name an older zone of the same rules",
        )
    different = {row[0] for row in rows}
    if writers.ordinary in different:
        return TableWarning(
            "time_zone",
            f"sessions of this database write {names} in its TimeZone, {writers.ordinary}",
            effect,
            await _setting_hint(conn, writers.ordinary, zone),
            intended=zone.chosen,
        )
    roles = [each for each in writers.roles if each[2] in different]
    if not roles:
        return None
    role, _, found = roles[0]
    return TableWarning(
        "time_zone",
        f"the role {role} writes {names} in its TimeZone, {found}",
        effect,
        "\n".join(
            f"ALTER ROLE {sql.Identifier(role).as_string()}{where} SET TimeZone = '{zone}';"
            for role, where, _ in roles
        ),
        intended=zone.chosen,
    )


async def _setting_hint(conn: Conn, name: str | None, zone: TimeZone) -> str:
    try:
        return f"BRAIN_TIMEZONE={TimeZone.parse(name or '')}"
    except ValueError:  # POSIX rules, such as <+02>-02
        database = sql.Identifier(str(conn.info.dbname)).as_string()
        return f"ALTER DATABASE {database} SET TimeZone = '{zone}';"
