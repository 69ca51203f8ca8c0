"""What a time without a zone means: BRAIN_TIMEZONE.

A value of type `timestamp` or `date` is a local time, and does not say of which zone. Brain reads
it, and writes it, as one of this zone. A `timestamptz` is a moment, so it never comes here.

When clocks change, a local time may not exist, or exist twice. Brain decides as PostgreSQL's AT
TIME ZONE does (PostgreSQL documentation, B.2 "Handling of Invalid or Ambiguous Timestamps"): one
that is skipped counts by the offset before the change, one that is repeated by the offset after it.
In both cases this is the smaller of the two offsets, and so the later moment.
"""

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from psycopg import sql

from brain.postgres.table import Column, Description

WITHOUT_ZONE = frozenset({"timestamp", "date"})
"""Built-in types of a time that does not say in which zone it is."""

TIME_FIELDS = ("started_at", "completed_at")
"""The fields of the contract that are times."""


@dataclass(frozen=True, slots=True)
class TimeZone:
    name: str
    zone: tzinfo
    chosen: bool = True
    """Somebody has set it. Otherwise it is the default."""

    @classmethod
    def parse(cls, text: str) -> "TimeZone":
        """A name of the IANA time zone database. Raises ValueError."""
        name = text.strip()
        if name.upper() in ("UTC", "Z"):
            return cls("UTC", UTC)
        names = available_timezones() - {"localtime", "Factory"}
        if name in names:
            return cls(name, ZoneInfo(name))
        if not names:
            raise ValueError(
                "this machine has no time zone database, so only UTC is known:"
                " install the package tzdata"
            )
        folded = {each.lower().rpartition("/")[2]: each for each in sorted(names)}
        folded |= {each.lower(): each for each in names}
        nearest = difflib.get_close_matches(name.lower(), folded, 1, cutoff=0.5)
        meant = f"; did you mean {folded[nearest[0]]}?" if nearest else ""
        raise ValueError(f"a time zone is UTC or a name such as Europe/Berlin{meant}")

    def __str__(self) -> str:
        return self.name

    def moment(self, local: datetime) -> datetime:
        """The moment of a local time, in UTC. Raises OverflowError."""
        if self.zone is UTC:
            return local.replace(tzinfo=UTC)
        first, second = (local.replace(tzinfo=self.zone, fold=fold).utcoffset() for fold in (0, 1))
        return local.replace(tzinfo=UTC) - min(first or timedelta(), second or timedelta())

    # SQL, for queries with parameters.

    def now(self, column: Column) -> sql.Composable:
        """The current time, as the column holds it."""
        return self._held(column, sql.SQL("now()"))

    def written(self, column: Column) -> sql.Composable:
        """A parameter, the text of a time with its offset, as the column holds it."""
        if column.base not in WITHOUT_ZONE:
            return sql.Placeholder()
        return self._held(column, sql.SQL("%s::timestamptz"))

    def _held(self, column: Column, moment: sql.Composable) -> sql.Composable:
        type_ = sql.SQL(column.type)  # describe() has quoted it
        if column.base not in WITHOUT_ZONE:
            return sql.SQL("{}::{}").format(moment, type_)
        return sql.SQL("({} AT TIME ZONE {})::{}").format(moment, sql.Literal(self.name), type_)


DEFAULT = TimeZone("UTC", UTC, chosen=False)


def without_zone(description: Description) -> list[str]:
    """The columns of times that do not say in which zone they are."""
    columns = description.columns
    return [
        columns[field].name
        for field in TIME_FIELDS
        if field in columns and columns[field].base in WITHOUT_ZONE
    ]
