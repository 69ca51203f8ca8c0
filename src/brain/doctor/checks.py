"""`brain doctor`: examines the database as Brain uses it, and reports what is wrong and what to do.

PostgreSQL's catalog does not say for certain whether the role may create the publication and open a
stream. So the doctor tries both, and leaves nothing behind: it creates the publication in a
transaction that it rolls back, and drops the slot of the stream at once. Its codes, details and
hints are those of /readyz.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from brain.doctor.connection import interrupted, pooler, unreachable, version
from brain.doctor.context import Check, Context, Thresholds, fetch
from brain.doctor.indexes import indexes
from brain.doctor.report import Report
from brain.doctor.resume import resume
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

if TYPE_CHECKING:
    from brain.doctor.nats import Nodes

CHECKS: tuple[Check, ...] = (
    readable,
    writable,
    row_security,
    columns,
    statuses,
    values,
    indexes,
    warnings,
    resume,
)
"""They run in this order. After a finding that is `broken`, no other check runs."""

STREAM_CHECKS: tuple[Check, ...] = (
    table_blockers,
    publication,
    slot,
    transactions,
    slot_log,
    unexplained,
    pooler,
)
"""They run after CHECKS, unless BRAIN_SOURCE is poll."""


async def examine(
    url: str,
    table: Table,
    decoder: Decoder,
    *,
    stream: bool = True,
    thresholds: Thresholds | None = None,
    records: Path | None = None,
    nodes: "Nodes | None" = None,
) -> Report:
    """`stream`: also check what only a stream needs. False if BRAIN_SOURCE is poll. `records`: the
    folder of the records, unless BRAIN_RESUME is 0. `nodes`: the log that several Brains share.
    """
    report = Report(redact(url), str(table))
    try:
        conn = await connect(url, APPLICATION, lock_timeout="2s")
    except psycopg.Error as error:
        report.findings.append(unreachable(error, url))
        return report
    try:
        async with conn:
            context = await _inspect(
                report,
                conn,
                url=url,
                table=table,
                decoder=decoder,
                stream=stream,
                thresholds=thresholds or Thresholds(),
                records=records,
            )
            if context is not None:
                await _run(context, stream=stream)
    except psycopg.Error as error:
        report.findings.append(interrupted(error))
    if nodes is not None:
        # The client of NATS is an extra.
        from brain.doctor.nats import nats  # noqa: PLC0415

        report.log = nodes.stream
        report.findings += await nats(nodes)
        if report.broken:
            report.source = "none"
    return report


async def _inspect(
    report: Report,
    conn: Conn,
    *,
    url: str,
    table: Table,
    decoder: Decoder,
    stream: bool,
    thresholds: Thresholds,
    records: Path | None,
) -> Context | None:
    """Read what the checks need. None if Brain cannot use the server or the table."""
    ((name, number, user, backend_pid),) = await fetch(
        conn,
        "SELECT current_setting('server_version'), current_setting('server_version_num'),"
        " current_user, pg_backend_pid()",
    )
    report.version = str(name)
    report.findings += version(report.version, int(str(number)))
    if report.broken:
        return None
    try:
        inspection = await inspect(conn, table)
    except TableError as error:
        report.findings.append(unusable(error))
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
        blockers=tuple(blockers(inspection, application)) if stream else (),
        records=records,
    )


async def _run(context: Context, *, stream: bool) -> None:
    report = context.report
    for check in CHECKS:
        report.findings += await check(context)
        if report.broken:
            return
    report.source = "poll"
    for check in STREAM_CHECKS if stream else (source_setting,):
        report.findings += await check(context)
    if stream and not context.unavailable:
        report.source = "replication"
