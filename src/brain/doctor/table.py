"""Whether the table exists, what the role may do with it, and which columns it has."""

from brain.contract.messages import FIELDS
from brain.doctor.context import Context
from brain.doctor.report import NOTHING, Finding
from brain.postgres.privileges import Missing, missing_privileges
from brain.postgres.table import MissingTableError, Table, TableError


def unusable(table: Table, error: TableError) -> Finding:
    hint = ""
    if isinstance(error, MissingTableError):
        hint = f"brain init-db  # or name another table than {table} in BRAIN_TABLE"
    return Finding("table", "broken", str(error), NOTHING, hint)


async def readable(context: Context) -> list[Finding]:
    missing = await _missing(context)
    if not missing.to_read:
        return []
    what = f"the role {context.user} may not read {context.table}"
    return [Finding("select", "broken", what, NOTHING, "\n".join(missing.to_read))]


async def writable(context: Context) -> list[Finding]:
    missing = await _missing(context)
    if not missing.to_write:
        return []
    return [
        Finding(
            "write",
            "note",
            f"the role {context.user} may not write {context.table}",
            "POST and PATCH /api/runs are refused; the role can follow the table without it",
            "\n".join(missing.to_write),
        )
    ]


async def _missing(context: Context) -> Missing:
    return await missing_privileges(context.conn, context.table, context.inspection.description.oid)


async def row_security(context: Context) -> list[Finding]:
    oid = context.inspection.description.oid
    (active,) = await context.row("SELECT row_security_active(%s::oid)", (oid,))
    if active == "f":
        return []
    return [
        Finding(
            "row_security",
            "better",
            f"row security hides rows of {context.table} from the role {context.user}",
            "the stream carries every row, a query only those that the role may see:"
            " the two would contradict each other",
            f"ALTER ROLE {context.sql_role} BYPASSRLS;",
        )
    ]


async def columns(context: Context) -> list[Finding]:
    missing = [name for name in FIELDS if name not in context.inspection.description.columns]
    if not missing:
        return []
    what = f"the table has no column {', '.join(missing)}"
    return [Finding("columns", "note", what, "messages do not have them; this is allowed")]
