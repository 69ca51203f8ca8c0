"""Messages between the supervisor and a worker: JSON, one a line, over a Unix socket.

    supervisor                            worker
    assign (with the listening sockets)
                                          started     it accepts connections
    report?                               report      its metrics, and its /readyz
    collected                             collect?    the same of all workers
    stop, force

The socket is the worker's standard input. Its end tells each of them that the other has ended,
however it did: nothing outlives a supervisor that was killed.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, TypeAlias

from brain.contract.errors import BrainError

Message: TypeAlias = dict[str, Any]

VERSION: Final = 1
"""The version of the messages. After an upgrade, a rolling restart starts new workers for an old
supervisor."""

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes. A report has 20 KB, and 1 KB more for each warning."""

MAX_SOCKETS: Final = 64
"""Addresses that a worker is given."""

ASSIGN_DEADLINE: Final = 10.0
"""Seconds in which the first message comes: it is there before the worker is started."""


class ChannelError(BrainError):
    """No supervisor that this process understands has started it."""


class Channel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_MESSAGE))

    def send(self, kind: str, **message: Any) -> None:
        """Nothing happens if the other side has ended."""
        if not self._writer.is_closing():
            self._writer.write(_line({"kind": kind, **message}))

    async def messages(self) -> AsyncIterator[Message]:
        """Until the other side ends. If it is killed, the last line may be a part of one."""
        with contextlib.suppress(OSError):
            while (line := await self._reader.readline()).endswith(b"\n"):
                yield json.loads(line)

    async def flush(self, seconds: float) -> None:
        """Wait until the other side has taken all, or for so long."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                self._writer.transport.set_write_buffer_limits(0)
                await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


def assign(end: socket.socket, sockets: Sequence[socket.socket]) -> None:
    """Send the first message, before there is a process to read it."""
    line = _line({"kind": "assign", "version": VERSION})
    socket.send_fds(end, [line], [each.fileno() for each in sockets])


def assigned() -> tuple[socket.socket, list[socket.socket]]:
    """The worker's end of the channel, and what it listens on. Raises ChannelError."""
    try:
        # Not the standard input itself: whatever else is opened must not get that descriptor.
        end = socket.socket(fileno=os.dup(0))
        end.settimeout(ASSIGN_DEADLINE)
        line, descriptors, _, _ = socket.recv_fds(end, 65_536, MAX_SOCKETS)
        sockets = [socket.socket(fileno=each) for each in descriptors]
        message = json.loads(line)
    except (OSError, ValueError) as error:
        raise ChannelError("only `brain serve` starts workers: see BRAIN_WORKERS") from error
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), 0)
    if message["version"] != VERSION:
        raise ChannelError(
            "the supervisor that runs is of another version of Brain: "
            "stop the service and start it again"
        )
    end.setblocking(False)
    return end, sockets


def _line(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
