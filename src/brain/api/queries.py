"""The SQL of the HTTP API: each statement with its values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from psycopg import sql

from brain.api.preconditions import Preconditions
from brain.contract.messages import ACTIVE, FIELDS, MAX_ID_BYTES, TRANSITIONS, Status
from brain.postgres.canonical import COMPARABLE, canonical
from brain.postgres.decoder import Decoder
from brain.postgres.statements import Statement
from brain.postgres.table import Column, Description, Table
from brain.postgres.time_zone import TIME_FIELDS, TimeZone

ByFields: TypeAlias = Mapping[str, Collection[str]]

UNRESTRICTED: ByFields = {}
"""The `within` of a token that may access every run."""

UNCOMPARED: Mapping[str, str | None] = {}

TIME_OF: Mapping[str, str] = {
    "running": "started_at",
    "completed": "completed_at",
    "failed": "completed_at",
}
"""Status → the field that is set to the current time when a run gets that status."""


@dataclass(frozen=True, slots=True)
class Target:
    """The rows that a request about one run is about: one, unless the table lets ids repeat."""

    run_id: str
    """As the column prints it."""
    printed: Collection[str]
    """The texts of the id that name the run: one, or that of a `numeric` in two forms."""
    within: ByFields
    salt: int
    """Of the ETag: what besides the row decides how a run looks."""


_SELECT = """
SELECT s.seen, {fields}
FROM (SELECT pg_current_snapshot()::text) AS s(seen)
LEFT JOIN (SELECT r.* FROM {table} AS r WHERE {conditions} ORDER BY {id} LIMIT %s) AS r ON true
ORDER BY {id}
"""


def select_one(
    table: Table,
    described: Description,
    max_text: int,
    target: Target,
    compared: Mapping[str, str | None] = UNCOMPARED,
) -> Statement:
    """Up to two rows of this id: the snapshot of the query, the run's fields, its ETag, and for
    each of the `compared` fields whether it has this value already (t or f).

    Without such a run it is one row, whose fields are NULL.
    """
    conditions, values = _within(described, target.within)
    tag, salts = _etag(described, target.salt)
    query = sql.SQL(_SELECT).format(
        fields=sql.SQL(", ").join(
            [
                described.select("r", max_text),
                tag,
                *(_equals(described, field) for field in compared),
            ]
        ),
        table=table.in_query,
        conditions=sql.SQL(" AND ").join([_has_id(described), *conditions]),
        id=described.column("r", "id"),
    )
    return query, [*salts, *compared.values(), *_ids(described, target), *values, 2]


def _equals(described: Description, field: str) -> sql.Composable:
    equals = "{}::text IS NOT DISTINCT FROM %s::text"  # json has no =
    if described.columns[field].base != "json":
        equals = "{} IS NOT DISTINCT FROM %s"
    return sql.SQL(equals).format(described.column("r", field))


def _has_id(described: Description) -> sql.Composed:
    """It takes the values of `_ids`.

    Values of some types are equal although they print other texts (citext, float8, timestamptz),
    and so are texts under a nondeterministic collation. `/ws` and the filters compare the texts, so
    this does too: a row of another text would be no run to them. The first condition is for the
    index.
    """
    if _is_found_by_value(described.columns["id"]):
        return sql.SQL("{} = %s").format(described.column("r", "id"))
    return sql.SQL("{} = %s AND {} = ANY (%s::text[])").format(
        described.column("r", "id"), _printed(described, "id")
    )


def _ids(described: Description, target: Target) -> list[object]:
    if _is_found_by_value(described.columns["id"]):
        return [target.run_id]
    return [target.run_id, list(target.printed)]


def _is_found_by_value(column: Column) -> bool:
    """Whether its `=` finds what the canonical text finds, and nothing else."""
    return column.plain or (column.exact and column.base in COMPARABLE)


def _etag(described: Description, salt: int) -> tuple[sql.Composable, list[object]]:
    """Changes with every change that the API can show, and with no other one: not with a
    heartbeat in another column, and not with what an UPDATE leaves as it was, as xmin would. And a
    view has no xmin. Two values are 128 bits; a server in FIPS mode has no md5.
    """
    names = [described.column("r", field) for field in FIELDS if field in described.columns]
    row = sql.SQL("ROW({})::text").format(sql.SQL(", ").join(names))
    half = "pg_catalog.to_hex(pg_catalog.hashtextextended({}, %s))"
    return sql.SQL(f"{half} || '-' || {half}").format(row, row), [salt, salt + 1]


def _printed(described: Description, field: str) -> sql.Composable:
    """The text that clients see: the type's own output, from which a cast may differ (bool).

    Where it cannot differ it is a cast, because only a cast finds an index.
    """
    column = described.column("r", field)
    if described.columns[field].plain:
        return sql.SQL("{}::text").format(column)
    return sql.SQL('pg_catalog.concat({}) COLLATE "C"').format(described.unpadded("r", field))


def _one_of(
    described: Description, field: str, texts: Collection[str]
) -> tuple[sql.Composable, list[object]]:
    """Compared as values where the type is known, so that an index serves, and otherwise as text: a
    word that an enum or an inet cannot hold matches no row, and is no error.
    """
    if field == "status":
        text, words = described.statuses.any_of("r", texts)
        return sql.SQL("{} = ANY (%s::text[])").format(text), [words]
    column = described.columns[field]
    if column.base not in COMPARABLE or not column.exact:
        condition = sql.SQL("{} = ANY (%s::text[])").format(_printed(described, field))
        return condition, [list(texts)]
    condition = sql.SQL("{} = ANY (%s::text[]::{}[])").format(
        described.column("r", field), sql.Identifier("pg_catalog", column.base)
    )
    return condition, [[text for text in texts if canonical(column, text) is not None]]


def select_page(
    table: Table,
    described: Description,
    max_text: int,
    *,
    wanted: ByFields,
    after: str | None,
    limit: int,
) -> Statement:
    """The first `limit` runs after the id `after` whose fields have one of the `wanted` texts.

    Rows are as those of select_one, without what follows the fields; without any such run there is
    one of NULLs. A row whose id is too long for the contract is left out here already: it could
    not be a cursor.
    """
    run_id = described.column("r", "id")
    conditions: list[sql.Composable] = [sql.SQL("{} IS NOT NULL").format(run_id)]
    values: list[object] = []
    if described.columns["id"].base not in COMPARABLE - {"bpchar"}:
        conditions.append(
            sql.SQL("pg_catalog.octet_length({}) <= %s").format(_printed(described, "id")),
        )
        values.append(MAX_ID_BYTES)
    matching, compared = _within(described, _given(wanted))
    conditions += matching
    values += compared
    if after is not None:
        conditions.append(sql.SQL("{} > %s").format(run_id))
        values.append(after)
    query = sql.SQL(_SELECT).format(
        fields=described.select("r", max_text),
        table=table.in_query,
        conditions=sql.SQL(" AND ").join(conditions),
        id=run_id,
    )
    return query, [*values, limit]


def count(table: Table, described: Description, wanted: ByFields) -> Statement:
    """How many rows have one of the `wanted` texts in each field, as select_page takes them."""
    conditions, values = _within(described, _given(wanted))
    query = sql.SQL("SELECT count(*) FROM {} AS r WHERE {}").format(
        table.in_query,
        sql.SQL(" AND ").join(
            [sql.SQL("{} IS NOT NULL").format(described.column("r", "id")), *conditions]
        ),
    )
    return query, values


def _given(wanted: ByFields) -> ByFields:
    """By the fields of the contract, without those that are not filtered."""
    return {"id" if name == "run_id" else name: texts for name, texts in wanted.items() if texts}


def insert(
    table: Table,
    described: Description,
    decoder: Decoder,
    values: Mapping[str, str],
    *,
    now: str | None,
    salt: int,
) -> Statement:
    """A new run. `now` names the field to set to the current time, if the table has it.

    Returns the run's fields and its ETag.
    """
    columns: list[sql.Composable] = [described.column("", field) for field in values]
    places = [
        decoder.zone.written(described.columns[field])
        if field in TIME_FIELDS
        # A date of another field is a date: no part of Brain reads it as a time.
        else sql.Placeholder()
        for field in values
    ]
    if now is not None and now not in values and (time := _now(described, decoder.zone, now)):
        columns.append(described.column("", now))
        places.append(time)
    tag, salts = _etag(described, salt)
    query = sql.SQL("INSERT INTO {} AS r ({}) VALUES ({}) RETURNING {}, {}").format(
        table.in_query,
        sql.SQL(", ").join(columns),
        sql.SQL(", ").join(places),
        described.select("r", decoder.max_text),
        tag,
    )
    return query, [*values.values(), *salts]


def update(
    table: Table,
    described: Description,
    decoder: Decoder,
    target: Target,
    *,
    status: Status | None,
    values: Mapping[str, str | None],
    preconditions: Preconditions,
) -> Statement:
    """A change of one active run, if the target is one row, and its present status and its ETag
    allow the change.

    It is one statement, so that the second of two concurrent changes sees the first: PostgreSQL
    checks the conditions again on the row that the first has left (PostgreSQL documentation,
    13.2.1 "Read Committed Isolation Level"). An end is final, so a run that has ended is never
    written. A run that becomes running gets started_at unless it has one; a run that ends gets
    completed_at. Returns the run's fields and its ETag.
    """
    changes: list[sql.Composable] = [
        sql.SQL("{} = %s").format(described.column("", field)) for field in values
    ]
    sent: list[object] = list(values.values())
    if status is not None:
        changes.append(sql.SQL("{} = %s").format(described.column("", "status")))
        sent.append(decoder.word(status, described.statuses.allowed))
        if time := _time(described, decoder.zone, status):
            changes.append(time)
            sent.append(decoder.words(status))
    before = [old for old in ACTIVE if status is None or status in TRANSITIONS[cast("Status", old)]]
    conditions: list[sql.Composable] = [_has_id(described)]
    compared = _ids(described, target)
    bounds, bounding = _within(described, target.within)
    words = sql.SQL("{} = ANY (%s::text[])").format(described.statuses.folded("r"))
    conditions += [*bounds, words]
    compared += [*bounding, decoder.words(*before)]
    tag, salts = _etag(described, target.salt)
    if preconditions.tags is not None:
        conditions.append(sql.SQL("{} = ANY (%s::text[])").format(tag))
        compared += [*salts, list(preconditions.tags)]
    if (known := preconditions.if_none_match) is not None:
        conditions.append(sql.SQL("(%s AND {} <> ALL (%s::text[]))").format(tag))
        compared += [not known.any, *salts, list(known.strong | known.weak)]
    if not described.id_is_key:  # something else may make it unique, or nothing
        rows = sql.SQL("(SELECT count(*) FROM (SELECT FROM {} AS r WHERE {} LIMIT 2) AS n) = 1")
        same = sql.SQL(" AND ").join([conditions[0], *bounds])
        conditions.append(rows.format(table.in_query, same))
        compared += [*_ids(described, target), *bounding]
    query = sql.SQL("UPDATE {} AS r SET {} WHERE {} RETURNING {}, {}").format(
        table.in_query,
        sql.SQL(", ").join(changes),
        sql.SQL(" AND ").join(conditions),
        described.select("r", decoder.max_text),
        tag,
    )
    return query, [*sent, *compared, *salts]


def _within(described: Description, within: ByFields) -> tuple[list[sql.Composable], list[object]]:
    conditions: list[sql.Composable] = []
    values: list[object] = []
    for name, texts in within.items():
        if name not in described.columns:
            conditions.append(sql.SQL("false"))
        else:
            condition, compared = _one_of(described, name, texts)
            conditions.append(condition)
            values += compared
    return conditions, values


def _time(described: Description, zone: TimeZone, status: Status) -> sql.Composable | None:
    """Sets the status's time, unless the run has this status already.

    It takes one value: the words for this status, folded.
    """
    field = TIME_OF.get(status)
    now = None if field is None else _now(described, zone, field)
    if field is None or now is None:
        return None
    old = described.column("r", field)
    new = sql.SQL("coalesce({}, {})").format(old, now) if status == "running" else now
    word = described.statuses.folded("r")
    change = "{} = CASE WHEN {} = ANY (%s::text[]) THEN {} ELSE {} END"
    return sql.SQL(change).format(described.column("", field), word, old, new)


_HOLD_A_TIME = frozenset({"timestamptz", "timestamp", "date", "text", "varchar", "bpchar"})
"""Types into which PostgreSQL converts a time so that Brain reads it again. Others, such as a
bigint with seconds, stay as they are: the application sets them."""


def _now(described: Description, zone: TimeZone, field: str) -> sql.Composable | None:
    column = described.columns.get(field)
    if column is None or column.generated or column.base not in _HOLD_A_TIME:
        return None
    return zone.now(column)
