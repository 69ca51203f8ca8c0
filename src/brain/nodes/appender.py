"""The end of the log at which a leader writes.

(N1) Every message expects the one that this leader has seen last, and one is in flight at a time:
what gathers meanwhile is the next batch. When one is refused, or not confirmed in time, this leader
writes nothing more: somebody else may lead. (With several in flight, *both* of two leaders got some
in, in 97 of 200 duels; with one, in 0 of 500.)
test_of_two_leaders_one_appends
"""

import asyncio
from collections.abc import Callable
from typing import Any

from brain.nodes.connection import NATSError
from brain.nodes.log import Log, Subject, Superseded
from brain.nodes.messages import Kind, encode, parts
from brain.nodes.timing import NodeTiming
from brain.postgres.cancellation import outlast


class Appender:
    """`epoch` is the place of the claim. `head` returns what the next message of events says of the
    leader.
    """

    def __init__(
        self,
        log: Log,
        epoch: int,
        *,
        head: Callable[[], dict[str, Any]],
        timing: NodeTiming,
    ) -> None:
        self.epoch = epoch
        self.n = 0
        """Of the last message of the log."""
        self.bytes = 0
        """Appended to it."""
        self.appended_at = asyncio.get_running_loop().time()
        self._log = log
        self._last = epoch
        self._head = head
        self._timing = timing
        self._turn = asyncio.Lock()
        self._over = ""
        """Why this leader writes nothing more."""

    async def events(self, body: bytes, numbered: Callable[[int], object] | None = None) -> None:
        """`numbered` receives the number of the (last) message before it is sent.

        Raises NATSError.
        """
        async with self._turn:
            head = self._head()
            cut = parts(body, self._timing.piece)
            if numbered is not None:
                numbered(self.n + len(cut))
            for number, part in enumerate(cut, 1):
                more = {"part": (number, len(cut))} if len(cut) > 1 else {}
                # Only the last one is read with its head.
                head_ = head if number == len(cut) else {}
                await self._append("log", "events", part, **head_, **more)
            self.bytes += len(body)

    async def resign(self, *, away: bool = False) -> None:
        """(N10) Behind what is in flight: cancelled in the middle, the resignation would be
        refused. Raises NATSError.
        """
        async with self._turn:
            await self._append("log", "resign", b"", away=away)
            self._over = "this node has resigned"

    async def piece(self, body: bytes, as_of: int) -> list[int]:
        """A part of a board. Returns the seqs of its messages. Raises NATSError."""
        async with self._turn:
            cut = parts(body, self._timing.piece)
            return [
                await self._append("ckpt", "ckpt", part, as_of=as_of, part=(number, len(cut)))
                for number, part in enumerate(cut, 1)
            ]

    async def end(self, **head: Any) -> None:
        """Raises NATSError."""
        async with self._turn:
            await self._append("end", "end", b"", **head)

    async def _append(self, subject: Subject, kind: Kind, body: bytes, **head: Any) -> int:
        if self._over:
            raise Superseded(self._over)
        n = self.n + (subject == "log")
        data = encode(kind, self.epoch, n, body, **head)
        sending = asyncio.create_task(self._log.append(subject, data, self._last), name="append")
        try:
            seq = await asyncio.shield(sending)
        except asyncio.CancelledError:
            # The message is sent, and cannot be taken back. A resignation goes behind it.
            try:
                await outlast(sending)
            finally:
                if sending.cancelled() or sending.exception() is not None:
                    self._over = "a message was not confirmed"
                else:
                    self._last, self.n = sending.result(), n
            raise
        except NATSError as error:
            self._over = str(error)
            raise
        self._last, self.n = seq, n
        if subject == "log":
            self.appended_at = asyncio.get_running_loop().time()
        return seq
