"""The SQL of the HTTP API: statements, each with its values."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

from psycopg import sql

from brain.contract.messages import TRANSITIONS, Status
from brain.postgres.decoder import Decoder
from brain.postgres.table import Description, Table

Statement: TypeAlias = tuple[sql.Composed, list[object]]
ByFields: TypeAlias = Mapping[str, Collection[str]]

EVERYWHERE: ByFields = {}
"""`within` for who may see and change every run."""


# Statements

TIMES: Mapping[str, str] = {
    "running": "started_at",
    "completed": "completed_at",
    "failed": "completed_at",
}

_SELECT = """
SELECT s.seen, {fields}
FROM (SELECT pg_current_snapshot()::text) AS s(seen)
LEFT JOIN (SELECT r.* FROM {table} AS r WHERE {conditions} ORDER BY r.id LIMIT %s) AS r ON true
ORDER BY r.id
"""


def select_one(table: Table, described: Description, max_text: int, run_id: str) -> Statement:
    """The snapshot that the query saw, and the run's fields: all NULL if there is none."""
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
    """Likewise, the first `limit` runs behind the id `after` whose fields have one of the `wanted` texts."""
    conditions: list[sql.Composable] = [sql.SQL("r.id IS NOT NULL")]
    values: list[object] = []
    for field, texts in wanted.items():
        if not texts:
            continue
        if field not in described.columns:
            conditions.append(sql.SQL("false"))
        else:
            # As text: a word that an enum or a uuid could not hold is met by no row, and is no error. And as the type prints
            # itself, which a cast differs from (char(n)), for so a client is told of it; only a cast finds an index.
            plain = described.columns[field].type in _TEXTS
            text = sql.SQL("{}::text" if plain else "concat({})").format(sql.Identifier("r", field))
            conditions.append(sql.SQL("{} = ANY (%s::text[])").format(text))
            values.append(list(texts))
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
    """A new run. `now` names the field that is given the present moment, if the table has such a column."""
    columns: list[sql.Composable] = [sql.Identifier(field) for field in values]
    places: list[sql.Composable] = [sql.Placeholder()] * len(values)
    if now is not None and now not in values and (moment := _now(described, now)):
        columns.append(sql.Identifier(now))
        places.append(moment)
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
    """A change, if the run is `within` and its present status allows it: one statement, so that of two at once the second sees the first.

    A run that begins is given started_at unless it has one; a run that ends is given completed_at.
    """
    changes: list[sql.Composable] = [
        sql.SQL("{} = %s").format(sql.Identifier(field)) for field in values
    ]
    sent: list[object] = list(values.values())
    conditions: list[sql.Composable] = [sql.SQL("r.id = %s")]
    where: list[object] = [run_id]
    for name, texts in within.items():
        if name not in described.columns:
            conditions.append(sql.SQL("false"))
        else:
            conditions.append(
                sql.SQL("{}::text = ANY (%s::text[])").format(sql.Identifier("r", name))
            )
            where.append(list(texts))
    if status is not None:
        changes.append(sql.SQL("status = %s"))
        sent.append(decoder.word(status))
        field = TIMES.get(status)
        if field and (moment := _now(described, field)):
            change = (
                "{field} = CASE WHEN r.status::text = ANY (%s::text[]) THEN {old} ELSE coalesce({old}, {now}) END"
                if status == "running"
                else "{field} = CASE WHEN r.status::text = ANY (%s::text[]) THEN {old} ELSE {now} END"
            )
            names = {
                "field": sql.Identifier(field),
                "old": sql.Identifier("r", field),
                "now": moment,
            }
            changes.append(sql.SQL(change).format(**names))
            sent.append(decoder.words(status))
        conditions.append(sql.SQL("r.status::text = ANY (%s::text[])"))
        where.append(
            decoder.words(*(old for old, allowed in TRANSITIONS.items() if status in allowed))
        )
    query = sql.SQL("UPDATE {} AS r SET {} WHERE {} RETURNING {}").format(
        table.in_query,
        sql.SQL(", ").join(changes),
        sql.SQL(" AND ").join(conditions),
        described.select("r", decoder.max_text),
    )
    return query, [*sent, *where]


def _now(described: Description, field: str) -> sql.Composable | None:
    column = described.columns.get(field)
    if column is None or column.generated:
        return None
    return sql.SQL(f"now()::{column.type}")  # quoted by describe()
