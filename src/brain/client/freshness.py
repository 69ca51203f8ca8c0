"""How fresh the runs of a client are: what the connection has proved, and how long ago.

The rule is stated in client.md, "Freshness". The file client/freshness.js of the page has it
for JavaScript, and one table of cases holds both: tests/unit/client/freshness.json.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from brain.client.clock import DatabaseClock
from brain.client.events import Source
from brain.contract.include import SILENT

State: TypeAlias = Literal["connecting", "live", "polled", "behind", "away", "ended"]

REPORTED: Final = 8.0
"""Seconds since the last report of the source after which its successor is missing. Brain reports
every 5 s, and at once when the database has been silent for 5 s."""

PROOF: Final = 10.0
"""Seconds. An older proof that all changes have come does not count."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the runs of a client may be."""

    state: State
    """`connecting`: not all runs have been received yet. `live`: every change is there, but for
    those of a few seconds. `polled`: as `live`; Brain polls because it cannot stream. `behind`:
    connected, and Brain has no proof that it has the latest changes. `away`: disconnected, and
    trying again. `ended`: Brain refuses, and the runs stay as they are."""
    at: datetime | None = None
    """Until when the runs are surely complete, by the database's clock."""
    age: float = 0.0
    """Seconds since then."""
    code: str | int | None = None
    """What the server said about it: a word, a close code or an HTTP status."""
    reason: str = ""
    """The same as a sentence."""

    @property
    def is_current(self) -> bool:
        return self.state in ("live", "polled")


class Evidence:
    """What Brain has said over the connection: `freshness` is derived from it."""

    def __init__(
        self, clock: DatabaseClock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._ready = False
        self._ever = False
        self._source: Source | None = None
        self._reported = 0.0
        self._proof: float | None = None
        """When all runs were surely complete."""
        self._ended = False
        self._loss: tuple[int | None, str] = (None, "")
        """Why there is no connection."""

    @property
    def is_ready(self) -> bool:
        """What was missed has come: what comes from here on is news."""
        return self._ready

    @property
    def source(self) -> Source | None:
        """The last report on this connection."""
        return self._source

    def ready(self) -> None:
        self._ready = self._ever = True

    def report(self, source: Source) -> None:
        """All changes up to `lag_seconds` ago have come. A change proves nothing: it may be one of
        many that come late, and the estimate of the database's clock is made of them.
        """
        self._source, self._reported = source, self._monotonic()
        if source.lag_seconds is not None:
            proof = self._reported - max(0.0, source.lag_seconds)
            self._proof = proof if self._proof is None else max(self._proof, proof)

    def leave(self, reason: str = "") -> None:
        """The connection is lost."""
        self._ready = self._ended = False
        self._source = None
        self._loss = (None, reason)

    def end(self, code: int | None, reason: str) -> None:
        """Brain refuses."""
        self.leave()
        self._ended = True
        self._loss = (code, reason)

    @property
    def freshness(self) -> Freshness:
        now = self._monotonic()
        at, age = None, 0.0
        if self._proof is not None:
            at = datetime.fromtimestamp(self._clock.at(self._proof), UTC)
            age = max(0.0, now - self._proof)
        if self._ended:
            return Freshness("ended", at, age, *self._loss)
        source = self._source
        if not self._ready or source is None:
            return Freshness("away" if self._ever else "connecting", at, age, *self._loss)
        # The worse of the two hops: from the database to Brain, and from Brain to here.
        silent = source.lag_seconds is None or source.lag_seconds > SILENT
        late = now - self._reported > REPORTED or age > PROOF or self._clock.is_doubtful
        state: State = "polled" if source.source == "poll" else "live"
        if silent or late or source.source == "none":
            state = "behind"
        return Freshness(state, at, age, source.code, source.detail or "")

    @property
    def doubted_in(self) -> float | None:
        """Seconds after which the runs are not current any more, if nothing is heard. None: they
        are not.
        """
        if not self.freshness.is_current or self._proof is None:
            return None
        return max(0.0, min(self._reported + REPORTED, self._proof + PROOF) - self._monotonic())
