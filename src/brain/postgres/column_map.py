"""BRAIN_COLUMN_MAP: the columns of a table that have other names than the contract's fields."""

import difflib
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from brain.contract.messages import FIELDS
from brain.postgres.names import Name, letters, nearest, scan, shown

REQUIRED = ("id", "status")

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("runid", "uuid", "jobid"),
    "status": ("state", "runstatus", "runstate"),
    "progress": ("percent", "percentage", "progresspercent", "pct"),
    "task_id": ("taskid", "task"),
    "agent": ("agentname", "agentid", "worker", "assignee"),
    "started_at": ("startedat", "starttime", "begunat", "begun", "start"),
    "completed_at": ("completedat", "endedat", "finishedat", "endtime", "doneat", "end"),
    "error": ("errormessage", "errormsg", "errortext", "lasterror", "failurereason"),
}
"""Names that such columns often have, for hints: see names.letters."""


@dataclass(frozen=True, slots=True)
class ColumnMap:
    names: tuple[tuple[str, Name], ...] = ()
    """Fields of the contract, and the column of each."""

    @classmethod
    def parse(cls, text: str) -> "ColumnMap":
        """`field=column,…`. Raises ValueError."""
        names: dict[str, Name] = {}
        at = 0
        while text[at:].strip(" ,"):
            at += len(text[at:]) - len(text[at:].lstrip(" ,"))
            before, equals, _ = text[at:].partition("=")
            field = before.strip()
            if not equals or "," in before:
                pair = before.partition(",")[0].strip()
                raise ValueError(f"{pair!r} is not field=column, such as completed_at=ended_at")
            try:
                name, at = scan(text, at + len(before) + 1, ",")
            except ValueError as error:
                raise ValueError(f"the column of {field!r} is no name: {error}") from None
            if field not in FIELDS:
                raise ValueError(_no_field(field, name))
            if field in names:
                raise ValueError(f"{field} has two columns: give it one")
            names[field] = name
        _check_distinct(names)
        return cls(tuple(names.items()))

    def __str__(self) -> str:
        """As in the environment."""
        return ",".join(self._pairs(()))

    def resolve(self, columns: Collection[str]) -> dict[str, str]:
        """The column of each field, if it has one. A column that the map gives to one field is not
        that of another field which has its name.
        """
        mapped = {field: name.find(columns) for field, name in self.names}
        found: dict[str, str] = {}
        for field in FIELDS:
            column = mapped.get(field, field)
            if column in columns and (field in mapped or column not in mapped.values()):
                found[field] = str(column)
        return found

    def missing(self, columns: Collection[str]) -> Iterator[str]:
        """What the table lacks, and what it has instead."""
        for field, name in self.names:
            if name.find(columns) is None:
                alike = nearest(name.text, columns) or sorted(columns)[:10]
                yield (
                    f"no column {shown(name.text)}, which BRAIN_COLUMN_MAP gives to {field}: "
                    f"its nearest columns are {', '.join(map(shown, alike))}"
                )

    def shared(self, columns: Collection[str]) -> tuple[str, str, str] | None:
        """A column that the map gives to two fields, and these two."""
        fields: dict[str | None, str] = {}
        for field, name in self.names:
            column = name.find(columns)
            other = fields.setdefault(column, field)
            if column is not None and other != field:
                return column, other, field
        return None

    def created(self) -> dict[str, str]:
        """The column of each field in a table that Brain creates."""
        return self.resolve({*FIELDS, *(name.text for _, name in self.names)})

    def hint(self, found: Mapping[str, str]) -> str:
        """The setting that also gives these fields their columns, to paste into a shell."""
        added = [f"{field}={shown(column)}" for field, column in found.items()]
        return f"BRAIN_COLUMN_MAP={shlex.quote(','.join([*self._pairs(found), *added]))}"

    def _pairs(self, without: Collection[str]) -> Iterator[str]:
        for field, name in self.names:
            if field not in without:
                yield f"{field}={shown(name.text) if name.quoted else name.text}"


SAME_NAMES = ColumnMap()


def guess(fields: Collection[str], columns: Collection[str]) -> dict[str, str]:
    """Which of the columns may be meant for the fields, by their names."""
    by_letters = {letters(column): column for column in columns}
    found: dict[str, str] = {}
    for field in fields:
        for usual in (letters(field), *USUAL[field]):
            if usual in by_letters:
                found[field] = by_letters.pop(usual)
                break
    return found


def _no_field(field: str, name: Name) -> str:
    if name.text in FIELDS and field:
        return f"{field!r} is no field of the contract: write the field first, {name.text}={field}"
    alike = difflib.get_close_matches(field, FIELDS, 1)
    nearest_ = f"the nearest is {alike[0]}" if alike else f"the fields are {', '.join(FIELDS)}"
    return f"{field!r} is no field of the contract: {nearest_}"


def _check_distinct(names: Mapping[str, Name]) -> None:
    fields: dict[str, str] = {}
    for field, name in names.items():
        column = name.text
        other = fields.setdefault(column, field)
        if other != field:
            raise ValueError(f"{other} and {field} cannot both be the column {shown(column)}")
    for field in REQUIRED:
        if field not in names and field in fields:
            raise ValueError(
                f"{fields[field]} takes the column {field}, so map {field} to another one too"
            )
