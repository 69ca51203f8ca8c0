"""Rows as PostgreSQL prints them, decoded to runs of the contract."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import structlog

from brain.contract.messages import ACTIVE, STATUSES, UNCHANGED, Run, Status

log = structlog.get_logger()


CUT = "… [cut]"
"""The end of a text that was cut at the bound."""


class Decoder:
    """`statuses` maps the table's own words to the statuses of the contract.

    A row that the contract cannot express (no id, an unknown status) is rejected: counted, and
    logged once per word. A value that it cannot express (NaN, the year 10000) is left out of its
    run, and progress out of range becomes 0 or 100: both are counted as corrected.
    """

    def __init__(self, statuses: Mapping[str, Status], max_text: int) -> None:
        self._map = dict(statuses)
        self._statuses: dict[str | None, str] = {
            status: status for status in (*STATUSES, UNCHANGED)
        }
        self._statuses.update(statuses)
        self.max_text = max_text
        self.rejected = 0
        self.corrected = 0
        self._words: Counter[str] = Counter()

    @property
    def active_words(self) -> list[str]:
        """The table's words for queued and running."""
        return self.words(*ACTIVE)

    def words(self, *statuses: str) -> list[str]:
        """Every word of the table for one of these statuses."""
        return [
            word
            for word, status in self._statuses.items()
            if word is not None and status in statuses
        ]

    def word(self, status: Status) -> str:
        """The table's word to write for `status`: the first that the map gives, or itself."""
        return next((word for word, mapped in self._map.items() if mapped == status), status)

    def status(self, word: str | None) -> str | None:
        """None if the word stands for no status of the contract."""
        return self._statuses.get(word)

    def __call__(self, row: Sequence[str | None]) -> Run | None:
        """`row` has the fields of the contract in their order. None: the row is rejected."""
        run_id, word, progress, task_id, agent, started_at, completed_at, error = row
        status = self._statuses.get(word)
        if status is None or not run_id or len(run_id) > self.max_text:
            self._reject(run_id, word)
            return None
        return (
            run_id,
            status,
            None if progress is None else self._progress(progress),
            task_id if task_id is None or len(task_id) <= self.max_text else self._cut(task_id),
            agent if agent is None or len(agent) <= self.max_text else self._cut(agent),
            None if started_at is None else self._time(started_at),
            None if completed_at is None else self._time(completed_at),
            error if error is None or len(error) <= self.max_text else self._cut(error),
        )

    def _reject(self, run_id: str | None, word: str | None) -> None:
        self.rejected += 1
        if not run_id:
            what, hint = "an empty id", "give the run an id"
        elif len(run_id) > self.max_text:
            what, hint = (
                f"an id of more than {self.max_text} characters",
                "give the run a shorter one, or raise BRAIN_MAX_TEXT",
            )
        else:
            what, hint = (
                f"status {str(word)[:40]!r}",
                "map the table's own words with BRAIN_STATUS_MAP",
            )
        self._words[what] += 1
        if self._words[what] == 1 and len(self._words) <= 100:
            log.warning(
                "row rejected",
                detail=f"{what} has no place in the contract",
                id=str(run_id)[:40],
                hint=hint,
            )

    def _cut(self, text: str) -> str:
        return text[: self.max_text] + CUT

    def _progress(self, text: str) -> float | None:
        value = _number(text)
        if 0 <= value <= 100:
            return value
        self.corrected += 1
        return None if math.isnan(value) else 0 if value < 0 else 100

    def _time(self, text: str) -> str | None:
        moment = _utc(text)
        if moment is None:
            self.corrected += 1
        return moment


@lru_cache(maxsize=4096)  # thousands of rows have few different values
def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return int(value) if value.is_integer() else value


_printed = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\+00", re.ASCII).fullmatch


@lru_cache(maxsize=4096)  # each change of a run repeats its started_at
def _utc(text: str) -> str | None:
    """ISO 8601 in UTC, with Z. A timestamp without a zone counts as UTC, the contract's only zone.

    None if it is not a time, or not one that ISO 8601 and Python can express: the column may have
    any type.
    """
    try:
        moment = datetime.fromisoformat(text)
        if _printed(text):
            return f"{text[:10]}T{text[11:-3]}Z"
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat().replace("+00:00", "Z")
