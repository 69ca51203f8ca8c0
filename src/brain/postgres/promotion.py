"""Promotion to streaming: check the table, complete the publication, create a slot."""

import asyncio
from dataclasses import dataclass

import psycopg
from psycopg import conninfo

from brain.postgres.cancellation import cancel
from brain.postgres.connection import connect, deadline, error_line
from brain.postgres.decoder import Decoder
from brain.postgres.inspection import Inspection
from brain.postgres.publication import ensure_publication
from brain.postgres.replication import Stream
from brain.postgres.source_state import SourceState
from brain.postgres.table import Table, TableError
from brain.postgres.timing import Timing
from brain.postgres.unavailable import SlotBlocked, StreamUnavailable, from_error


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a successful try has brought."""

    stream: Stream
    """Its slot exists; it has not started."""
    inspection: Inspection
    """What the stream depends on, as it was before the slot was created."""


class Promotion:
    """Tries to open a stream, in a task, while the table is polled; reports why it cannot."""

    def __init__(
        self,
        url: str,
        table: Table,
        decoder: Decoder,
        state: SourceState,
        *,
        application: str,
        timing: Timing,
    ) -> None:
        self.due = 0.0
        """When, by the loop's clock, the next try may start."""
        self.slot_tries = 0
        """How many slots in a row were blocked by open write transactions."""
        self.refused = False
        """The last try has brought no stream."""
        self._url = url
        self._table = table
        self._decoder = decoder
        self._state = state
        self._application = application
        self._timing = timing
        self._user = str(conninfo.conninfo_to_dict(url).get("user") or "")
        self._task: asyncio.Task[Promoted] | None = None

    def start(self) -> None:
        """Start a try, if one is due and none is running."""
        if self._task is None and asyncio.get_running_loop().time() >= self.due:
            self._task = asyncio.create_task(self._promote(), name="promotion")

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the running try ends."""
        if self._task is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.wait([self._task], timeout=seconds)

    @property
    def ended(self) -> bool:
        """A try has ended, and `collect` has its result."""
        return self._task is not None and self._task.done()

    @property
    def succeeded(self) -> bool:
        """A try has brought a stream, which `collect` returns."""
        task = self._task
        return task is not None and task.done() and not task.cancelled() and not task.exception()

    def collect(self) -> Promoted | None:
        """The result of a try that has ended. Reports a failure, and schedules the next try."""
        if self._task is None or not self._task.done():
            return None
        task, self._task = self._task, None
        self.refused = True
        try:
            promoted = task.result()
        except StreamUnavailable as unavailable:
            self._state.poll_because(unavailable)
            if isinstance(unavailable, SlotBlocked):
                self.slot_tries += 1
                self.retry_in(0)  # this one has waited already
            else:
                self.retry_in(self._timing.promote_every)
        except (TableError, OSError, TimeoutError) as error:
            self._state.change(
                "poll", "table" if isinstance(error, TableError) else "other", error_line(error)
            )
            self.retry_in(self._timing.promote_every)
        else:
            self.slot_tries = 0
            self.refused = False
            return promoted
        return None

    def retry_in(self, seconds: float) -> None:
        self.due = asyncio.get_running_loop().time() + seconds

    async def restart(self) -> None:
        """Call it when the table has changed.

        A running try may wait for its slot for minutes, and the publication that it has completed
        may by now make the application's UPDATEs fail.
        """
        if self._task is not None:
            await self.cancel()
            self.due = 0.0

    async def cancel(self) -> None:
        """End a running try. It leaves no slot behind."""
        if self._task is None:
            return
        task, self._task = self._task, None
        try:
            await cancel(task)
        finally:
            if task.done() and not task.cancelled() and task.exception() is None:
                await task.result().stream.close()

    async def _promote(self) -> Promoted:
        """Raises StreamUnavailable, TableError, OSError."""
        tries = self._timing.slot_timeouts
        try:
            conn = await connect(self._url, self._application)
            locked = self._timing.poll.locked
            async with conn, deadline(locked, f"a lock on the table {self._table}"):
                inspection = await ensure_publication(conn, self._table, self._application)
            stream = await Stream.open(
                self._url,
                inspection.table,
                inspection.description,
                self._decoder,
                application=self._application,
                patience=tries[min(self.slot_tries, len(tries) - 1)],
                timing=self._timing.stream,
            )
        except psycopg.Error as error:
            raise from_error(error, self._user) from error
        return Promoted(stream, inspection)
