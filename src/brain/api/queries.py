"""The SQL of the HTTP API: each statement with its values."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

from psycopg import sql

from brain.contract.messages import TRANSITIONS, Status
from brain.postgres.decoder import Decoder
from brain.postgres.table import Description, Table

Statement: TypeAlias = tuple[sql.Composed, list[object]]
ByFields: TypeAlias = Mapping[str, Collection[str]]

UNRESTRICTED: ByFields = {}
"""`within` of a token that covers every run."""

TIMES: Mapping[str, str] = {
    "running": "started_at",
    "completed": "completed_at",
    "failed": "completed_at",
}
"""Status → the field that is set to the current time when a run gets that status."""

_SELECT = """
SELECT s.seen, {fields}
FROM (SELECT pg_current_snapshot()::text) AS s(seen)
LEFT JOIN (SELECT r.* FROM {table} AS r WHERE {conditions} ORDER BY r.id LIMIT %s) AS r ON true
ORDER BY r.id
"""


def select_one(table: Table, described: Description, max_text: int, run_id: str) -> Statement:
    """One row: the snapshot of the query, and the run's fields, all NULL without such a run."""
    query = sql.SQL(_SELECT).format(
        fields=described.select("r", max_text),
        table=table.in_query,
        conditions=sql.SQL("r.id = %s"),
    )
    return query, [run_id, 1]


_TEXTS = ('"pg_catalog"."text"', '"pg_catalog"."varchar"')


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

    Rows are as those of select_one; without any such run there is one of NULLs.
    """
    conditions: list[sql.Composable] = [sql.SQL("r.id IS NOT NULL")]
    values: list[object] = []
    for field, texts in wanted.items():
        if not texts:
            continue
        if field not in described.columns:
            conditions.append(sql.SQL("false"))
        else:
            # Compared as text: a word that an enum or a uuid cannot hold matches no row, and is
            # no error. The text is the type's own output, as clients see it, and a cast may
            # differ from it (char(n)). Where it cannot differ, cast, because only a cast finds an
            # index.
            plain = described.columns[field].type in _TEXTS
            text = sql.SQL("{}::text" if plain else "concat({})").format(sql.Identifier("r", field))
            compared = list(texts)
            if field == "status":
                text, compared = described.statuses.any_of("r", texts)
            conditions.append(sql.SQL("{} = ANY (%s::text[])").format(text))
            values.append(compared)
    if after is not None:
        conditions.append(sql.SQL("r.id > %s"))
        values.append(after)
    query = sql.SQL(_SELECT).format(
        fields=described.select("r", max_text),
        table=table.in_query,
        conditions=sql.SQL(" AND ").join(conditions),
    )
    return query, [*values, limit]


def insert(
    table: Table, described: Description, max_text: int, values: Mapping[str, str], now: str | None
) -> Statement:
    """A new run. `now` names the field to set to the current time, if the table has it."""
    columns: list[sql.Composable] = [sql.Identifier(field) for field in values]
    places: list[sql.Composable] = [sql.Placeholder()] * len(values)
    if now is not None and now not in values and (time := _now(described, now)):
        columns.append(sql.Identifier(now))
        places.append(time)
    query = sql.SQL("INSERT INTO {} AS r ({}) VALUES ({}) RETURNING {}").format(
        table.in_query,
        sql.SQL(", ").join(columns),
        sql.SQL(", ").join(places),
        described.select("r", max_text),
    )
    return query, list(values.values())


def update(
    table: Table,
    described: Description,
    decoder: Decoder,
    *,
    run_id: str,
    status: Status | None,
    values: Mapping[str, str | None],
    within: ByFields,
) -> Statement:
    """A change, if the run is `within` and its present status allows it.

    It is one statement, so that the second of two concurrent changes sees the first. A run that
    becomes running gets started_at unless it has one; a run that ends gets completed_at.
    """
    changes: list[sql.Composable] = [
        sql.SQL("{} = %s").format(sql.Identifier(field)) for field in values
    ]
    sent: list[object] = list(values.values())
    conditions, compared = _within(described, within)
    conditions.insert(0, sql.SQL("r.id = %s"))
    compared.insert(0, run_id)
    if status is not None:
        changes.append(sql.SQL("status = %s"))
        sent.append(decoder.word(status, described.statuses.allowed))
        if time := _time(described, status):
            changes.append(time)
            sent.append(decoder.words(status))
        conditions.append(sql.SQL("{} = ANY (%s::text[])").format(described.statuses.folded("r")))
        before = [old for old, allowed in TRANSITIONS.items() if status in allowed]
        compared.append(decoder.words(*before))
    query = sql.SQL("UPDATE {} AS r SET {} WHERE {} RETURNING {}").format(
        table.in_query,
        sql.SQL(", ").join(changes),
        sql.SQL(" AND ").join(conditions),
        described.select("r", decoder.max_text),
    )
    return query, [*sent, *compared]


def _within(described: Description, within: ByFields) -> tuple[list[sql.Composable], list[object]]:
    conditions: list[sql.Composable] = []
    values: list[object] = []
    for name, texts in within.items():
        if name not in described.columns:
            conditions.append(sql.SQL("false"))
        else:
            condition = sql.SQL("{}::text = ANY (%s::text[])")
            conditions.append(condition.format(sql.Identifier("r", name)))
            values.append(list(texts))
    return conditions, values


def _time(described: Description, status: Status) -> sql.Composable | None:
    """Sets the status's time, unless the run has this status already.

    It takes one value: the words for this status, folded.
    """
    field = TIMES.get(status)
    now = None if field is None else _now(described, field)
    if field is None or now is None:
        return None
    old = sql.Identifier("r", field)
    new = sql.SQL("coalesce({}, {})").format(old, now) if status == "running" else now
    word = described.statuses.folded("r")
    change = "{} = CASE WHEN {} = ANY (%s::text[]) THEN {} ELSE {} END"
    return sql.SQL(change).format(sql.Identifier(field), word, old, new)


def _now(described: Description, field: str) -> sql.Composable | None:
    column = described.columns.get(field)
    if column is None or column.generated:
        return None
    return sql.SQL(f"now()::{column.type}")  # describe() has quoted the type
