"""Following the table for ever: choose a source, fall back, promote, reconnect.

                           a slot         one more poll
    CONNECTING ──► POLLING ──────► JOINING ───────────► STREAMING
      ▲              ▲                │                     │
      │              └────────────────┴─────────────────────┘
      │                 the stream is lost, or what it depends on has changed
      └── from any state, when the ordinary connection is lost: back-off with jitter

    CONNECTING   Follow.events      no source
    POLLING      Polling.events     while a task, the Promotion, tries to open a stream. The first
                                    poll of a process waits a moment for it
    JOINING      Streaming.join     polls once more; the stream continues where this poll ends
    STREAMING    Streaming.events   while a Watch looks for changes that would silence the stream

In every state, the checkpoint (checkpoints.py) says up to where Brain has read the database. After
an error, the next poll reads what has changed since then.
"""

import asyncio
import random
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import psycopg
import structlog

from brain.contract.events import Event, Known
from brain.postgres.connection import connect, error_line
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.polling import Mode, Polling
from brain.postgres.progress import Progress
from brain.postgres.promotion import Promoted, Promotion
from brain.postgres.records import Records
from brain.postgres.remedies import remedy
from brain.postgres.replication import StreamLost, StreamSilent, Watched, always
from brain.postgres.source_state import SourceState
from brain.postgres.streaming import Streaming
from brain.postgres.table import Column, Table, TableError
from brain.postgres.table_warnings import TableWarnings
from brain.postgres.timing import TIMING, Timing
from brain.postgres.unavailable import StreamUnavailable

log = structlog.get_logger()


class Follow:
    """The source of a running Brain.

    `application` names its connections. It must not be the name of a synchronous standby.
    `progress`: where to continue, if the table was followed before. Give it or `records`, not both.
    `watched`: whether a client waits for changes. If none does, the stream is read less often.
    `foreign`: the database is not Brain's own, which it starts again by itself.
    """

    def __init__(
        self,
        url: str,
        table: Table,
        decoder: Decoder,
        known: Known,
        *,
        mode: Mode,
        interval: float,
        application: str,
        timing: Timing = TIMING,
        records: Records | None = None,
        progress: Progress | None = None,
        watched: Watched = always,
        foreign: bool = True,
    ) -> None:
        self.state = SourceState()
        self._url = url
        self._table = table
        self._decoder = decoder
        self._known = known
        self._mode: Mode = mode
        self._interval = interval
        self._application = application
        self._timing = timing
        self._watched = watched
        self._foreign = foreign
        if progress is None:
            progress = Progress(records=records if records is not None else Records())
        self._progress = progress
        self._warnings = TableWarnings(url, table, decoder.zone, self.state)
        self._promotion = Promotion(
            url, table, decoder, self.state, application=application, timing=timing
        )

    @property
    def columns(self) -> Mapping[str, Column] | None:
        """The table's columns by name. None until Brain has read the catalog for the first time."""
        return self._progress.columns

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                conn = await connect(self._url, self._application)
                async with conn:
                    self.state.connects += 1
                    self._promotion.due = 0.0
                    self._warnings.reset()
                    poll = Poll(
                        conn,
                        self._table,
                        self._decoder,
                        self._known,
                        self._progress,
                        timing=self._timing.poll,
                    )
                    async with aclosing(self._connected(poll)) as events:
                        async for several in events:
                            yield several
            except TableError as error:
                self.state.change("none", "table", str(error), error.hint)
            except (psycopg.Error, OSError, TimeoutError, StreamSilent) as error:
                hint = remedy(error, self._url, self._table) if self._foreign else ""
                self.state.change("none", "away", error_line(error), hint)
            except Exception as error:
                # A bug in Brain. After it the loop begins again with a poll, which corrects the
                # board. The clients stay connected.
                log.exception("following failed")
                self.state.change("none", "fault", f"a bug in Brain: {error!r} at {_place(error)}")
            self.state.lateness.ask(loop.time())
            was_steady = loop.time() - began > self._timing.steady
            failures = 1 if was_steady else failures + 1
            await asyncio.sleep(self._timing.back_off.delay(failures))

    async def _connected(self, poll: Poll) -> AsyncGenerator[Sequence[Event]]:
        """POLLING, JOINING and STREAMING in turn. Raises what ends the ordinary connection."""
        try:
            while True:
                polling = Polling(
                    poll,
                    self._promotion,
                    self.state,
                    table=self._table,
                    warnings=self._warnings,
                    mode=self._mode,
                    interval=self._interval,
                    timing=self._timing,
                )
                async with aclosing(polling.events()) as snapshots:
                    async for snapshot in snapshots:
                        yield [snapshot]
                assert polling.promoted is not None
                async with self._streaming(poll, polling.promoted) as streaming:
                    async with aclosing(streaming.join()) as snapshots:
                        async for snapshot in snapshots:
                            yield [snapshot]
                    async with aclosing(streaming.events()) as events:
                        async for several in events:
                            yield several
        finally:
            await self._promotion.cancel()

    @asynccontextmanager
    async def _streaming(self, poll: Poll, promoted: Promoted) -> AsyncIterator[Streaming]:
        """A stream, which is closed at the end of the block.

        An error that ends only the stream is reported in `state` and not raised: the caller polls
        again. StreamSilent is raised, because the ordinary connection may be dead too.
        """
        streaming = Streaming(
            poll,
            promoted,
            table=self._table,
            known=self._known,
            state=self.state,
            warnings=self._warnings,
            timing=self._timing,
            watched=self._watched,
        )
        try:
            yield streaming
        except StreamSilent:
            self.state.losses += 1
            raise
        except StreamLost as error:
            self.state.losses += 1
            self.state.change("poll", "lost", f"the stream was lost: {error}")
            self._promotion.retry_in(random.uniform(0, self._timing.rejoin_within))
        except StreamUnavailable as unavailable:
            self.state.poll_because(unavailable)
            self._promotion.retry_in(self._timing.promote_every)
        finally:
            await streaming.close()


def _place(error: Exception) -> str:
    """Where it was raised, for a bug report: `poll.py, line 340`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}, line {frame.lineno}"
