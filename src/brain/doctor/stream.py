"""Whether Brain can stream the table, and what prevents it."""

import psycopg

from brain.doctor.context import Context
from brain.doctor.indexes import check_unique
from brain.doctor.report import POLLS, Finding, polls
from brain.postgres.connection import APPLICATION
from brain.postgres.publication import ensure_publication
from brain.postgres.replication import Stream
from brain.postgres.unavailable import SlotBlocked, StreamUnavailable, from_error, from_sqlstate

MIN_SLOT_WAL = 64
"""Megabytes of max_slot_wal_keep_size below which an ordinary burst may invalidate the slot."""


async def source_setting(_: Context) -> list[Finding]:
    """The one check about streaming if BRAIN_SOURCE is poll."""
    return [Finding("chosen", "note", "BRAIN_SOURCE is poll", POLLS, "BRAIN_SOURCE=auto")]


async def table_blockers(context: Context) -> list[Finding]:
    """What rules out a publication: the rule that `brain serve` and `init-db` use."""
    findings = []
    for blocker in context.blockers:
        duplicates, hint = await check_unique(context, blocker.hint)
        findings.append(polls(blocker, also=duplicates, hint=hint))
    return findings


async def publication(context: Context) -> list[Finding]:
    """Creates it if it is missing, and rolls that back: no catalog says whether the role may."""
    if context.blockers:
        return []
    try:
        async with context.briefly():
            await ensure_publication(context.conn, context.table, APPLICATION)
    except StreamUnavailable as unavailable:
        context.failures.append(unavailable)
        return [polls(unavailable)]
    except psycopg.errors.LockNotAvailable:
        what = f"the publication was not tried: {context.table} is locked"
        return [Finding("publication", "note", what, "Brain tries for longer", "run this again")]
    return []


async def slot(context: Context) -> list[Finding]:
    """Opens a stream, with its temporary slot, and closes it."""
    if context.blockers:
        return []
    wait = context.thresholds.slot_wait
    try:
        stream = await Stream.open(
            context.url,
            context.table,
            context.inspection.description,
            context.decoder,
            application=APPLICATION,
            patience=wait,
        )
    except psycopg.Error as error:
        unavailable = from_error(error, context.user)
    else:
        await stream.close()
        return []
    if isinstance(unavailable, SlotBlocked):
        # If the transactions are still open, the next check finds them.
        detail = f"a slot waited {wait:g} s for a writing transaction, which has ended since"
        context.failures.append(SlotBlocked(detail, "run this again", unavailable.code))
        return []
    if unavailable.code in ("slots", "walsenders") and (used := await _slots_of_brain(context)):
        what = f"{unavailable.detail}; a running Brain uses one, {used[0]}"
        hint = await _capacity_hint(context, unavailable.code)
        return [Finding(unavailable.code, "note", what, "a second Brain would poll", hint)]
    context.failures.append(unavailable)
    hint = await _capacity_hint(context, unavailable.code)
    return [polls(unavailable, hint=hint), *await _other_settings(context, unavailable.code)]


async def _slots_of_brain(context: Context) -> list[str]:
    rows = await context.rows(
        "SELECT slot_name FROM pg_replication_slots WHERE active"
        " AND database = current_database() AND slot_name LIKE 'brain\\_%%'"
    )
    return [str(row[0]) for row in rows]


async def _other_settings(context: Context, code: str) -> list[Finding]:
    """What else would refuse the stream after the cause with this code is removed."""
    level, may_replicate, slots, senders = await context.row(
        "SELECT current_setting('wal_level'),"
        " (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),"
        " current_setting('max_replication_slots')::int"
        "  > (SELECT count(*) FROM pg_replication_slots),"
        " current_setting('max_wal_senders')::int > (SELECT count(*) FROM pg_stat_replication)"
    )
    sufficient = {
        "55000": level == "logical",
        "42501": may_replicate == "t",
        "53400": slots == "t",
        "53300": senders == "t",
    }
    missing = (from_sqlstate(state, context.user) for state, ok in sufficient.items() if not ok)
    return [
        polls(unavailable, hint=await _capacity_hint(context, unavailable.code))
        for unavailable in missing
        if unavailable.code != code
    ]


async def _capacity_hint(context: Context, code: str) -> str:
    """How to raise the limit that was reached; "" if the cause is not a limit."""
    name = {"slots": "max_replication_slots", "walsenders": "max_wal_senders"}.get(code)
    if name is None:
        return ""
    (now,) = await context.row("SELECT current_setting(%s)", [name])
    hint = f"ALTER SYSTEM SET {name} = {int(str(now)) + 4}; -- then restart PostgreSQL"
    if code == "slots":
        # An idle slot may belong to a standby that returns. So dropping it stays a comment, which
        # a paste does not run.
        for (idle,) in await context.rows(
            "SELECT quote_literal(slot_name) FROM pg_replication_slots WHERE NOT active ORDER BY 1",
        ):
            hint += f"\n-- or, if nobody needs it: SELECT pg_drop_replication_slot({idle});"
    return hint


async def transactions(context: Context) -> list[Finding]:
    """Open transactions that write: all of them if the slot waited in vain, else only long ones.

    Only superusers and members of pg_read_all_stats see the age and kind of other sessions.
    """
    if context.inspection.standby:
        return []
    blocked = any(isinstance(each, SlotBlocked) for each in context.failures)
    shortest = 0.0 if blocked else context.thresholds.long_transaction
    return [
        *await _open_transactions(context, shortest, unknown_age=blocked),
        *await _prepared_transactions(context, shortest),
    ]


_SLOT_WAITS = (
    "PostgreSQL creates a slot only after all open write transactions end: until then Brain polls."
    " The transaction also keeps WAL on the server's disk"
)


async def _open_transactions(
    context: Context, shortest: float, *, unknown_age: bool
) -> list[Finding]:
    findings = []
    for pid, user, age in await context.rows(
        "SELECT a.pid, coalesce(a.usename, a.backend_type, 'PostgreSQL'),"
        " extract(epoch FROM clock_timestamp() - a.xact_start)::int FROM pg_stat_activity a"
        " WHERE a.pid <> pg_backend_pid() AND a.pid IN (SELECT pid FROM pg_locks"
        "  WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted)"
    ):
        if unknown_age if age is None else int(age) >= shortest:
            since = "" if age is None else f" for {age} s"
            what = f"a writing transaction of {user} (pid {pid}) is open{since}"
            hint = f"SELECT pg_terminate_backend({pid}); -- or let it end"
            findings.append(Finding("slot_waits", "better", what, _SLOT_WAITS, hint))
    return findings


async def _prepared_transactions(context: Context, shortest: float) -> list[Finding]:
    return [
        Finding(
            "slot_waits",
            "better",
            f"the prepared transaction {gid} is open for {age} s",
            _SLOT_WAITS,
            f"ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED, in its database",
        )
        for gid, age in await context.rows(
            "SELECT quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::int"
            " FROM pg_prepared_xacts"
        )
        if int(str(age)) >= shortest
    ]


async def slot_log(context: Context) -> list[Finding]:
    if context.inspection.standby:
        return []
    (keep,) = await context.row(
        "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
    )
    if not 0 <= int(str(keep)) < MIN_SLOT_WAL:
        return []
    return [
        Finding(
            "slot_log",
            "better",
            f"max_slot_wal_keep_size is {keep} MB",
            "PostgreSQL invalidates Brain's slot when it falls a little behind,"
            " and Brain polls until it has another",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB';\nSELECT pg_reload_conf();",
        )
    ]


async def unexplained(context: Context) -> list[Finding]:
    """Every reason to poll that has no finding yet."""
    return [polls(each) for each in context.unavailable if not context.report.has(each.code)]
