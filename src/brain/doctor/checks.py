"""brain doctor: looks at the database as Brain would, end to end, and says what is wrong, why it matters, and what to run.

What can be tried is tried, in a transaction that is rolled back and over a slot that goes at once: whether the publication can be
made, and whether a stream can be had, no catalog knows for sure. Nothing is changed. The words are those of /readyz.
"""

import json
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import sql

from brain.contract.messages import FIELDS, ID, STATUS
from brain.postgres.connection import Conn, Text, connect, deadline, error_line, redact
from brain.postgres.decoder import Decoder
from brain.postgres.publication import (
    Inspection,
    SlotBlocked,
    StreamUnavailable,
    blockers,
    ensure_publication,
    from_error,
    from_sqlstate,
    inspect,
)
from brain.postgres.replication import Stream
from brain.postgres.table import Table, TableError

APPLICATION = "brain"
"""What Brain calls itself: synchronous_standby_names may name it."""

PATIENCE = 3.0
"""Seconds that a slot is waited for. A transaction that writes for longer is what Brain would be waiting for."""

LONG = 60
"""Seconds after which an open writing transaction is worth a word where no slot could be tried."""

LARGE = 10_000
"""Rows from which on a missing index is felt."""

MAX_GROUPED = 1_000_000
"""Rows among which ids that stand there twice are looked for."""

SAMPLE = 1000
"""Rows that are read as Brain reads them."""

LISTED = 10
"""Ids of rows that are shown as examples."""

LEAST_WAL = 64
"""Megabytes of max_slot_wal_keep_size below which an ordinary burst may take the slot away."""

OLDEST, TESTED = 130_000, 150_000

Level: TypeAlias = Literal["broken", "better", "note"]

STATUSES: dict[Level, int] = {"broken": 2, "better": 1, "note": 0}
"""The exit status for the worst finding; 0 without any."""

POLLS = (
    "Brain polls instead of streaming: a change is seen up to 0.1 s late, and later where the table is large, of several"
    " changes between two polls only the last is seen, and an UPDATE that changes nothing is not seen at all"
)
NOTHING = "Brain cannot read the table, and keeps trying; until then clients receive no changes"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """One word, for scripts; where Brain would poll because of it, it is /readyz's `cause`."""
    level: Level
    what: str
    detail: str
    hint: str
    """What to run or to set; SQL can be pasted into psql as it stands. "" if nothing can be done, or nothing need be."""


@dataclass(slots=True)
class Report:
    database: str
    table: str
    version: str = ""
    source: Literal["none", "poll", "replication"] = "none"
    """What Brain would follow the table by."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        return max((STATUSES[finding.level] for finding in self.findings), default=0)

    def add(self, check: str, level: Level, what: str, detail: str, hint: str = "") -> None:
        self.findings.append(Finding(check, level, what, detail, hint))

    def polls(self, unavailable: StreamUnavailable, hint: str = "") -> None:
        """A reason why Brain would poll; `cure` if more is known of it than `refused` does."""
        self.add(unavailable.code, "better", unavailable.detail, POLLS, hint or unavailable.hint)

    def json(self) -> str:
        return json.dumps({"status": self.status} | asdict(self), indent=2)

    def text(self) -> str:
        lines = [
            f"{self.database}{f', PostgreSQL {self.version}' if self.version else ''}, table {self.table}",
            "",
        ]
        marks = {"broken": "does not work", "better": "could be better", "note": "to know"}
        for found in sorted(self.findings, key=lambda found: -STATUSES[found.level]):
            lines.append(f"{marks[found.level]}: {found.what}")
            lines.append(f"  why   {found.detail}.")
            lines += [
                f"  {'     ' if i else 'hint '} {line}"
                for i, line in enumerate(found.hint.splitlines())
            ]
            lines.append("")
        conclusion = {
            "none": f"Brain cannot follow {self.table} as it is.",
            "poll": f"Brain follows {self.table} by polling.",
            "replication": f"Brain streams {self.table}.",
        }
        return "\n".join([*lines, conclusion[self.source]])


async def examine(url: str, table: Table, decoder: Decoder, *, stream: bool = True) -> Report:
    """`stream` False: BRAIN_SOURCE is poll, and what only a stream needs is not looked at."""
    report = Report(redact(url), str(table))
    try:
        conn = await connect(url, APPLICATION, lock_timeout="2s")
    except psycopg.Error as error:
        pooler = "startup parameter" in str(error)
        report.add(
            "pooler" if pooler else "away", "broken", error_line(error), NOTHING, _let_in(error)
        )
        return report
    try:
        async with conn:
            await _examine(report, conn, url, table, decoder, stream=stream)
    except psycopg.Error as error:
        report.add(
            "away",
            "broken",
            f"the look at it was cut short: {error_line(error)}",
            NOTHING,
            "run this again",
        )
    return report


async def _examine(
    report: Report, conn: Conn, url: str, table: Table, decoder: Decoder, *, stream: bool
) -> None:
    version, number, user, backend = (
        str(value)
        for value in await _one(
            conn,
            "SELECT current_setting('server_version'), current_setting('server_version_num'), current_user, pg_backend_pid()",
        )
    )
    report.version = version
    if int(number) < OLDEST:
        report.add(
            "version",
            "broken",
            f"PostgreSQL {version} has no pg_current_snapshot()",
            NOTHING,
            "upgrade it to 15 or newer",
        )
        return
    if int(number) < TESTED:
        report.add(
            "version",
            "note",
            f"PostgreSQL {version} is older than what Brain is tested on",
            "it should work",
        )
    try:
        found = await inspect(conn, table)
    except TableError as error:
        report.add(
            "table", "broken", str(error), NOTHING, _init(table) if "no table" in str(error) else ""
        )
        return
    if not await _rights(report, conn, table, found, user):
        return
    report.source = "poll"
    await _rows(report, conn, table, found, decoder)
    unfits = list(
        blockers(found, table, conn.info.parameter_status("application_name") or APPLICATION)
    )
    hints = {each.hint for each in unfits} if stream else set()
    await _indexes(report, conn, table, found, decoder, hints=hints)
    if not stream:
        report.add("chosen", "note", "BRAIN_SOURCE is poll", POLLS, "BRAIN_SOURCE=auto")
        return
    for unavailable in unfits:
        twice, hint = await _unique(conn, table, unavailable.hint)
        report.add(unavailable.code, "better", unavailable.detail + twice, POLLS, hint)
    refusals = unfits
    if not unfits:
        opening = Stream.open(
            url, table, found.description, decoder, application=APPLICATION, patience=PATIENCE
        )
        tried = (
            await _publication(report, conn, table),
            await _stream(report, conn, user, opening),
        )
        refusals = [unavailable for unavailable in tried if unavailable is not None]
    report.source = "poll" if refusals else "replication"
    if not found.standby:
        await _transactions(
            report,
            conn,
            all_of_them=any(isinstance(unavailable, SlotBlocked) for unavailable in refusals),
        )
        await _log(report, conn)
    for unavailable in refusals:
        # Why Brain polls is never left out.
        if all(each.check != unavailable.code for each in report.findings):
            report.polls(unavailable)
    if int(backend) != conn.info.backend_pid and all(
        each.check != "pooler" for each in report.findings
    ):
        report.add(
            "pooler",
            "better",
            "a pooler stands between, and hands each transaction to another session",
            "it costs a hop, and not every pooler passes replication on",
            from_sqlstate("08P01", user).hint,
        )


_LET_IN = {
    "startup parameter": from_sqlstate("08P01", "").hint,
    # 28P01, 28000, 3D000, 53300
    "password": "set the right role and password in BRAIN_DATABASE_URL, with %40 for an @, %2F for a / and %25 for a % in them",
    'role "(.+)" does not exist': "CREATE ROLE {} LOGIN REPLICATION; -- or name another in BRAIN_DATABASE_URL",
    'role "(.+)" is not permitted to log in': "ALTER ROLE {} LOGIN; -- or name another in BRAIN_DATABASE_URL",
    "pg_hba.conf": "give the role a line for this database in pg_hba.conf, and run SELECT pg_reload_conf();",
    'database "(.+)" does not exist': "CREATE DATABASE {}; -- or name the right one in BRAIN_DATABASE_URL",
    "too many c|connection slots": "let fewer connect, or raise max_connections and restart PostgreSQL",
    "(?:resolve host|translate host name)": "no such host is known here: mend its name in BRAIN_DATABASE_URL, or the name resolution",
    "Connection refused|No such file": "start PostgreSQL there, or name the right host and port in BRAIN_DATABASE_URL",
}
"""What stands in the error of a connection that was not to be had, and its cure: libpq keeps the SQLSTATE to itself."""


def _let_in(error: psycopg.Error) -> str:
    for words, hint in _LET_IN.items():
        if match := re.search(words, str(error)):
            return (
                hint.replace("{}", sql.Identifier(match[1]).as_string())
                if match.re.groups
                else hint
            )
    return (
        "see that it runs, and that BRAIN_DATABASE_URL names the right role, password and database"
    )


def _init(table: Table) -> str:
    return f"brain init-db  (or another table: BRAIN_TABLE, which is {table})"


# Rights.


async def _rights(report: Report, conn: Conn, table: Table, found: Inspection, user: str) -> bool:
    """False: the table cannot be read."""
    usage, select, insert, update, secured = await _one(
        conn,
        "SELECT has_schema_privilege(%(schema)s, 'USAGE'), has_table_privilege(%(oid)s::oid, 'SELECT'),"
        " has_table_privilege(%(oid)s::oid, 'INSERT'), has_table_privilege(%(oid)s::oid, 'UPDATE'), row_security_active(%(oid)s::oid)",
        {"schema": table.schema, "oid": found.description.oid},
    )
    role, name = sql.Identifier(user).as_string(), table.sql.as_string()
    hints = []
    if usage == "f":
        hints.append(f"GRANT USAGE ON SCHEMA {sql.Identifier(table.schema).as_string()} TO {role};")
    if select == "f":
        hints.append(f"GRANT SELECT ON {name} TO {role}; -- on the whole table, not on columns")
    if hints:
        report.add(
            "select", "broken", f"the role {user} may not read {table}", NOTHING, "\n".join(hints)
        )
        return False
    if insert == "f" or update == "f":
        report.add(
            "write",
            "note",
            f"the role {user} may not write {table}",
            "POST and PATCH /api/runs are refused; to follow the table it needs no more than it has",
            f"GRANT INSERT, UPDATE ON {name} TO {role};",
        )
    if secured == "t":
        report.add(
            "row_security",
            "better",
            f"row security hides rows of {table} from the role {user}",
            "the stream tells of every row, and a query only of what the role may see: Brain would contradict itself",
            f"ALTER ROLE {role} BYPASSRLS;",
        )
    return True


# Rows.


async def _rows(
    report: Report, conn: Conn, table: Table, found: Inspection, decoder: Decoder
) -> None:
    missing = [name for name in FIELDS if name not in found.description.columns]
    if missing:
        report.add(
            "columns",
            "note",
            f"the table has no column {', '.join(missing)}",
            "messages leave them out; that is in order",
        )
    words = decoder.words("queued", "running", "completed", "failed")
    # As the column prints it: a cast would take the blanks of a char(n) away.
    known_word = sql.SQL("format('%%s', r.status) = ANY (%s::text[])")
    unknown = sql.SQL("SELECT DISTINCT r.status FROM {} r WHERE NOT {} LIMIT 10").format(
        table.sql, known_word
    )
    sample = sql.SQL("SELECT {} FROM {} r WHERE {} LIMIT {}").format(
        found.description.select("r", decoder.max_text), table.sql, known_word, SAMPLE
    )
    try:
        async with _briefly(conn):
            strange = [row[0] for row in await _all(conn, unknown, [words])]
            rows = await _all(conn, sample, [words])
    except psycopg.errors.QueryCanceled:
        what = "whether every word of status is one of the contract's was not looked at"
        report.add("status", "note", what, "the table is so large that it would take more than 5 s")
        return
    if strange:
        said = ", ".join(sorted("NULL" if word is None else repr(word[:40]) for word in strange))
        report.add(
            "status",
            "better",
            f"rows of {table} have a status that the contract does not have: {said}",
            "they are left out; brain_rows_refused_total counts them",
            _rename(table, sorted(word for word in strange if word), words),
        )
    before = decoder.corrected
    wrong: dict[str, list[str]] = {}
    runs = 0
    for row in rows:
        if run_id := row[ID]:
            earlier = decoder.corrected
            for i, name in enumerate(FIELDS):
                if i not in (ID, STATUS) and row[i] is not None:
                    corrected = decoder.corrected
                    decoder([row[j] if j in (ID, STATUS, i) else None for j in range(len(FIELDS))])
                    if decoder.corrected > corrected:
                        wrong.setdefault(name, []).append(run_id)
            runs += decoder.corrected > earlier
    if decoder.corrected > before:
        values = decoder.corrected - before
        types = ", ".join(
            f"{name} ({_plain(found.description.columns[name].type)})" for name in sorted(wrong)
        )
        report.add(
            "values",
            "better",
            f"{_count(values, 'value')} in {_count(runs, 'row')} {'does' if values == 1 else 'do'} not fit the contract: {types}",
            "clients receive no time that is not one of ISO 8601, no progress that is not a number, and 0 or 100 for one out of range;"
            " the rows themselves stay as they are",
            "\n".join(_list(table, name, ids) for name, ids in sorted(wrong.items())),
        )


def _rename(table: Table, strange: list[str], words: list[str]) -> str:
    name = table.sql.as_string()
    if any(word.strip() in words for word in strange):
        return f"ALTER TABLE {name} ALTER COLUMN status TYPE text USING trim(status::text); -- rewrites the table"
    if strange:
        pairs = ",".join(f"{word}=…" for word in strange)
        return f"BRAIN_STATUS_MAP='{pairs}', with queued, running, completed or failed for each …"
    return f"SELECT * FROM {name} WHERE status IS NULL; -- give them one"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(type_: str) -> str:
    return type_.rpartition(".")[2].strip('"')


def _list(table: Table, name: str, ids: list[str]) -> str:
    """Shows what does not fit. What it should be is for the application to say: nothing is rewritten."""
    different = list(dict.fromkeys(ids))
    shown = sql.SQL(", ").join(map(sql.Literal, different[:LISTED])).as_string()
    more = f", the first {LISTED} of {len(different)}" if len(different) > LISTED else ""
    return (
        f"SELECT id, {name} FROM {table.sql.as_string()} WHERE id IN ({shown}); -- to look at{more}"
    )


async def _indexes(
    report: Report,
    conn: Conn,
    table: Table,
    found: Inspection,
    decoder: Decoder,
    *,
    hints: set[str],
) -> None:
    """Whether there is an index for what is under way, and for an id; as the planner says, forbidden to scan. `cures` are those
    of other findings.
    """
    if found.description.kind not in "rp" or (rows := await _size(conn, table, found)) is None:
        return
    name = table.sql.as_string()
    active = sql.SQL(", ").join(map(sql.Literal, decoder.active_words))
    if await _scans(conn, table, sql.SQL("r.status::text IN ({})").format(active)):
        what = "no index finds what is queued and running"
        reads = f"Brain reads the whole table when it starts, {rows}"
        if await _is_enum(conn, found):
            # Its output is STABLE, which no index may contain, and Brain compares text: a word may be none of the enum's.
            what += ", and none can: status is an enum, whose text PostgreSQL lets no index contain"
            report.add("status_index", "note", what, reads)
        else:
            hint = f"CREATE INDEX ON {name} (id) WHERE status::text IN ({active.as_string()});"
            report.add("status_index", "better", what, reads, hint)
    if await _scans(
        conn,
        table,
        sql.SQL("r.id = ANY ('{{NULL,NULL}}'::text[]::{}[])").format(
            sql.SQL(found.description.columns["id"].type)
        ),
    ):
        hint = f"ALTER TABLE {name} ADD PRIMARY KEY (id);"
        if found.description.primary_key:
            hint = f"CREATE UNIQUE INDEX ON {name} (id);"
        if hint not in hints:
            twice, hint = await _unique(conn, table, hint)
            report.add(
                "id_index",
                "better",
                f"no index finds a run by its id{twice}",
                f"each poll, and each GET /api/runs/…, reads the whole table, {rows}",
                hint,
            )


async def _size(conn: Conn, table: Table, found: Inspection) -> str | None:
    """How many rows, in words; None if there are too few to matter. The estimate is that of the last ANALYZE: if it is small,
    so many rows are counted as matter.
    """
    (estimate,) = await _one(
        conn,
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c WHERE c.relkind <> 'p' AND"
        " (c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s)))",
        {"oid": found.description.oid},
    )
    if int(str(estimate)) >= LARGE:
        return f"about {estimate} rows"
    count = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) counted").format(
        table.sql, LARGE
    )
    try:
        async with _briefly(conn):
            ((counted,),) = await _all(conn, count)
    except psycopg.errors.QueryCanceled:
        return "and to count its rows took more than 5 s"
    return f"{LARGE} rows or more" if int(str(counted)) >= LARGE else None


async def _unique(conn: Conn, table: Table, hint: str) -> tuple[str, str]:
    """What to say and to run, where the ids stand in the way of a cure that wants them unique."""
    if not re.search("PRIMARY KEY|UNIQUE", hint):
        return "", hint
    head = sql.SQL("SELECT id, count(*) FROM {}").format(table.sql)
    nulls = "OR id IS NULL" if "PRIMARY KEY" in hint else "AND id IS NOT NULL"
    tail = sql.SQL(f" GROUP BY id HAVING count(*) > 1 {nulls}")
    few = sql.SQL(
        "SELECT count(*) <= {most} FROM (SELECT FROM {table} LIMIT {most} + 1) counted"
    ).format(table=table.sql, most=MAX_GROUPED)
    try:
        async with _briefly(conn):
            ((cheap,),) = await _all(conn, few)
            repeated = await _all(conn, head + tail + sql.SQL(" LIMIT 1")) if cheap == "t" else []
    except psycopg.errors.QueryCanceled:
        return "", hint
    if not repeated:
        return "", hint
    return (
        ", and ids that are NULL or stand there more than once rule out a key",
        f"{(head + tail).as_string()}; -- make these unique\n-- and then: {hint}",
    )


async def _is_enum(conn: Conn, found: Inspection) -> bool:
    """Also by way of a domain."""
    (kind,) = await _one(
        conn,
        "SELECT coalesce(b.typtype, t.typtype) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        " LEFT JOIN pg_type b ON b.oid = t.typbasetype WHERE a.attrelid = %s AND a.attname = 'status'",
        [found.description.oid],
    )
    return kind == "e"


async def _scans(conn: Conn, table: Table, condition: sql.Composable) -> bool:
    query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT r.id, r.status FROM {} r WHERE {}").format(
        table.sql, condition
    )
    async with _briefly(conn):
        await conn.execute("SET LOCAL enable_seqscan = off")
        ((plan,),) = await _all(conn, query)
    return any(node["Node Type"] == "Seq Scan" for node in _nodes(json.loads(str(plan))[0]["Plan"]))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


# The stream.


async def _publication(report: Report, conn: Conn, table: Table) -> StreamUnavailable | None:
    """Why there is no publication, and Brain cannot make one: it makes it, and takes it back."""
    try:
        async with _briefly(conn):
            await ensure_publication(conn, table, APPLICATION)
    except StreamUnavailable as unavailable:
        report.polls(unavailable)
        return unavailable
    except psycopg.errors.LockNotAvailable:
        report.add(
            "publication",
            "note",
            f"the publication could not be tried: {table} is locked",
            "Brain tries for longer",
            "run this again",
        )
    return None


async def _stream(
    report: Report, conn: Conn, user: str, opening: Coroutine[Any, Any, Stream]
) -> StreamUnavailable | None:
    """Why no stream can be had."""
    try:
        stream = await opening
    except psycopg.Error as error:
        unavailable = from_error(error, user)
    else:
        await stream.close()
        return None
    if isinstance(unavailable, SlotBlocked):
        # The transactions are found below, if they are still there.
        waited = (
            f"a slot waited for {PATIENCE:g} s for a writing transaction, which has ended since"
        )
        return SlotBlocked(waited, "run this again", unavailable.code)
    mine = await _all(
        conn,
        "SELECT slot_name FROM pg_replication_slots WHERE active AND database = current_database() AND slot_name LIKE 'brain\\_%%'",
    )
    if mine and unavailable.code in ("slots", "walsenders"):
        report.add(
            unavailable.code,
            "note",
            f"{unavailable.detail}; a Brain has one, {mine[0][0]}",
            "a second Brain would poll",
            await _room(conn, unavailable.code),
        )
        return None
    report.polls(unavailable, await _room(conn, unavailable.code))
    await _settings(report, conn, user, unavailable.code)
    return unavailable


async def _settings(report: Report, conn: Conn, user: str, said: str) -> None:
    """What else would refuse the stream, once what did has been cured."""
    level, may, slots, senders = await _one(
        conn,
        "SELECT current_setting('wal_level'), (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),"
        " current_setting('max_replication_slots')::int > (SELECT count(*) FROM pg_replication_slots),"
        " current_setting('max_wal_senders')::int > (SELECT count(*) FROM pg_stat_replication)",
    )
    for sqlstate, well in (
        ("55000", level == "logical"),
        ("42501", may == "t"),
        ("53400", slots == "t"),
        ("53300", senders == "t"),
    ):
        unavailable = from_sqlstate(sqlstate, user)
        if not well and unavailable.code != said:
            report.polls(unavailable, await _room(conn, unavailable.code))


async def _room(conn: Conn, code: str) -> str:
    """The exact cure for what has run out; "" for other causes."""
    name = {"slots": "max_replication_slots", "walsenders": "max_wal_senders"}.get(code)
    if name is None:
        return ""
    (now,) = await _one(conn, "SELECT current_setting(%s)", [name])
    hint = f"ALTER SYSTEM SET {name} = {int(str(now)) + 4}; -- then restart PostgreSQL"
    if code == "slots":
        # A slot that is idle now may be a standby's that comes back: to drop one is never what a paste does.
        for (idle,) in await _all(
            conn,
            "SELECT quote_literal(slot_name) FROM pg_replication_slots WHERE NOT active ORDER BY 1",
        ):
            hint += f"\n-- or, if nobody needs it: SELECT pg_drop_replication_slot({idle});"
    return hint


async def _transactions(report: Report, conn: Conn, *, all_of_them: bool) -> None:
    """Those that write and stay open. `all_of_them`: a slot has waited for them in vain. The age and kind of others' sessions
    are for superusers and members of pg_read_all_stats to see.
    """
    detail = "a slot waits for every transaction that writes when it is made, Brain polls meanwhile, and log is kept back"
    for pid, user, age in await _all(
        conn,
        "SELECT a.pid, coalesce(a.usename, a.backend_type, 'PostgreSQL'), extract(epoch FROM clock_timestamp() - a.xact_start)::int FROM pg_stat_activity a"
        " WHERE a.pid <> pg_backend_pid() AND a.pid IN"
        " (SELECT pid FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted)",
    ):
        if all_of_them or (age is not None and int(age) >= LONG):
            since = "" if age is None else f" for {age} s"
            what = f"a writing transaction of {user} (pid {pid}) is open{since}"
            report.add(
                "slot_waits",
                "better",
                what,
                detail,
                f"SELECT pg_terminate_backend({pid}); -- or let it end",
            )
    for gid, age in await _all(
        conn,
        "SELECT quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::int FROM pg_prepared_xacts",
    ):
        if all_of_them or int(str(age)) >= LONG:
            what = f"the prepared transaction {gid} is open for {age} s"
            report.add(
                "slot_waits",
                "better",
                what,
                detail,
                f"ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED, in its database",
            )


async def _log(report: Report, conn: Conn) -> None:
    (keep,) = await _one(
        conn, "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
    )
    if 0 <= int(str(keep)) < LEAST_WAL:
        report.add(
            "slot_log",
            "better",
            f"max_slot_wal_keep_size is {keep} MB",
            "PostgreSQL takes Brain's slot away when it is a little behind, and Brain polls until it has another",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB';\nSELECT pg_reload_conf();",
        )


# Removing.


async def remove(url: str, table: Table) -> str:
    """Drop what Brain has made in the database besides the table: the publication. Raises psycopg.Error."""
    name = sql.Identifier(table.publication)
    async with await connect(url, APPLICATION) as conn:
        await conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))
    return f"the publication {table.publication} is gone; a Brain that runs makes it anew"


# Asking.


@asynccontextmanager
async def _briefly(conn: Conn) -> AsyncIterator[None]:
    """A transaction that is rolled back, and that disturbs nobody for long."""
    async with conn.transaction(force_rollback=True):
        await conn.execute("SET LOCAL statement_timeout = '5s'")
        await conn.execute("SET LOCAL lock_timeout = '2s'")
        yield


async def _all(conn: Conn, query: str | sql.Composed, values: Any = None) -> list[Text]:
    async with deadline():
        return await (await conn.execute(query, values)).fetchall()


async def _one(conn: Conn, query: str, values: Any = None) -> Text:
    (row,) = await _all(conn, query, values)
    return row
