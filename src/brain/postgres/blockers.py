"""The rule for when a table may be published. `brain serve`, `init-db` and `doctor` all use it.

PostgreSQL documentation, 29.1 "Publication". Brain publishes a table only where that cannot harm
the application and where the stream then carries every change. A publication of a table without
a usable replica identity makes the *application's* UPDATEs and DELETEs fail (55000).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from psycopg import sql

from brain.postgres.inspection import PUBLISHES_GENERATED, Inspection
from brain.postgres.names import shown
from brain.postgres.table import Table
from brain.postgres.unavailable import StreamUnavailable, UnavailableCode

HARMFUL: tuple[UnavailableCode, ...] = ("replica_identity", "inheritance")
"""With these, a publication of the table makes the application's UPDATEs fail, or will do so with
the next table that inherits from it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table that may be published."""

    found: Inspection
    table: Table
    application: str
    """The name under which a primary knows Brain."""

    @property
    def inherited(self) -> bool:
        """Other tables inherit from it, and are not its partitions."""
        return self.found.description.inherited

    @property
    def harmed(self) -> bool:
        """A publication makes UPDATEs fail already."""
        return bool(self.found.unidentified and (self.found.member or self.found.listed))

    @property
    def alter(self) -> str:
        return f"ALTER TABLE {self.table.sql.as_string()}"

    @property
    def drop(self) -> str:
        return drop_statement(self.table)


def drop_statement(table: Table) -> str:
    return f"DROP PUBLICATION {sql.Identifier(table.publication).as_string()}"


def _standby(candidate: Candidate) -> StreamUnavailable | None:
    if not candidate.found.standby:
        return None
    return StreamUnavailable(
        "this server is a read replica", "name the primary in BRAIN_DATABASE_URL", "standby"
    )


def _view(candidate: Candidate) -> StreamUnavailable | None:
    if candidate.found.description.kind in "rp":
        return None
    detail = "the table is a view or a foreign table, whose changes are in no log of this server"
    return StreamUnavailable(detail, "", "view")


def _row_security(candidate: Candidate) -> StreamUnavailable | None:
    """The stream has every row. What SELECT shows is the truth."""
    security = candidate.found.row_security
    if security is None:
        return None
    role = sql.Identifier(security.role).as_string()
    return StreamUnavailable(
        f"row security decides which rows of {candidate.table} the role {security.role} may see,"
        " and the stream would show all of them",
        f"ALTER ROLE {role} BYPASSRLS;",
        "row_security",
    )


def _unlogged(candidate: Candidate) -> StreamUnavailable | None:
    if candidate.found.description.logged:
        return None
    detail = "the table is UNLOGGED or temporary"
    return StreamUnavailable(detail, f"{candidate.alter} SET LOGGED;", "unlogged")


def _unlogged_partition(candidate: Candidate) -> StreamUnavailable | None:
    """The publication could be made, and the stream would silently leave out the partition."""
    if candidate.found.unlogged is None:
        return None
    name, kind = candidate.found.unlogged
    if kind == "f":
        detail = f"the partition {name} is a foreign table, whose changes are in no log"
        return StreamUnavailable(detail, "", "view")
    detail = f"the partition {name} is UNLOGGED or temporary"
    return StreamUnavailable(detail, f"ALTER TABLE {name} SET LOGGED;", "unlogged")


def _inheritance(candidate: Candidate) -> StreamUnavailable | None:
    """A publication lists children as separate tables, with or without a key. It does not list
    children that inherit later.
    """
    if not candidate.inherited:
        return None
    table = candidate.table
    detail = (
        f"other tables inherit from {table} without being its partitions, "
        "and the stream would leave out their rows"
    )
    hint = "make it a partitioned table, or run ALTER TABLE … NO INHERIT for each of them"
    if candidate.harmed:
        detail += (
            f"; the publication {shown(table.publication)} makes the application's own UPDATEs fail"
        )
        hint = f"{candidate.drop}; -- then {hint}"
    return StreamUnavailable(detail, hint, "inheritance")


def _replica_identity(candidate: Candidate) -> StreamUnavailable | None:
    found, table = candidate.found, candidate.table
    description = found.description
    column = description.columns["id"].name
    if candidate.inherited or (column in description.identity and not found.unidentified):
        return None
    effect = "a publication could make"
    if candidate.harmed:
        effect = f"the publication {shown(table.publication)} makes"
    name, identity = found.unidentified or (table.sql.as_string(), description.replica_identity)
    if identity == "d" and not description.primary_key:
        hint = f"{candidate.alter} ADD PRIMARY KEY ({description.in_sql('id')});"
    elif identity == "n" and column in description.primary_key:
        hint = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    else:
        hint = f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
    return StreamUnavailable(
        f"the table has no replica identity that contains {shown(column)}, and {effect}"
        " the application's own UPDATEs fail",
        f"{candidate.drop}; {hint}" if candidate.harmed else hint,
        "replica_identity",
    )


def _virtual_identity(candidate: Candidate) -> StreamUnavailable | None:
    """REPLICA IDENTITY FULL contains every column, and no publication has a virtual one."""
    found = candidate.found
    if found.unpublished is None or found.unpublished[2] != "v":
        return None
    name, column, _ = found.unpublished
    effect = "a publication would make"
    hint, key = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;", found.description.primary_key
    if not key:
        hint = f"{candidate.alter} ADD PRIMARY KEY ({found.description.in_sql('id')}); {hint}"
    elif found.description.columns["id"].name not in key:
        hint = ""  # the key would not do either
    if found.member or found.listed:
        effect = f"the publication {shown(candidate.table.publication)} makes"
        hint = f"{candidate.drop}; {hint}".rstrip()
    return StreamUnavailable(
        f"the replica identity of {name} has the column {shown(column)}, which is computed when it"
        f" is read and which no publication has, so {effect} the application's own UPDATEs fail",
        hint,
        "replica_identity",
    )


def _virtual(candidate: Candidate) -> StreamUnavailable | None:
    if not candidate.found.virtual:
        return None
    detail = (
        f"the column {shown(candidate.found.virtual)} is computed when it is read, and is in no log"
    )
    return StreamUnavailable(detail, "", "virtual")


def _generated(candidate: Candidate) -> StreamUnavailable | None:
    columns = candidate.found.description.columns.values()
    generated = [column.name for column in columns if column.generated]
    if not generated or candidate.found.version >= PUBLISHES_GENERATED:
        return None
    return StreamUnavailable(
        f"the column {shown(generated[0])} is generated, and the stream of PostgreSQL before 18"
        " omits it",
        "",
        "generated",
    )


def _synchronous(candidate: Candidate) -> StreamUnavailable | None:
    names = candidate.found.synchronous_standby_names.replace("(", ",").split(",")
    # PostgreSQL compares these names without regard to case.
    names = [name.strip(' "()').lower() for name in names]
    if "*" not in names and candidate.application.lower() not in names:
        return None
    return StreamUnavailable(
        "synchronous_standby_names would make every commit wait for Brain",
        "list your standbys by name in synchronous_standby_names",
        "synchronous",
    )


Check: TypeAlias = Callable[[Candidate], StreamUnavailable | None]

CHECKS: tuple[Check, ...] = (
    _standby,
    _view,
    _row_security,
    _unlogged,
    _unlogged_partition,
    _inheritance,
    _replica_identity,
    _virtual_identity,
    _virtual,
    _generated,
    _synchronous,
)


def blockers(found: Inspection, application: str) -> Iterator[StreamUnavailable]:
    """Every reason why Brain must neither publish nor stream the table."""
    candidate = Candidate(found, found.table, application)
    for check in CHECKS:
        if unavailable := check(candidate):
            yield unavailable
            if check is _view:
                return  # the other checks are about tables
