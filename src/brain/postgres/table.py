"""The table that Brain follows: its name, its SQL, and what the catalog says about it."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files

from psycopg import sql

from brain.contract.errors import BrainError
from brain.contract.messages import FIELDS
from brain.postgres.column_map import REQUIRED, SAME_NAMES, ColumnMap, guess
from brain.postgres.connection import Conn
from brain.postgres.names import MAX_NAME, nearest, scan, shown
from brain.postgres.statements import escaped
from brain.postgres.statuses import StatusColumn, status_column


@dataclass(frozen=True, slots=True)
class Table:
    schema: str
    name: str
    columns: ColumnMap = SAME_NAMES
    published_as: str = ""
    """The publication that the catalog names, if Brain has looked (`inspect`)."""

    @classmethod
    def parse(cls, text: str) -> "Table":
        """`schema.name`, or `name` in the schema public; each may be quoted. Raises ValueError."""
        try:
            schema, name = _parts(text)
        except ValueError as error:
            raise ValueError(
                f"{text!r} is not the name of a table: {error}; write schema.name, such as "
                'public.runs, or "App"."Runs"'
            ) from None
        return cls(schema, name)

    def __str__(self) -> str:
        """As in a setting."""
        return f"{shown(self.schema)}.{shown(self.name)}"

    @property
    def in_query(self) -> sql.SQL:
        """The name, for a query that has parameters."""
        return sql.SQL(escaped(self.sql))

    @property
    def sql(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def publication(self) -> str:
        """The name of its publication."""
        return self.published_as or self.publications[0]

    @property
    def publications(self) -> tuple[str, str]:
        """The usual name of its publication, and the one for a table whose usual name is taken.

        The usual names of a_b.c and a.b_c are equal, and so may be those of long names, which are
        cut as PostgreSQL would cut them. The digest of the other one tells them apart.
        """
        usual = f"brain_{self.schema}_{self.name}".encode()
        digest = sha256(f"{self.schema}\0{self.name}".encode()).hexdigest()[:8]
        other = f"{usual[: MAX_NAME - 9].decode(errors='ignore')}_{digest}"
        return usual[:MAX_NAME].decode(errors="ignore"), other


def _parts(text: str) -> tuple[str, str]:
    first, at = scan(text, 0, ".")
    if at == len(text):
        return "public", first.text
    second, at = scan(text, at + 1, ".")
    if at < len(text):
        raise ValueError("it has more than two parts")
    return first.text, second.text


def init_sql(table: Table) -> str:
    """SQL that creates the table, its index and its publication, unless the table exists.

    A table that exists, and its publication, are for `publication.initialize`.
    """
    names: dict[str, sql.Composable] = {
        "table": table.sql,
        "table_text": sql.Literal(table.sql.as_string()),
        "schema": sql.Identifier(table.schema),
        "schema_text": sql.Literal(sql.Identifier(table.schema).as_string()),
        "schema_name": sql.Literal(table.schema),
        "table_name": sql.Literal(table.name),
        "publication_text": sql.Literal(table.publications[0]),
        "other_publication_text": sql.Literal(table.publications[1]),
    }
    for name, column in table.columns.created().items():
        names[name] = sql.SQL(name) if column == name else sql.Identifier(column)
    template = files("brain.postgres").joinpath("schema.sql").read_text("utf-8")
    if lacking := [f"{{{each}}}" for each in FIELDS if each not in names]:
        lines = template.splitlines(keepends=True)
        template = "".join(line for line in lines if not any(each in line for each in lacking))
        template = re.sub(r",\n {4}\);", "\n    );", template)  # behind the last column
    if "$brain$" in f"{table} {table.columns}":
        template = template.replace("$brain$", "$brain_init_db$")
    return sql.SQL(template).format(**names).as_string()


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    """The type's name, quoted and with its schema, for a cast in a query that has parameters."""
    generated: bool
    default: bool
    base: str = ""
    """The name of a built-in type (of a domain: of its base type): uuid, int8, bpchar …"""
    scale: int | None = None
    """Of a numeric with one: digits behind the point."""
    number: int = 0
    """pg_attribute.attnum, which a column keeps under another name, and no other column gets."""
    exact: bool = True
    """Equal texts are the same text. Under a nondeterministic collation, `a` may equal `A`."""

    @property
    def plain(self) -> bool:
        """A string whose cast to text prints the value, and serves an index."""
        return self.exact and self.base in ("text", "varchar", "bpchar")


@dataclass(frozen=True, slots=True)
class Description:
    """What the catalog says about the table, as far as Brain depends on it."""

    oid: int
    kind: str
    """pg_class.relkind: r table, p partitioned, v view, m materialized view, f foreign."""
    logged: bool
    replica_identity: str
    """pg_class.relreplident: d primary key, f all columns, i an index, n nothing."""
    primary_key: tuple[str, ...]
    """Names of the table's columns."""
    identity: tuple[str, ...]
    """Names of the table's columns in the replica identity: what the stream carries of a row's old
    version."""
    columns: Mapping[str, Column]
    """By the fields of the contract."""
    others: tuple[Column, ...]
    """The table's other columns."""
    tree: frozenset[int]
    """The OIDs of all tables that a query of this one reads: itself, and, at any depth, its
    partitions or the tables that inherit from it."""
    statuses: StatusColumn = field(compare=False)
    """Not compared: a stream does not depend on it."""

    def select(self, alias: str, max_text: int) -> sql.Composable:
        """The fields of the contract as a select list, with NULL for a column that the table lacks.

        No cast: the stream carries the output of the type itself, and for bool a cast differs from
        that. Only the padding of char(n), which the cast takes away, is left out there too.
        """
        return sql.SQL(", ").join(
            sql.SQL("NULL")
            if field not in self.columns
            else self._cut(alias, field, max_text)
            if field == "error"
            else self.unpadded(alias, field)
            for field in FIELDS
        )

    def _cut(self, alias: str, field: str, max_text: int) -> sql.Composable:
        """One more character than the bound, so that the decoder sees that the text is longer."""
        column, base = self.column(alias, field), self.columns[field].base
        if base in _SHORT:
            return column
        return sql.SQL("pg_catalog.left({}::text, {})").format(column, max_text + 1)

    @property
    def padded(self) -> tuple[int, ...]:
        """The places in FIELDS of the columns of type char(n)."""
        found = ((i, self.columns.get(field)) for i, field in enumerate(FIELDS))
        return tuple(i for i, column in found if column is not None and column.base == "bpchar")

    def unpadded(self, alias: str, field: str) -> sql.Composable:
        """The column, which prints the field without the padding of char(n)."""
        column = self.column(alias, field)
        return (
            sql.SQL("{}::text").format(column) if self.columns[field].base == "bpchar" else column
        )

    @property
    def inherited(self) -> bool:
        """Other tables inherit from it without being its partitions."""
        return self.kind == "r" and len(self.tree) > 1

    def column(self, alias: str, field: str) -> sql.SQL:
        """The column of a field that has one, for a query that has parameters."""
        return sql.SQL(escaped(sql.Identifier(*filter(None, (alias, self.columns[field].name)))))

    def in_sql(self, field: str) -> str:
        """The column's name for SQL that a person pastes: the contract's own needs no quotes."""
        name = self.columns[field].name
        return name if name == field else sql.Identifier(name).as_string()

    def field(self, column: str) -> str:
        """The field that the column has in the contract, or its own name."""
        return next((f for f, found in self.columns.items() if found.name == column), column)

    def is_key_of_id(self, detail: str) -> bool:
        """Whether PostgreSQL's detail about a duplicate is about the id alone: `Key (id)=(…)`."""
        name = self.columns["id"].name
        return f"({name})=" in detail or f"({sql.Identifier(name).as_string()})=" in detail

    @property
    def id_is_key(self) -> bool:
        return self.primary_key == (self.columns["id"].name,)


_SHORT = frozenset({"bool", "inet", "cidr"})
"""Built-in types whose cast to text prints another text than their output: true for t, and an
address with its netmask. Of xml, it is the same wherever the client's encoding is the server's."""

_DESCRIBE = """
SELECT c.oid, c.relkind, c.relpersistence, c.relreplident,
       (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_index i
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
         WHERE i.indrelid = c.oid AND i.indisprimary),
       (SELECT json_agg(a.attname ORDER BY a.attnum)
          FROM pg_attribute a
          LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey)
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND CASE c.relreplident WHEN 'f' THEN true WHEN 'd' THEN i.indisprimary
               WHEN 'i' THEN i.indisreplident END),
       (SELECT json_agg(json_build_array(a.attname, n.nspname, t.typname, a.attgenerated <> '',
                                         a.atthasdef OR a.attidentity <> '',
                                         (WITH RECURSIVE b(oid, typmod) AS (
                                              SELECT t.oid, a.atttypmod UNION ALL
                                              SELECT d.typbasetype, d.typtypmod
                                                FROM b JOIN pg_type d USING (oid)
                                               WHERE d.typtype = 'd')
                                          SELECT json_build_array(d.typname, b.typmod)
                                            FROM b JOIN pg_type d USING (oid)
                                           WHERE d.typtype <> 'd'
                                             AND d.typnamespace = 'pg_catalog'::regnamespace),
                                         a.attnum,
                                         coalesce((SELECT k.collisdeterministic FROM pg_collation k
                                                    WHERE k.oid = a.attcollation), true))
                        ORDER BY a.attnum)
          FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
          JOIN pg_namespace n ON n.oid = t.typnamespace
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (WITH RECURSIVE tree (oid) AS (
            SELECT c.oid UNION
            SELECT i.inhrelid FROM pg_inherits i JOIN tree t ON i.inhparent = t.oid)
        SELECT json_agg(t.oid::bigint) FROM tree t)
FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
WHERE s.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""


class TableError(BrainError):
    """Brain cannot follow the table as it is: its owner, or a setting, must change something.

    `hint` is the setting to paste, if Brain can guess it.
    """

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.hint = hint


class MissingTableError(TableError):
    """The table does not exist."""


def _base(name: str = "", modifier: int = -1) -> tuple[str, int | None]:
    """The scale of a numeric lies in the lowest eleven bits of its modifier, with a sign."""
    if name != "numeric" or modifier < 4:
        return name, None
    return name, ((modifier - 4 & 0x7FF) ^ 0x400) - 0x400


_TABLES = """
SELECT s.nspname, c.relname FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND s.nspname !~ '^pg_'
      AND s.nspname <> 'information_schema' AND (s.nspname = %s
           OR pg_catalog.lower(c.relname) = pg_catalog.lower(%s))
ORDER BY 1, 2 LIMIT 1000
"""


async def _alike(conn: Conn, table: Table) -> str:
    """What else BRAIN_TABLE may mean."""
    rows = await (await conn.execute(_TABLES, (table.schema, table.name))).fetchall()
    tables = [str(Table(str(schema), str(name))) for schema, name in rows]
    alike = nearest(str(table), tables)
    return f", such as {' or '.join(alike)}" if alike else ""


async def describe(conn: Conn, table: Table) -> Description:
    """Raises MissingTableError, or TableError if the table has no column `id` or `status`."""
    row = await (await conn.execute(_DESCRIBE, (table.schema, table.name))).fetchone()
    if row is None:
        raise MissingTableError(
            f"there is no table {table} in database {conn.info.dbname!r}: "
            "create it with `brain init-db`, or name another table in BRAIN_TABLE"
            + await _alike(conn, table),
            f"brain init-db  # or name another table than {table} in BRAIN_TABLE",
        )
    oid, kind, persistence, replica, key, identity, columns, tree = (value or "" for value in row)
    found = {
        name: Column(
            name,
            escaped(sql.Identifier(schema, type_)),
            generated,
            default,
            *_base(*(base or ())),
            number,
            exact,
        )
        for name, schema, type_, generated, default, base, number, exact in json.loads(
            columns or "[]"
        )
    }
    primary_key = tuple(json.loads(key or "[]"))
    names = _resolve(table, found, primary_key)
    statuses = await status_column(conn, int(oid), names["status"])
    if statuses is None:
        raise TableError(f"the table {table} changed while Brain looked at it")
    return Description(
        oid=int(oid),
        kind=kind,
        logged=persistence == "p",
        replica_identity=replica,
        primary_key=primary_key,
        identity=tuple(dict.fromkeys(json.loads(identity or "[]"))),
        columns={field: found[name] for field, name in names.items()},
        others=tuple(column for name, column in found.items() if name not in names.values()),
        tree=frozenset(json.loads(tree)),
        statuses=statuses,
    )


def _resolve(table: Table, columns: Collection[str], key: tuple[str, ...]) -> dict[str, str]:
    """The column of each field that has one. Raises TableError."""
    if unknown := list(table.columns.missing(columns)):
        raise TableError(f"the table {table} has {'; and '.join(unknown)}")
    if shared := table.columns.shared(columns):
        column, one, other = shared
        raise TableError(
            f"BRAIN_COLUMN_MAP gives the column {shown(column)} of {table} to {one} and to {other}:"
            " give it to one of them"
        )
    names = table.columns.resolve(columns)
    missing = [field for field in REQUIRED if field not in names]
    if missing:
        usual = guess(missing, [name for name in columns if name not in names.values()])
        if "id" in missing and len(key) == 1 and key[0] not in (*names.values(), *usual.values()):
            usual["id"] = key[0]
        raise TableError(
            f"the table {table} has no column {' and no column '.join(missing)}: "
            "Brain needs id and status; its other columns are optional",
            table.columns.hint(usual) if usual else "",
        )
    return names
