"""Whether the contract can express the rows of the table."""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from brain.contract.messages import FIELDS, ID, STATUS
from brain.doctor.context import Context
from brain.doctor.report import Finding
from brain.postgres.connection import Row
from brain.postgres.decoder import Decoder

SAMPLE = 1000
"""Rows that are decoded as Brain decodes them."""

MAX_LISTED = 10
"""Ids of rows that a hint lists."""

_TOO_LARGE = "the table is so large that this would take more than 5 s"


def _words(context: Context) -> list[str]:
    return context.decoder.words("queued", "running", "completed", "failed")


def _known_status(context: Context) -> sql.Composed:
    word = context.inspection.description.statuses.folded("r")
    return sql.SQL("coalesce({} = ANY (%s::text[]), false)").format(word)


async def statuses(context: Context) -> list[Finding]:
    query = sql.SQL("SELECT DISTINCT {} FROM {} r WHERE NOT {} LIMIT 10").format(
        context.inspection.description.column("r", "status"),
        context.table.in_query,
        _known_status(context),
    )
    try:
        async with context.briefly():
            unknown = [row[0] for row in await context.rows(query, [_words(context)])]
    except psycopg.errors.QueryCanceled:
        what = "it was not checked whether every status is one of the contract's"
        return [Finding("status", "note", what, _TOO_LARGE)]
    if not unknown:
        return []
    shown = ", ".join(sorted("NULL" if word is None else repr(word[:40]) for word in unknown))
    return [
        Finding(
            "status",
            "better",
            f"rows of {context.table} have a status that the contract does not have: {shown}",
            "clients do not see these runs; brain_rows_rejected_total counts them",
            _status_hint(context, sorted(word for word in unknown if word is not None)),
        )
    ]


def _status_hint(context: Context, unknown: list[str]) -> str:
    if unknown:
        return context.decoder.map_hint(unknown)
    status = context.inspection.description.in_sql("status")
    return f"SELECT * FROM {context.sql_name} WHERE {status} IS NULL; -- set their status"


async def values(context: Context) -> list[Finding]:
    description = context.inspection.description
    query = sql.SQL("SELECT {} FROM {} r WHERE {} LIMIT {}").format(
        description.select("r", context.decoder.max_text),
        context.table.in_query,
        _known_status(context),
        SAMPLE,
    )
    try:
        async with context.briefly():
            rows = await context.rows(query, [_words(context)])
    except psycopg.errors.QueryCanceled:
        what = "it was not checked whether the values fit the contract"
        return [Finding("values", "note", what, _TOO_LARGE)]
    found = _misfits(context.decoder, rows)
    if not found:
        return []
    misfits: dict[str, list[str]] = {}
    for _, name, run_id in found:
        misfits.setdefault(name, []).append(run_id)
    runs = len({number for number, _, _ in found})
    types = ", ".join(
        f"{name} ({_type_name(description.columns[name].type)})" for name in sorted(misfits)
    )
    verb = "does" if len(found) == 1 else "do"
    return [
        Finding(
            "values",
            "better",
            f"{_count(len(found), 'value')} in {_count(runs, 'row')} {verb} not fit the contract:"
            f" {types}",
            "clients receive no time that ISO 8601 cannot express, no progress that is not a"
            " number, and 0 or 100 for progress out of range; the rows stay as they are",
            "\n".join(_listing(context, name, ids) for name, ids in sorted(misfits.items())),
        )
    ]


def _misfits(decoder: Decoder, rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Each value that the decoder corrects: the number of its row, its column, the run's id."""
    misfits = []
    for number, row in enumerate(rows):
        for i, name in enumerate(FIELDS):
            run_id = row[ID]
            if not run_id or i in (ID, STATUS) or row[i] is None:
                continue
            before = decoder.corrected
            decoder([value if j in (ID, STATUS, i) else None for j, value in enumerate(row)])
            if decoder.corrected > before:
                misfits.append((number, name, run_id))
    return misfits


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _type_name(quoted: str) -> str:
    return quoted.rpartition(".")[2].strip('"')


def _listing(context: Context, column: str, ids: list[str]) -> str:
    """Brain cannot know the right values. So the hint shows the rows, and changes nothing."""
    distinct = list(dict.fromkeys(ids))
    shown = sql.SQL(", ").join(map(sql.Literal, distinct[:MAX_LISTED])).as_string()
    more = ""
    if len(distinct) > MAX_LISTED:
        more = f", the first {MAX_LISTED} of {len(distinct)}"
    in_sql = context.inspection.description.in_sql
    return (
        f"SELECT {in_sql('id')}, {in_sql(column)} FROM {context.sql_name}"
        f" WHERE {in_sql('id')} IN ({shown}); -- to look at{more}"
    )
