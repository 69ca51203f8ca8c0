"""The words of the column `status`: what they mean, and how SQL finds the rows that have them.

Two words are one if they differ only in the case of ASCII letters and in spaces around them: the
padding of char(n). PostgreSQL and Python fold them alike, whatever the locale: under `COLLATE "C"`,
lower() changes only ASCII.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from brain.contract.messages import STATUSES, Status
from brain.postgres.connection import Conn
from brain.postgres.statements import escaped

COMMON: Final[Mapping[str, Status]] = {
    "pending": "queued",
    "scheduled": "queued",
    "waiting": "queued",
    "in_progress": "running",
    "started": "running",
    "active": "running",
    "success": "completed",
    "succeeded": "completed",
    "done": "completed",
    "finished": "completed",
    "error": "failed",
    "cancelled": "failed",
    "canceled": "failed",
    "timeout": "failed",
    "timed_out": "failed",
    "aborted": "failed",
    "killed": "failed",
}
"""What common words mean, unless the map says something else."""

STRICT: Final[Mapping[str, Status]] = {status: status for status in STATUSES}
"""BRAIN_STATUS_MAP=strict. A map that contains these four pairs is complete: no common word
counts."""


def fold(word: str) -> str:
    return word.strip(" ").encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


class Words:
    """The contract's words, the common ones, and those of `given`, which overrides the others."""

    def __init__(self, given: Mapping[str, Status]) -> None:
        self.strict = STRICT.items() <= given.items()
        self.given = given
        self._own = {word: status for word, status in given.items() if fold(word) != status}
        common = {} if self.strict else COMMON
        folded = {fold(word): status for word, status in given.items()}
        self._meanings: dict[str, Status] = {**STRICT, **common, **folded}

    def meaning(self, word: str) -> Status | None:
        return self._meanings.get(fold(word))

    def of(self, statuses: Collection[str]) -> list[str]:
        """Every word, folded, for one of these statuses."""
        return [word for word, status in self._meanings.items() if status in statuses]

    def to_write(self, status: Status, allowed: Sequence[str] | None = None) -> str:
        """The map's word if it names exactly one, or the contract's; or else, in a column that
        allows only certain words, one of those.
        """
        own = [word for word, meaning in self._own.items() if meaning == status]
        candidates: list[str] = [*(own if len(own) == 1 else ()), status, *own, *self.of((status,))]
        spelled: dict[str, str] = {fold(word): word for word in allowed or ()}
        for word in candidates:
            if self.meaning(word) != status:
                continue
            if allowed is None or word in allowed:
                return word
            if fold(word) in spelled:
                return spelled[fold(word)]
        return status


@dataclass(frozen=True, slots=True)
class StatusColumn:
    """How to compare the column `status` with words."""

    name: str
    enum: str
    """The name of the enum, quoted and with its schema; "" if it is none. The words are compared as
    its values, so that an index on the column serves."""
    textual: bool
    """A string type, whose cast to text prints the value."""
    allowed: tuple[str, ...] | None
    """The only words that it can hold, if the catalog says so."""

    def one_of(self, alias: str, words: Collection[str]) -> sql.Composable:
        """The condition that the word, folded, is one of `words`, for a query without parameters.

        It is made of constants, because a partial index serves no parameter.
        """
        wanted = self._wanted(words)
        if not wanted:
            return sql.SQL("false")
        listed = sql.SQL(", ").join(map(sql.Literal, wanted))
        return sql.SQL("{} IN ({})").format(self._compared(alias), listed)

    @property
    def indexable(self) -> bool:
        """Whether an index may contain the condition: one that format() prints, it may not."""
        return bool(self.enum) or self.textual

    def any_of(self, alias: str, words: Collection[str]) -> tuple[sql.SQL, list[str]]:
        """The same for a query with parameters: a text, and the words with which to compare it."""
        # An enum's text, because PostgreSQL rejects a word that it does not have.
        text = self.folded(alias) if self.enum else self._compared(alias)
        return sql.SQL(escaped(text)), list(words) if self.enum else self._wanted(words)

    def folded(self, alias: str) -> sql.Composable:
        """The word, folded, for a query with parameters, whatever the type."""
        return sql.SQL(escaped(sql.SQL(_folded(alias)).format(self._text(alias))))

    def _wanted(self, words: Collection[str]) -> list[str]:
        if self.allowed is None:
            return list(words)
        return [word for word in self.allowed if fold(word) in words]

    def _compared(self, alias: str) -> sql.Composable:
        if self.enum:  # the cast is for a domain over it
            return sql.SQL("{}::{}").format(self._column(alias), sql.SQL(self.enum))
        form = _folded(alias) if self.allowed is None else "{}"
        return sql.SQL(form).format(self._text(alias))

    def _text(self, alias: str) -> sql.Composable:
        """As the type prints it. A cast to text may differ (bool), but only a cast finds an
        index.
        """
        form = "{}::text" if self.enum or self.textual else f"{_schema(alias)}format('%s', {{}})"
        return sql.SQL(form).format(self._column(alias))

    def _column(self, alias: str) -> sql.Identifier:
        return sql.Identifier(alias, self.name) if alias else sql.Identifier(self.name)


def _folded(alias: str) -> str:
    return f'{_schema(alias)}lower({_schema(alias)}btrim({{}} COLLATE "C"))'


def _schema(alias: str) -> str:
    """A search_path may have functions of these names before PostgreSQL's (orafce recommends one).
    A person who pastes the condition of an index reads it more easily without.
    """
    return "pg_catalog." if alias else ""


_COLUMN = """
SELECT CASE WHEN t.typtype = 'e' THEN json_build_array(n.nspname, t.typname) END,
       t.typcategory = 'S', t.oid = 'bpchar'::regtype,
       CASE WHEN t.typtype = 'e' THEN
           (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder)
              FROM pg_enum e WHERE e.enumtypid = t.oid)::text END,
       (SELECT json_agg(pg_get_constraintdef(c.oid) ORDER BY c.conname) FROM pg_constraint c
         WHERE c.contype = 'c' AND c.convalidated AND NOT c.connoinherit
           AND (c.conrelid = a.attrelid OR a.atttypid <> t.oid AND c.contypid = a.atttypid))::text
FROM pg_attribute a, LATERAL (
    WITH RECURSIVE base (oid) AS (
        SELECT a.atttypid UNION
        SELECT d.typbasetype FROM base JOIN pg_type d USING (oid) WHERE d.typtype = 'd')
    SELECT d.* FROM base JOIN pg_type d USING (oid) WHERE d.typtype <> 'd') t
    JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = %s AND a.attname = %s AND NOT a.attisdropped
"""


async def status_column(conn: Conn, oid: int, name: str) -> StatusColumn | None:
    """None if the table has no such column: it may have changed since it was described."""
    row = await (await conn.execute(_COLUMN, (oid, name))).fetchone()
    if row is None:
        return None
    enum, textual, padded, labels, checks = row
    if enum is not None:
        type_ = sql.Identifier(*json.loads(enum)).as_string()
        return StatusColumn(name, type_, False, tuple(json.loads(labels or "[]")))
    found = (listed_words(check, name) for check in json.loads(checks or "[]"))
    allowed = next((words for words in found if words is not None), None)
    if allowed is not None and padded == "t":  # as the cast to text prints them
        allowed = tuple(word.rstrip(" ") for word in allowed)
    return StatusColumn(name, "", textual == "t", allowed if textual == "t" else None)


_TYPE = r'(?:::(?:text|character varying|bpchar|character|"[^"]+"|\w+)(?:\(\d+\))?)?'
_ONE = rf"'(?:[^']|'')*'{_TYPE}"


def listed_words(check: str | None, column: str) -> tuple[str, ...] | None:
    """The words of a constraint that lists them, as pg_get_constraintdef() prints it:
    `CHECK ((status = ANY (ARRAY['a'::text, 'b'::text])))`. None for any other constraint, and for
    one that is being dropped: that function, which does not use the query's snapshot, returns NULL.
    """
    if check is None:
        return None
    quoted = re.escape(sql.Identifier(column).as_string())
    subject = rf"(?:VALUE|{quoted}|{re.escape(column)})"
    casted = rf"(?:{subject}|\({subject}\){_TYPE})"
    listed = rf"\(?ARRAY\[({_ONE}(?:, {_ONE})*)\]\)?(?:::(?:text|character varying|bpchar)\[\])?"
    match = re.fullmatch(rf"CHECK \(\({casted} = ANY \({listed}\)\)\)", check)
    if match is None:
        return None
    return tuple(_unquoted(re.findall(r"'((?:[^']|'')*)'", match[1])))


def _unquoted(literals: Iterable[str]) -> list[str]:
    return [literal.replace("''", "'") for literal in literals]
