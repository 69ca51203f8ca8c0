"""The states JOINING and STREAMING: one stream, from the poll that it continues to its end."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from brain.contract.events import Changes, Event, Known, Op, Resumed, Snapshot, only_id
from brain.contract.messages import ID, STATUS, UNCHANGED, Run, filled
from brain.postgres.poll import Poll
from brain.postgres.promotion import Promoted
from brain.postgres.replication import Watched
from brain.postgres.source_state import SourceState
from brain.postgres.table import Table
from brain.postgres.table_warnings import TableWarnings
from brain.postgres.timing import Timing
from brain.postgres.watch import Watch


class Streaming:
    def __init__(
        self,
        poll: Poll,
        promoted: Promoted,
        *,
        table: Table,
        known: Known,
        state: SourceState,
        warnings: TableWarnings,
        timing: Timing,
        watched: Watched,
    ) -> None:
        self._poll = poll
        self._promoted = promoted
        self._stream = promoted.stream
        self._table = table
        self._known = known
        self._state = state
        self._warnings = warnings
        self._timing = timing
        self._watched = watched
        self._watch: Watch | None = None

    async def join(self) -> AsyncGenerator[Snapshot | Resumed]:
        """JOINING. Raises StreamLost, TableError, psycopg.Error.

        The order is what leaves no gap and no overlap: the slot, then one more poll, then the
        insert position, then the stream without the transactions that this poll has seen.
        """
        await self._poll.read_catalog()
        asked = asyncio.get_running_loop().time()
        async with aclosing(self._poll.read(always=True)) as pieces:
            async for piece in pieces:
                # From here on the stream names every delete; earlier ones may be unknown.
                if isinstance(piece, Snapshot) and piece.complete:
                    yield replace(piece, deletes_unknown=True)
                else:
                    yield piece
        if self._state.source == "none":  # nothing had been read before
            self._state.preparing()
        self._state.heard = asked
        self._state.lateness.answered()
        checkpoint = self._poll.progress.checkpoint
        assert checkpoint is not None
        await self._stream.start(checkpoint.visible, await self._poll.insert_lsn())

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        """STREAMING. Raises StreamLost, StreamUnavailable, TableError, psycopg.Error."""
        self._state.streams += 1
        self._state.change("replication")
        progress, stream = self._poll.progress, self._stream
        progress.streamed = True
        watch = Watch(
            self._poll,
            self._table,
            self._known,
            self._promoted,
            warnings=self._warnings,
            timing=self._timing,
        )
        self._watch, stream.inspect, stream.watched = watch, watch.described, self._watched
        self._state.lateness.follow(watch.unanswered_since)
        while True:
            taken = await stream.read()
            progress.unseen.update([changes.xid for changes in taken])
            if True in [changes.incomplete for changes in taken]:
                async for ready in self._complete(taken):
                    yield ready
            elif taken:
                yield taken
            for comparison in watch.passed(stream.position):
                yield [comparison]
            # A server that sends something may still have changes to send: it may be decoding a
            # huge transaction.
            self._state.heard = watch.proven_at()
            watch.advance()

    async def _complete(self, taken: Sequence[Changes]) -> AsyncGenerator[list[Changes]]:
        ready: list[Changes] = []
        for changes in taken:
            if changes.incomplete:
                # What the board knows decides. So it first applies what came before.
                if ready:
                    yield ready
                ready = [await self._completed(changes)]
            else:
                ready.append(changes)
        yield ready

    async def _completed(self, changes: Changes) -> Changes:
        """Fill in what PostgreSQL did not send (unchanged TOAST), if the board does not know it."""
        wanted = [
            run[ID] for _, run in changes.rows if UNCHANGED in run and run[ID] not in self._known
        ]
        if not wanted:
            return changes
        present = await self._poll.fetch(wanted)
        self._poll.progress.read_rows()
        rows: list[tuple[Op, Run]] = []
        for op, run in changes.rows:
            if run[ID] in present:
                rows.append((op, filled(run, present[run[ID]])))
            elif run[STATUS] == UNCHANGED and run[ID] not in self._known:
                # Only a status of thousands of characters is not sent, and it is none.
                rows.append(("delete", only_id(run[ID])))
            else:
                rows.append((op, run))
        return replace(changes, rows=rows)

    async def close(self) -> None:
        """End the watch, and drop the slot."""
        self._state.lateness.unfollow()
        try:
            if self._watch is not None:
                await self._watch.close()
        finally:  # a cancellation ends the wait for the watch: the slot must not stay
            progress, position = self._poll.progress, self._stream.position
            if progress.checkpoint is not None and progress.checkpoint.flushed:
                # Only what is on the disk is streamed.
                flushed = max(progress.checkpoint.flushed, position)
                progress.checkpoint = replace(progress.checkpoint, flushed=flushed)
            await self._stream.close()
