"""Whether indexes find unfinished runs, and a run by its id, in a large table."""

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from brain.doctor.context import Context
from brain.doctor.report import Finding


async def indexes(context: Context) -> list[Finding]:
    if context.inspection.description.kind not in "rp":
        return []
    rows = await _size(context)
    if rows is None:
        return []
    return [*await _status_index(context, rows), *await _id_index(context, rows)]


async def _status_index(context: Context, rows: str) -> list[Finding]:
    statuses, active = context.inspection.description.statuses, context.decoder.active_words
    if not await _scans(context, statuses.one_of("r", active)):
        return []
    what = "no index finds the queued and running rows"
    detail = f"Brain reads the whole table when it starts, {rows}"
    if not statuses.indexable:
        what += ", and none can: PostgreSQL allows no index on what the type of status prints"
        return [Finding("status_index", "note", what, detail)]
    condition = statuses.one_of("", active).as_string()
    run_id = context.inspection.description.in_sql("id")
    hint = f"CREATE INDEX ON {context.sql_name} ({run_id}) WHERE {condition};"
    return [Finding("status_index", "better", what, detail, hint)]


async def _id_index(context: Context, rows: str) -> list[Finding]:
    description = context.inspection.description
    type_ = sql.SQL(description.columns["id"].type)
    run_id = description.in_sql("id")
    condition = sql.SQL("{} = ANY ('{{NULL,NULL}}'::text[]::{}[])").format(
        sql.Identifier("r", description.columns["id"].name), type_
    )
    if not await _scans(context, condition):
        return []
    hint = f"ALTER TABLE {context.sql_name} ADD PRIMARY KEY ({run_id});"
    if description.primary_key:
        hint = f"CREATE UNIQUE INDEX ON {context.sql_name} ({run_id});"
    if any(blocker.hint == hint for blocker in context.blockers):
        return []  # another finding has this hint
    duplicates, hint = await check_unique(context, hint)
    return [
        Finding(
            "id_index",
            "better",
            f"no index finds a run by its id{duplicates}",
            f"each poll, and each GET /api/runs/…, reads the whole table, {rows}",
            hint,
        )
    ]


async def check_unique(context: Context, hint: str) -> tuple[str, str]:
    """What to add to the finding, and the hint: first unique ids, if the hint needs them."""
    if not re.search("PRIMARY KEY|UNIQUE", hint):
        return "", hint
    run_id = sql.SQL(context.inspection.description.in_sql("id"))
    head = sql.SQL("SELECT {}, count(*) FROM {}").format(run_id, context.table.sql)
    nulls = "OR {} IS NULL" if "PRIMARY KEY" in hint else "AND {} IS NOT NULL"
    tail = sql.SQL(f" GROUP BY {{}} HAVING count(*) > 1 {nulls}").format(run_id, run_id)
    small = sql.SQL(
        "SELECT count(*) <= {most} FROM (SELECT FROM {table} LIMIT {most} + 1) counted"
    ).format(table=context.table.sql, most=context.thresholds.max_grouped)
    try:
        async with context.briefly():
            (cheap,) = await context.row(small)
            duplicates = (
                await context.rows(head + tail + sql.SQL(" LIMIT 1")) if cheap == "t" else []
            )
    except psycopg.errors.QueryCanceled:
        return "", hint
    if not duplicates:
        return "", hint
    return (
        ", and duplicate or NULL ids rule out a key",
        f"{(head + tail).as_string()}; -- make these unique\n-- and then: {hint}",
    )


async def _size(context: Context) -> str | None:
    """How many rows, in words; None if so few that an index does not matter.

    The estimate is that of the last ANALYZE, so a small one is checked by counting.
    """
    large = context.thresholds.large_table
    (estimate,) = await context.row(
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c"
        " WHERE c.relkind <> 'p' AND"
        " (c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s)))",
        {"oid": context.inspection.description.oid},
    )
    if int(str(estimate)) >= large:
        return f"about {estimate} rows"
    count = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) counted").format(
        context.table.sql, large
    )
    try:
        async with context.briefly():
            (counted,) = await context.row(count)
    except psycopg.errors.QueryCanceled:
        return "and counting its rows took more than 5 s"
    return f"{large} rows or more" if int(str(counted)) >= large else None


async def _scans(context: Context, condition: sql.Composable) -> bool:
    """Whether the planner scans the table sequentially although it is asked to avoid that."""
    columns = context.inspection.description.columns
    query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT {}, {} FROM {} r WHERE {}").format(
        sql.Identifier("r", columns["id"].name),
        sql.Identifier("r", columns["status"].name),
        context.table.sql,
        condition,
    )
    async with context.briefly():
        await context.conn.execute("SET LOCAL enable_seqscan = off")
        (plan,) = await context.row(query)
    return any(node["Node Type"] == "Seq Scan" for node in _nodes(json.loads(str(plan))[0]["Plan"]))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
