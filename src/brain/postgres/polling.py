"""The state POLLING: read what changed, at intervals, until the promotion has opened a stream."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal, TypeAlias

from brain.contract.events import Resumed, Snapshot
from brain.postgres.connection import APPLICATION
from brain.postgres.fingerprint import fingerprint
from brain.postgres.poll import Poll
from brain.postgres.promotion import Promoted, Promotion
from brain.postgres.publication import keep_harmless
from brain.postgres.source_state import SourceState
from brain.postgres.table import Table
from brain.postgres.table_warnings import TableWarnings
from brain.postgres.timing import Timing

Mode: TypeAlias = Literal["auto", "replication", "poll"]
"""BRAIN_SOURCE."""


class Polling:
    def __init__(
        self,
        poll: Poll,
        promotion: Promotion,
        state: SourceState,
        *,
        table: Table,
        warnings: TableWarnings,
        mode: Mode,
        interval: float,
        timing: Timing,
    ) -> None:
        self.promoted: Promoted | None = None
        """Set when `events` ends."""
        self._poll = poll
        self._table = table
        self._promotion = promotion
        self._state = state
        self._mode = mode
        self._interval = interval
        self._timing = timing
        self._warnings = warnings
        self._reread_at = self._check_at = 0.0
        self._fingerprint: int | None = None
        self._asked = 0.0
        """When, by the loop's clock, a query last showed that Brain has everything."""

    async def events(self) -> AsyncGenerator[Snapshot | Resumed]:
        """Raises what the ordinary connection raises, and TableError."""
        loop = asyncio.get_running_loop()
        await self._poll.read_catalog()
        self._reread_at = loop.time() + self._timing.watch_every
        if await self._is_joined_first():
            return
        while True:
            await self._look_at_catalog()
            if unseen := self._poll.progress.unseen:
                # Or this poll would take runs back to an older state.
                await self._poll.until_seen(unseen)
                unseen.clear()
            asked = loop.time()
            self._state.lateness.ask(asked)
            async with aclosing(self._poll.read()) as pieces:
                async for piece in pieces:
                    yield self._marked(piece)
            self._has_everything(asked)
            await self._warnings.look(self._poll.conn, self._poll.description, self._fingerprint)
            self.promoted = self._promotion.collect()
            if self.promoted is not None:
                return
            self._report_source()
            if self._mode != "poll":
                self._promotion.start()
            self._state.scan_pause(self._poll.pause)
            await self._rest(max(self._interval, self._poll.pause))

    async def _is_joined_first(self) -> bool:
        """Whether a stream is there before anything has been read: then joining it is the first
        look, and nobody has a state from before it. Clients that include deletes would have to load
        again what they load after an earlier look (T7 in delivery/tombstones.py).
        """
        if self._mode == "poll" or self._poll.progress.checkpoint is not None:
            return False
        asked = asyncio.get_running_loop().time()
        self._state.lateness.ask(asked)
        self._promotion.start()
        await self._look_at_catalog()
        await self._warnings.look(self._poll.conn, self._poll.description, self._fingerprint)
        waited = asyncio.get_running_loop().time() - asked
        await self._promotion.sleep(max(0.0, self._timing.stream_first - waited))
        if self._promotion.succeeded:  # a refusal is reported when polling can be
            self.promoted = self._promotion.collect()
        return self.promoted is not None

    async def _rest(self, seconds: float) -> None:
        """Until the next poll is due, or a try to open a stream has ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0 and not self._promotion.ended:
            await self._promotion.sleep(min(left, self._timing.check_every))
            if left > self._timing.check_every:
                await self._look_at_catalog()
                await self._look_for_commits()

    def _has_everything(self, asked: float) -> None:
        """As of a query that began at this time: a scan does not see what is committed later."""
        self._asked = self._state.heard = asked
        self._state.lateness.answered()

    async def _look_for_commits(self) -> None:
        """Look whether Brain is late because of a long pause. The next poll reads what there is."""
        asked = asyncio.get_running_loop().time()
        if await self._poll.is_current():
            self._has_everything(asked)
        else:
            self._state.lateness.ask(self._asked)

    async def _look_at_catalog(self) -> None:
        """Read it again at intervals, and at once if its fingerprint has changed.

        After a key is dropped, the application's UPDATEs fail until the next try to open a stream
        withdraws the publication. Also, what ruled out a stream may have been removed.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._reread_at:
            self._reread_at = now + self._timing.watch_every
            await self._reread_catalog()
        if now < self._check_at:
            return
        self._check_at = now + self._timing.check_every
        seen = await fingerprint(self._poll.conn, self._table, self._poll.description)
        if seen == self._fingerprint:
            return
        await self._reread_catalog()
        # Without a promotion, nothing else withdraws what init-db or a start before has published.
        if self._mode == "poll" and not await keep_harmless(
            self._poll.conn, self._table, APPLICATION
        ):
            return  # the next look tries again
        if self._fingerprint is not None:
            self._promotion.retry_in(0)
        self._fingerprint = seen

    def _marked(self, piece: Snapshot | Resumed) -> Snapshot | Resumed:
        """The piece; with a mark if it is the first whole one after a lost stream that could not be
        joined again at once. (Joining has its own, and one is enough.)
        """
        progress = self._poll.progress
        if not (progress.streamed and self._promotion.refused):
            return piece
        if isinstance(piece, Resumed) or not piece.complete:
            return piece
        progress.streamed = False
        return replace(piece, deletes_unknown=True)

    async def _reread_catalog(self) -> None:
        """Another table may have taken the name, with rows older than any horizon."""
        before = self._poll.description
        await self._poll.read_catalog()
        if self._poll.description != before:
            await self._promotion.restart()

    def _report_source(self) -> None:
        if self._state.source == "poll":
            return
        if self._mode == "poll":
            self._state.change("poll", "chosen", "BRAIN_SOURCE is poll", "BRAIN_SOURCE=auto")
        else:
            self._state.preparing()
