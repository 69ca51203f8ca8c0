"""Rows as PostgreSQL prints them, decoded to runs of the contract."""

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from brain.contract.messages import ACTIVE, CUT, MAX_ID_BYTES, STATUSES, UNCHANGED, Run, Status
from brain.postgres.statuses import Words, fold
from brain.postgres.text import Unreadable
from brain.postgres.time_zone import DEFAULT, TimeZone

T = TypeVar("T")

log = structlog.get_logger()


DIALECT = 2
"""Raise it when a row becomes another run than before: clients cannot resume over such an update of
Brain."""

MAX_SPELLINGS = 1000
"""Cached spellings of status words. A spelling beyond this number is folded each time."""

MAX_KNOWN = 4096
"""Texts of numbers and of times whose meaning is kept."""

MAX_KNOWN_TEXT = 40
"""Characters of one. PostgreSQL prints none longer."""

MAX_REASONS = 20
"""Reasons to reject rows that are named. Rows with others are only counted."""

_SHORTEST_LONG_ID = MAX_ID_BYTES // 4
"""Characters. A shorter id is within the bound, because a character has four bytes at most."""


@dataclass(slots=True)
class Rejected:
    """Rows that the contract cannot express, for one reason."""

    what: str
    """What they have: `status 'paused'`."""
    hint: str
    """What to set or to do."""
    rows: int = 0


class Meanings(dict[str, T]):
    """What the last few thousand texts of a kind mean. A subscript is a third of the cost of a call
    to a function with an lru_cache.

    `read` says what a new one means, and whether it is worth keeping.
    """

    def __init__(self, read: Callable[[str], tuple[T, bool]]) -> None:
        self._read = read

    def __missing__(self, text: str) -> T:
        meaning, keep = self._read(text)
        if keep and len(text) <= MAX_KNOWN_TEXT:
            if len(self) >= MAX_KNOWN:
                self.clear()
            self[text] = meaning
        return meaning


class Decoder:
    """`statuses` maps the table's own words to the statuses of the contract. See statuses.py.
    `zone` is that of times without one.

    A row that the contract cannot express (no id, an unknown status) is rejected: counted, and
    logged once per word. A value that it cannot express (NaN, the year 10000, bytes that are no
    text) is left out of its run or replaced, and progress out of range becomes 0 or 100: all are
    counted as corrected.
    """

    def __init__(
        self, statuses: Mapping[str, Status], max_text: int, zone: TimeZone = DEFAULT
    ) -> None:
        self._words = Words(statuses)
        self._statuses: dict[str | None, str] = {UNCHANGED: UNCHANGED}
        """What a word means, as it is spelled in the rows."""
        self.max_text = max_text
        self.zone = zone
        self._numbers = Meanings(self._progress)
        self._times = Meanings(self._time)
        """Known, because each change of a run repeats its started_at."""
        self.rejected = 0
        self.corrected = 0
        self._reasons: dict[str, Rejected] = {}
        self._unreadable: set[str] = set()

    @property
    def reasons(self) -> list[Rejected]:
        """Why rows were rejected: at most MAX_REASONS, and one for all others."""
        return list(self._reasons.values())

    @property
    def dialect(self) -> str:
        """What the run that a row becomes depends on, besides the row."""
        words = [self.words(status) for status in STATUSES]
        return f"{DIALECT} {self.max_text} {self.zone.name} {words}"

    @property
    def active_words(self) -> list[str]:
        """The words for queued and running, folded."""
        return self.words(*ACTIVE)

    def words(self, *statuses: str) -> list[str]:
        """Every word for one of these statuses, folded."""
        return self._words.of(statuses)

    def word(self, status: Status, allowed: Sequence[str] | None = None) -> str:
        """The word to write for `status` into a column that allows these words, or any."""
        return self._words.to_write(status, allowed)

    def status(self, word: str | None) -> str | None:
        """None if the word stands for no status of the contract."""
        status = self._statuses.get(word)
        if status is None and word is not None:
            status = self._words.meaning(word)
            if status is not None and len(self._statuses) < MAX_SPELLINGS:
                self._statuses[word] = status
        return status

    def __call__(self, row: Sequence[str | None]) -> Run | None:
        """`row` has the fields of the contract in their order. None: the row is rejected."""
        run_id, word, progress, task_id, agent, started_at, completed_at, error = row
        status = self._statuses.get(word) or self.status(word)
        if (
            status is None
            or not run_id
            or (len(run_id) > _SHORTEST_LONG_ID and not is_expressible(run_id))
        ):
            self._reject(run_id, word)
            return None
        limit = self.max_text
        return (
            run_id,
            status,
            None if progress is None else self._numbers[progress],
            task_id if task_id is None or len(task_id) <= limit else self._cut("task_id", task_id),
            agent if agent is None or len(agent) <= limit else self._cut("agent", agent),
            None if started_at is None else self._times[started_at],
            None if completed_at is None else self._times[completed_at],
            error if error is None or len(error) <= limit else self._cut("error", error),
        )

    def _reject(self, run_id: str | None, word: str | None) -> None:
        self.rejected += 1
        if not run_id:
            what, hint = "an empty id", "give the run an id"
        elif isinstance(run_id, Unreadable):
            what, hint = "an id with bytes that are no text", "give the run another id"
        elif not is_expressible(run_id):
            what = f"an id of more than {MAX_ID_BYTES} bytes"
            hint = "give the run a shorter one"
        else:
            what, hint = self._word_and_hint(word)
        if what not in self._reasons and len(self._reasons) >= MAX_REASONS:
            what, hint = "other words or ids", "brain doctor lists some of them"
        reason = self._reasons.get(what)
        if reason is None:
            reason = self._reasons[what] = Rejected(what, hint)
            log.warning(
                "row rejected",
                detail=f"{what} has no place in the contract: clients do not see the run",
                id=str(run_id)[:40],
                hint=hint,
            )
        reason.rows += 1

    def _word_and_hint(self, word: str | None) -> tuple[str, str]:
        """What is wrong with a row of this status, and what to do about it."""
        if word is None:
            return "status NULL", "give the run a status"
        return f"status {word[:40]!r}", self.map_hint([word])

    def map_hint(self, words: Sequence[str]) -> str:
        """The setting that maps these unknown words as well, to paste into a shell."""
        meant = [fold(word) for word in words]
        if not all(word and len(word) <= 40 and word.isprintable() for word in meant) or any(
            isinstance(word, Unreadable) or "," in word or "=" in word for word in words
        ):
            return "rename it in the table: BRAIN_STATUS_MAP cannot contain this word"
        given = [f"{word}={status}" for word, status in self._words.given.items()]
        if self._words.strict:
            given = ["strict", *(pair for pair in given if len(set(pair.split("="))) == 2)]
        pairs = ",".join([*given, *(f"{word}=failed" for word in dict.fromkeys(meant))])
        return f"BRAIN_STATUS_MAP={shlex.quote(pairs)}  # or =queued, =running, =completed"

    def _cut(self, field: str, text: str) -> str:
        """A text at the bound, or one that is Unreadable, which says that it is longer than any."""
        if isinstance(text, Unreadable):
            self._correct(field)
            text = str(text)  # without its false length
        return text if len(text) <= self.max_text else text[: self.max_text] + CUT

    def _correct(self, field: str) -> None:
        self.corrected += 1
        if field not in self._unreadable:
            self._unreadable.add(field)
            log.warning(
                "value corrected",
                field=field,
                detail="bytes that are no text in the database's encoding are pushed as U+FFFD",
                hint="brain_values_corrected_total counts them",
            )

    def _progress(self, text: str) -> tuple[float | None, bool]:
        value = _number(text)
        if 0 <= value <= 100:
            return value, True
        self.corrected += 1
        return None if math.isnan(value) else 0 if value < 0 else 100, False

    def _time(self, text: str) -> tuple[str | None, bool]:
        moment = _utc(self.zone, text)
        if moment is None:
            self.corrected += 1
        return moment, moment is not None


def is_expressible(run_id: str) -> bool:
    return not isinstance(run_id, Unreadable) and len(run_id.encode()) <= MAX_ID_BYTES


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return int(value) if value.is_integer() else value


_printed = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\+00", re.ASCII).fullmatch


def _utc(zone: TimeZone, text: str) -> str | None:
    """ISO 8601 in UTC, with Z. A time without a zone is one of `zone`.

    None if it is not a time, or not one that ISO 8601 and Python can express: the column may have
    any type. A number is none: 1801010112345 is a moment in milliseconds, and Python would read it
    as one of the year 1801.
    """
    if text.isdecimal():
        return None
    try:
        moment = datetime.fromisoformat(text)
        if _printed(text):
            return f"{text[:10]}T{text[11:-3]}Z"
        moment = zone.moment(moment) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat().replace("+00:00", "Z")
