"""`brain doctor`: examines the database as Brain uses it, and reports what is wrong and what to do.

No catalog says for sure whether the publication can be created and a stream opened. So the doctor
tries both: one in a transaction that it rolls back, the other with a slot that it drops at once. It
changes nothing. Its words are those of /readyz.
"""

import psycopg
from psycopg import sql

from brain.doctor.connection import interrupted, pooler, unreachable, version
from brain.doctor.context import Check, Context, Thresholds, fetch
from brain.doctor.indexes import indexes
from brain.doctor.report import Report
from brain.doctor.rows import statuses, values
from brain.doctor.stream import (
    publication,
    slot,
    slot_log,
    source_setting,
    table_blockers,
    transactions,
    unexplained,
)
from brain.doctor.table import columns, readable, row_security, unusable, warnings, writable
from brain.postgres.blockers import blockers
from brain.postgres.connection import APPLICATION, Conn, connect, redact
from brain.postgres.decoder import Decoder
from brain.postgres.inspection import inspect
from brain.postgres.table import Table, TableError

CHECKS: tuple[Check, ...] = (
    readable,
    writable,
    row_security,
    columns,
    statuses,
    values,
    indexes,
    warnings,
)
"""In this order, until one finds something `broken`."""

STREAM_CHECKS: tuple[Check, ...] = (
    table_blockers,
    publication,
    slot,
    transactions,
    slot_log,
    unexplained,
    pooler,
)
"""After them, unless BRAIN_SOURCE is poll."""


async def examine(
    url: str,
    table: Table,
    decoder: Decoder,
    *,
    stream: bool = True,
    thresholds: Thresholds | None = None,
) -> Report:
    """`stream` is false if BRAIN_SOURCE is poll: what only a stream needs is not checked."""
    report = Report(redact(url), str(table))
    try:
        conn = await connect(url, APPLICATION, lock_timeout="2s")
    except psycopg.Error as error:
        report.findings.append(unreachable(error))
        return report
    try:
        async with conn:
            context = await _prepare(
                report,
                conn,
                url=url,
                table=table,
                decoder=decoder,
                stream=stream,
                thresholds=thresholds or Thresholds(),
            )
            if context is not None:
                await _run(context, STREAM_CHECKS if stream else (source_setting,))
    except psycopg.Error as error:
        report.findings.append(interrupted(error))
    return report


async def _prepare(
    report: Report,
    conn: Conn,
    *,
    url: str,
    table: Table,
    decoder: Decoder,
    stream: bool,
    thresholds: Thresholds,
) -> Context | None:
    """What the checks need. None if the server or the table cannot be used at all."""
    ((name, number, user, backend_pid),) = await fetch(
        conn,
        "SELECT current_setting('server_version'), current_setting('server_version_num'),"
        " current_user, pg_backend_pid()",
    )
    report.version = str(name)
    report.findings += version(report.version, int(str(number)))
    if report.status == 2:
        return None
    try:
        inspection = await inspect(conn, table)
    except TableError as error:
        report.findings.append(unusable(table, error))
        return None
    application = conn.info.parameter_status("application_name") or APPLICATION
    return Context(
        conn=conn,
        url=url,
        table=table,
        decoder=decoder,
        inspection=inspection,
        user=str(user),
        backend_pid=int(str(backend_pid)),
        thresholds=thresholds,
        report=report,
        blockers=tuple(blockers(inspection, table, application)) if stream else (),
    )


async def _run(context: Context, stream_checks: tuple[Check, ...]) -> None:
    report = context.report
    for check in CHECKS:
        report.findings += await check(context)
        if report.status == 2:
            return
        report.source = "poll"
    for check in stream_checks:
        report.findings += await check(context)
    if "chosen" not in report and not context.unavailable:
        report.source = "replication"


async def remove(url: str, table: Table) -> str:
    """Drop what Brain created besides the table: the publication. Raises psycopg.Error."""
    name = sql.Identifier(table.publication)
    async with await connect(url, APPLICATION) as conn:
        await conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))
    return f"the publication {table.publication} is removed; a running Brain creates it again"
