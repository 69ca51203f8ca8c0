"""The text by which a column's type prints a value that a client gives in another form.

PostgreSQL compares values, and `/ws` compares the texts that the columns print. So a client's
`007` or `A0EEBC99-…` is first written as its column prints it: for the types below, as their input
functions read it (PostgreSQL documentation, 8.1 "Numeric Types", 8.3 "Character Types", 8.12 "UUID
Type"). Every other type is compared by the text that it prints.
"""

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from functools import partial

from brain.postgres.table import Column

SPACES = " \t\n\v\f\r"
"""What the input functions of numbers skip at both ends."""

_integer = re.compile(r"([+-]?)0*([0-9]+)", re.ASCII).fullmatch
_decimal = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", re.ASCII).fullmatch
_uuid = re.compile(r"(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}").fullmatch


def integer(text: str, bits: int) -> str | None:
    found = _integer(text.strip(SPACES))
    if found is None or len(found[2]) > 19:
        return None
    number = int(found[2]) * (-1 if found[1] == "-" else 1)
    return str(number) if -(1 << bits - 1) <= number < 1 << bits - 1 else None


def numeric(text: str, scale: int | None) -> str | None:
    """With a scale (`numeric(10, 2)`) the column prints that many digits behind the point. Without
    one it prints those with which the row was written: here, as few as the value needs.
    """
    text = text.strip(SPACES)
    if not _decimal(text):
        return None
    head, _, tail = f"{Decimal(text):f}".partition(".")
    tail = tail.rstrip("0")
    if scale is not None:
        if len(tail) > max(scale, 0):
            return None
        tail = tail.ljust(scale, "0")
    number = f"{head}.{tail}" if tail else head
    return number.removeprefix("-") if not number.strip("-0.") else number


def uuid(text: str) -> str | None:
    text = text.lower() if text.isascii() else ""
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if not _uuid(text):
        return None
    digits = text.replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def unpadded(text: str) -> str:
    """`char(n)`: spaces at the end have no meaning, and Brain sends none."""
    return text.rstrip(" ")


_FORMS: Mapping[str, Callable[[str], str | None]] = {
    "uuid": uuid,
    "int2": partial(integer, bits=16),
    "int4": partial(integer, bits=32),
    "int8": partial(integer, bits=64),
    "bpchar": unpadded,
}

COMPARABLE = frozenset(_FORMS)
"""Types whose `=` finds what the canonical text finds: a query may compare values and use an index.
"""


def canonical(column: Column | None, text: str) -> str | None:
    """What the column prints for this text. None: it cannot hold the value."""
    if column is None:
        return text
    if column.base == "numeric":
        return numeric(text, column.scale)
    form = _FORMS.get(column.base)
    return text if form is None else form(text)


class Columns:
    """The form of a client's values, once the table has been described: a subscription.Form."""

    def __init__(self, described: Callable[[], Mapping[str, Column] | None]) -> None:
        self._described = described

    def __call__(self, field: str, values: Collection[str]) -> frozenset[str] | None:
        columns = self._described()
        if columns is None:
            return None
        return printed(columns.get("id" if field == "run_id" else field), values)


def printed(column: Column | None, values: Collection[str]) -> frozenset[str]:
    """A value that the column cannot hold stays as it is: no row prints it. A `numeric` without a
    scale also prints what was written: 1.50, as the client read it, is kept beside 1.5.
    """
    forms = ((canonical(column, value), value) for value in values)
    kept = values if column is not None and (column.base, column.scale) == ("numeric", None) else ()
    return frozenset((*kept, *(value if form is None else form for form, value in forms)))
