"""Which source is in use, and why it is not a better one: for /readyz, /metrics and the log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import structlog

from brain.contract.include import SourceName
from brain.postgres.lateness import Lateness
from brain.postgres.unavailable import StreamUnavailable, UnavailableCode

log = structlog.get_logger()

POLLED = "Brain works by polling; a stream would be sooner"

NO_EFFECT: frozenset[UnavailableCode] = frozenset({"chosen", "replica_identity", "inheritance"})
"""Codes whose line in the log does not say POLLED: somebody has chosen to poll, or the detail may
be about the application's own UPDATEs."""

WarningCode: TypeAlias = Literal["id_unique", "time_zone"]


@dataclass(frozen=True, slots=True)
class TableWarning:
    """What is doubtful about a table, although Brain can follow it."""

    code: WarningCode
    detail: str
    effect: str
    """What it means for clients, in one sentence without its full stop."""
    hint: str
    intended: bool = False
    """A setting says that it is meant so."""


@dataclass(slots=True)
class SourceState:
    source: SourceName = "none"
    detail: str = "connecting"
    """Why the source is not a better one; "" if there is no better one."""
    hint: str = ""
    """What to run or set for a better one."""
    code: UnavailableCode | None = "connecting"
    """The detail as one word; None if there is no better source."""
    heard: float = float("-inf")
    """When, by the loop's clock, the database was last known to have been read to its end."""
    lateness: Lateness = field(default_factory=Lateness)
    connects: int = 0
    streams: int = 0
    losses: int = 0
    slow: bool = False
    """A scan takes so long that polling is late by more than half a second."""
    warnings: Sequence[TableWarning] = ()
    """Of the table as it was last looked at."""
    _logged: set[str] = field(default_factory=set)

    def change(
        self,
        source: SourceName,
        code: UnavailableCode | None = None,
        detail: str = "",
        hint: str = "",
    ) -> None:
        """Log a change of state once, not every try.

        A detail that comes and goes (a server that now refuses, now resets) is logged once as long
        as the source stays the same.
        """
        if (source, detail) == (self.source, self.detail):
            return
        if source != self.source:
            self._logged.clear()
        logged = detail in self._logged
        self._logged.add(detail)
        self.source, self.code, self.detail, self.hint = source, code, detail, hint
        if logged:
            return
        level = log.warning if source == "none" else log.info
        level(
            "source",
            now=source,
            **({"detail": detail} if detail else {}),
            **({"hint": hint} if hint else {}),
            **({"effect": POLLED} if source == "poll" and hint and code not in NO_EFFECT else {}),
        )

    def preparing(self) -> None:
        self.change("poll", "preparing", "the stream is being prepared")

    def poll_because(self, unavailable: StreamUnavailable) -> None:
        self.change("poll", unavailable.code, unavailable.detail, unavailable.hint)

    def warn(self, found: Sequence[TableWarning]) -> None:
        """Log what is new among them."""
        for warning in found:
            if warning not in self.warnings:
                level = log.info if warning.intended else log.warning
                level(
                    "table warning",
                    code=warning.code,
                    detail=f"{warning.detail}: {warning.effect}",
                    hint=warning.hint,
                )
        self.warnings = tuple(found)

    def scan_pause(self, seconds: float) -> None:
        """Log when polling becomes slow, and when it is no longer."""
        if self.slow != (seconds > 0.5):
            self.slow = not self.slow
            log.info("poll pace", slow=self.slow, seconds_between_scans=round(seconds, 2))
