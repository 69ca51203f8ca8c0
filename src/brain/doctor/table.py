"""Whether the table exists, what the role may do with it, and which columns it has."""

from brain.contract.messages import FIELDS
from brain.doctor.context import Context
from brain.doctor.indexes import check_unique
from brain.doctor.report import NO_CHANGES, Finding, Level
from brain.postgres.column_map import guess
from brain.postgres.privileges import Missing, missing_privileges
from brain.postgres.table import TableError
from brain.postgres.table_warnings import table_warnings


def unusable(error: TableError) -> Finding:
    return Finding("table", "broken", str(error), NO_CHANGES, error.hint)


async def readable(context: Context) -> list[Finding]:
    missing = await _missing(context)
    if not missing.to_read:
        return []
    what = f"the role {context.user} may not read {context.table}"
    return [Finding("select", "broken", what, NO_CHANGES, "\n".join(missing.to_read))]


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
    """If BRAIN_SOURCE is poll. Otherwise it is a blocker."""
    if context.inspection.row_security is None or context.blockers:
        return []
    what = f"row security decides which rows of {context.table} the role {context.user} may see"
    detail = "clients see only these; Brain polls, because the stream has every row"
    return [Finding("row_security", "note", what, detail)]


async def warnings(context: Context) -> list[Finding]:
    """What `brain serve` warns of."""
    found = []
    async for warning in table_warnings(
        context.conn,
        context.url,
        context.table,
        context.inspection.description,
        context.decoder.zone,
    ):
        if any(blocker.hint.endswith(warning.hint) for blocker in context.blockers):
            continue  # another finding has this hint
        duplicates, hint = await check_unique(context, warning.hint)
        if any(finding.hint == hint for finding in context.report.findings):
            hint = ""  # the index that finds a run by its id
        level: Level = "note" if warning.intended else "better"
        what = f"{warning.detail}{duplicates}"
        found.append(Finding(warning.code, level, what, warning.effect, hint))
    return found


async def columns(context: Context) -> list[Finding]:
    description = context.inspection.description
    missing = [name for name in FIELDS if name not in description.columns]
    if not missing:
        return []
    what = f"the table has no column {', '.join(missing)}"
    usual = guess(missing, [column.name for column in description.others])
    hint = f"{context.table.columns.hint(usual)} # if that is what they mean" if usual else ""
    return [Finding("columns", "note", what, "messages do not have them; this is allowed", hint)]
