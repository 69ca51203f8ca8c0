"""A run that a person may create and change, in the words of the table as it is.

For the commands that `brain serve` prints. Nothing is tried: an INSERT that is rolled back fires
the table's triggers, and takes a number from its sequence. The catalog says what a row needs.
"""

# ruff: noqa: S608 - it writes SQL, with names that the catalog has quoted

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import sql

from brain.contract.messages import Status
from brain.postgres.canonical import canonical
from brain.postgres.connection import Conn, connect
from brain.postgres.decoder import Decoder
from brain.postgres.names import shown
from brain.postgres.statements import escaped
from brain.postgres.statuses import listed_words
from brain.postgres.table import Description, Table, describe

CANDIDATES = 100
"""Ids of which one is probably free."""


@dataclass(frozen=True, slots=True)
class ExampleRun:
    body: Mapping[str, object] | None
    """Of a POST that creates the run. None if the API cannot create one in this table."""
    insert: str = ""
    """What creates it instead. "" if Brain cannot say."""
    update: str = ""
    """What changes it, or else a row that exists. "" if there is none."""
    lacks: str = ""
    """Why there is no command for the one or the other."""


def usual(table: Table) -> ExampleRun:
    """For a table that cannot be looked at yet."""
    names = {field: _quoted(name, field) for field, name in table.columns.created().items()}
    schema, name = _quoted(table.schema, "public"), _quoted(table.name, "runs")
    update = (
        f"UPDATE {name if table.schema == 'public' else f'{schema}.{name}'}"
        f" SET {names['status']}='running' WHERE {names['id']}='test-run-1'"
    )
    return ExampleRun({"id": "test-run-1"}, update=update)


def _quoted(name: str, usual_name: str) -> str:
    """In SQL; only the contract's own names are sure to need no quotes."""
    return name if name == usual_name else sql.Identifier(name).as_string()


async def look(url: str, table: Table, decoder: Decoder) -> ExampleRun:
    """Raises TableError, psycopg.Error."""
    async with await connect(url, "brain-example", statement_timeout="2s", lock_timeout="1s") as c:
        return await _Writer(c, table, decoder, await describe(c, table)).example()


@dataclass(frozen=True, slots=True)
class _Column:
    """What a row needs to say about the column."""

    name: str
    quoted: str
    """As SQL needs it."""
    type: str
    """The built-in type, also that of a domain; enum for every enum."""
    category: str
    """pg_type.typcategory."""
    length: int | None
    """Of varchar(n) and char(n)."""
    required: bool
    """NOT NULL, and nothing fills it in."""
    default: bool
    always: bool
    """PostgreSQL computes it, and refuses any other value."""
    unique: bool
    words: tuple[str, ...] | None
    """The only ones that it can hold."""
    references: tuple[str, str] | None
    """A table and its column, quoted: a foreign key of this column alone."""


_COLUMNS = """
SELECT a.attname, quote_ident(a.attname),
       CASE b.typtype WHEN 'e' THEN 'enum' ELSE b.typname::text END, b.typcategory,
       CASE WHEN b.typname IN ('varchar', 'bpchar') AND greatest(a.atttypmod, t.typtypmod) >= 4
            THEN greatest(a.atttypmod, t.typtypmod) - 4 END,
       (a.attnotnull OR t.typnotnull)
           AND NOT (a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL),
       a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
       a.attgenerated <> '' OR a.attidentity = 'a',
       EXISTS (SELECT FROM pg_index i
                WHERE i.indrelid = a.attrelid AND i.indisunique AND a.attnum = ANY (i.indkey)),
       (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder)
          FROM pg_enum e WHERE e.enumtypid = b.oid)::text,
       (SELECT json_agg(pg_get_constraintdef(k.oid) ORDER BY k.conname) FROM pg_constraint k
         WHERE k.contype = 'c' AND (k.conrelid = a.attrelid AND a.attnum = ANY (k.conkey)
                                    OR k.contypid = t.oid AND t.typtype = 'd'))::text,
       (SELECT json_build_array(k.confrelid::regclass, quote_ident(f.attname))
          FROM pg_constraint k JOIN pg_attribute f
               ON f.attrelid = k.confrelid AND f.attnum = k.confkey[1]
         WHERE k.contype = 'f' AND k.conrelid = a.attrelid AND k.conkey = ARRAY[a.attnum]
         ORDER BY k.conname LIMIT 1)::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid, LATERAL (
    WITH RECURSIVE base (oid) AS (
        SELECT t.oid UNION
        SELECT d.typbasetype FROM base JOIN pg_type d USING (oid) WHERE d.typtype = 'd')
    SELECT d.* FROM base JOIN pg_type d USING (oid) WHERE d.typtype <> 'd') b
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_TABLE = """
SELECT CASE WHEN to_regclass(quote_ident(c.relname)) = c.oid THEN quote_ident(c.relname)
            ELSE quote_ident(s.nspname) || '.' || quote_ident(c.relname) END,
       has_table_privilege(c.oid, 'INSERT') AND pg_relation_is_updatable(c.oid, true) & 8 <> 0,
       has_table_privilege(c.oid, 'UPDATE') AND pg_relation_is_updatable(c.oid, true) & 4 <> 0
FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE c.oid = %s
"""


async def _columns(conn: Conn, oid: int) -> dict[str, _Column]:
    rows = await (await conn.execute(_COLUMNS, (oid,))).fetchall()
    found: dict[str, _Column] = {}
    for row in rows:
        name, quoted, type_, category, length, required, default, always, unique, *rest = row
        labels, checks, references = (json.loads(each or "null") for each in rest)
        listed = (listed_words(check, str(name)) for check in checks or ())
        words = labels or next((each for each in listed if each is not None), None)
        found[str(name)] = _Column(
            str(name),
            str(quoted),
            str(type_),
            str(category),
            int(length) if length else None,
            required == "t",
            default == "t",
            always == "t",
            unique == "t",
            tuple(words) if words else None,
            tuple(references) if references else None,
        )
    return found


class _Writer:
    def __init__(
        self, conn: Conn, table: Table, decoder: Decoder, description: Description
    ) -> None:
        self._conn = conn
        self._table = table
        self._decoder = decoder
        self._description = description
        self._columns: dict[str, _Column] = {}
        self._name = ""
        """In SQL."""

    async def example(self) -> ExampleRun:
        oid = self._description.oid
        row = await (await self._conn.execute(_TABLE, (oid,))).fetchone()
        assert row is not None
        self._name, may_insert, may_update = str(row[0]), row[1] == "t", row[2] == "t"
        self._columns = await _columns(self._conn, oid)
        created, body, insert = "", None, ""
        lacks = f"this role may not insert into {self._table}"
        if may_insert:
            created, body, insert, lacks = await self._create()
        if not may_update:
            lacks = lacks or f"this role may not update {self._table}"
            return ExampleRun(body, insert, "", lacks)
        if created:
            word = self._next(self._first())
        else:
            created, word = await self._existing()
            if not created:
                return ExampleRun(
                    body, insert, "", lacks or "Brain cannot tell the id of the new run"
                )
        status, run_id = self._quoted("status"), self._quoted("id")
        update = f"UPDATE {self._name} SET {status}={_literal(word)} WHERE {run_id}={created}"
        return ExampleRun(body, insert, update, lacks)

    def _column(self, field: str) -> _Column:
        return self._columns[self._description.columns[field].name]

    def _quoted(self, field: str) -> str:
        return self._column(field).quoted

    def _first(self) -> str:
        """The word of a new run."""
        return self._word(("queued", "running"))

    def _next(self, word: str) -> str:
        """The word of a run that has this one now."""
        if self._decoder.status(word) == "running":
            return self._word(("completed", "failed"))
        return self._word(("running", "completed", "failed"))

    def _word(self, statuses: tuple[Status, ...]) -> str:
        """The first that the column can hold."""
        allowed = self._description.statuses.allowed
        words = [self._decoder.word(status, allowed) for status in statuses]
        return next((word for word in words if allowed is None or word in allowed), words[0])

    async def _create(self) -> tuple[str, Mapping[str, object] | None, str, str]:
        """The new run's id in SQL; the body of a POST, or else an INSERT; what an INSERT lacks."""
        run_id = self._column("id")
        given: dict[str, str] = {}
        if run_id.always or (run_id.default and run_id.category != "S" and run_id.type != "uuid"):
            made = f"(SELECT max({run_id.quoted}) FROM {self._name})"
            created = made if run_id.category == "N" else ""
        else:
            value = await self._free_id(run_id)
            if value is None:
                return "", None, "", f"the column {shown(run_id.name)} needs an id of your own"
            given["id"], created = value, _literal(value)
        for field, column in self._fields().items():
            if column.required and field not in ("id", "status"):
                value = await self._value(column)
                if value is None:
                    return "", None, "", f"the column {shown(column.name)} needs a value"
                given[field] = value
        if all(field in self._description.columns for field in given):
            return created, self._body(given), "", ""
        columns = self._fields()
        given["status"] = self._first()
        names = ", ".join(columns[field].quoted for field in given)
        values = ", ".join(_literal(value) for value in given.values())
        return created, None, f"INSERT INTO {self._name} ({names}) VALUES ({values})", ""

    def _fields(self) -> dict[str, _Column]:
        """The columns by their field of the contract; the others by their number."""
        names = {column.name: field for field, column in self._description.columns.items()}
        return {
            names.get(name, f"{number}"): column
            for number, (name, column) in enumerate(self._columns.items())
        }

    def _body(self, given: Mapping[str, str]) -> Mapping[str, object]:
        body: dict[str, object] = dict(given)
        if "progress" in body:
            body["progress"] = json.loads(given["progress"])
        for field in ("started_at", "completed_at"):
            if field in body:
                body[field] = _now()
        status = self._decoder.status(self._first())
        if status != "queued":
            body["status"] = status
        return body

    async def _free_id(self, column: _Column) -> str | None:
        if column.references is not None or column.words is not None:
            return None
        if column.type == "uuid":
            return str(uuid.uuid4())
        if column.category == "N":
            query = sql.SQL("SELECT trunc(max({}))::text FROM {}").format(
                sql.Identifier(column.name), self._table.sql
            )
            row = await (await self._conn.execute(query)).fetchone()
            most = str(row[0] if row is not None else "")
            most = most if most.lstrip("-").isdigit() else "0"
            return canonical(self._description.columns["id"], str(int(most) + 1))
        if column.category != "S":
            return None
        head = "test-run-" if column.length is None or column.length >= 12 else "t"
        wanted = [f"{head}{number}"[: column.length] for number in range(1, CANDIDATES + 1)]
        described = self._description
        query = sql.SQL("SELECT {} FROM {} r WHERE {} = ANY (%s::text[]::{}[])").format(
            described.unpadded("r", "id"),
            self._table.in_query,
            described.column("r", "id"),
            sql.SQL(described.columns["id"].type),
        )
        rows = await (await self._conn.execute(query, (wanted,))).fetchall()
        taken = {row[0] for row in rows}
        return next((each for each in wanted if each not in taken), None)

    async def _value(self, column: _Column) -> str | None:
        """A value that the column probably takes."""
        if column.references is not None:
            table, name = column.references
            query = f"SELECT {name}::text FROM {table} LIMIT 1"
            row = await (await self._conn.execute(query.encode())).fetchone()
            return None if row is None else row[0]
        if column.words:
            return column.words[0]
        return _made_up(column)

    async def _existing(self) -> tuple[str, str]:
        """The id of a row, in SQL, and the word for its next status: of a run that is not queued,
        the one that it has.
        """
        described = self._description
        status, run_id = described.column("r", "status"), described.unpadded("r", "id")
        select = sql.SQL("SELECT {}, {} FROM {} r WHERE {} LIMIT %s")
        for condition in (
            described.statuses.one_of("r", self._decoder.words("queued")),
            described.statuses.one_of("r", self._decoder.words("running", "completed", "failed")),
        ):
            query = select.format(run_id, status, self._table.in_query, sql.SQL(escaped(condition)))
            row = await (await self._conn.execute(query, (1,))).fetchone()
            if row is not None and row[0] is not None:
                word = str(row[1])
                if self._decoder.status(word) == "queued":
                    word = self._next(word)
                return _literal(row[0]), word
        return "", ""


_VALUES: Mapping[str, str] = {
    "B": "false",
    "A": "{}",
    "I": "127.0.0.1",
    "R": "empty",
    "T": "1 second",
    "date": "2026-01-01",
    "time": "12:00",
    "timetz": "12:00+00",
    "json": "{}",
    "jsonb": "{}",
    "bytea": "",
}
"""By type, or by category of types."""


def _made_up(column: _Column) -> str | None:
    match column.category, column.type:
        case _, "uuid":
            return str(uuid.uuid4())
        case "N", type_:
            most = 32_000 if type_ == "int2" else 2_000_000_000
            return str(random.randint(1, most)) if column.unique else "1"
        case "S", _:
            text = f"example-{uuid.uuid4().hex[:12]}" if column.unique else "example"
            return text[-column.length :] if column.length else text
        case "D", ("timestamp" | "timestamptz"):
            return _now()
        case category, type_:
            return _VALUES.get(type_, _VALUES.get(category))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _literal(text: str) -> str:
    """With quotes, so that PostgreSQL gives it the type of the column with which it is compared."""
    return sql.Literal(text).as_string().lstrip()
