"""How late the newest state is that Brain holds: 0 as long as it is the newest there is.

A silence alone says nothing: an idle database sends nothing, and Brain is not late. So Brain asks,
and is late from the moment of a question that has no answer yet:

while it polls, each poll is a question. In a pause of more than a second between two polls it asks
every second whether anything was committed; then the pause counts from the last "no".

While it streams, it asks two. Every second, over the ordinary connection: has the walsender sent
all of the log? And over the stream, after two seconds of silence: does it still answer? An open
transaction delays neither, since nothing of it is to be sent; a huge one that is being decoded
delays all that was committed behind it, and shows.

Without a source, Brain is late from the moment at which it lost the last one.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from brain.postgres.connection import Conn, deadline
from brain.postgres.pgoutput import LSN

Since: TypeAlias = Callable[[], float | None]
"""When, by the loop's clock, the oldest question without an answer was asked. None: there is none.
"""


class Lateness:
    def __init__(self) -> None:
        self._since: float | None = -math.inf
        self._stream: Since | None = None

    def ask(self, now: float) -> None:
        """A question has no answer yet. The oldest counts."""
        if self._since is None:
            self._since = now

    def answered(self) -> None:
        """Brain holds the newest state."""
        self._since = None

    def follow(self, stream: Since) -> None:
        """From here on a stream answers."""
        self._stream = stream

    def unfollow(self) -> None:
        """The stream has ended. What it has not answered stays a question."""
        if self._stream is not None and (since := self._stream()) is not None:
            self.ask(since)
        self._stream = None

    def seconds(self, now: float) -> float:
        """Infinite until the table has been read for the first time."""
        since = self._since
        if since is None and self._stream is not None:
            since = self._stream()
        return 0.0 if since is None else max(0.0, now - since)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log ended when Brain asked."""

    lsn: LSN
    at: float
    """When, by the loop's clock, Brain asked."""
    answered_at: float
    waiting: bool
    """The walsender waits for more log: it has decoded and sent all that it can. `lsn` may lie in a
    record that is not complete yet, which it never reports."""


# Brain's own role may read the wait event of its walsender. What is committed has been flushed,
# but for synchronous_commit=off. What an open transaction has written may not have been, so the
# insert position would say that something is missing, until PostgreSQL flushes it 15 s later.
_LOG_END = """
SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn,
       (SELECT pg_catalog.lower(wait_event) IN ('walsendermain', 'walsenderwaitforwal')
          FROM pg_stat_get_activity(%s))
"""

_LOG_END_ALONE = """
SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn, NULL
"""


async def log_end(conn: Conn, walsender: int | None) -> LogEnd:
    """`walsender` is its process id; None if the role may not look at it. Raises psycopg.Error."""
    clock = asyncio.get_running_loop().time
    at = clock()
    async with deadline():
        if walsender is None:
            row = await (await conn.execute(_LOG_END_ALONE)).fetchone()
        else:
            row = await (await conn.execute(_LOG_END, (walsender,))).fetchone()
    assert row is not None
    return LogEnd(LSN(int(str(row[0]))), at, clock(), row[1] == "t")
