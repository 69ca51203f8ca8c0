"""The backlog: connections that wait in the kernel until they are accepted.

libuv accepts one connection in each turn of the event loop, however many wait, and a turn that
writes to many clients is long. So clients that reconnected after a restart were accepted at 40
connections a second, and 5 000 of them took more than two minutes. Therefore, while turns are long,
an accept also takes the other connections that wait.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

MAX_ACCEPTS: Final = 128
"""Connections taken in one turn, for each listening socket: 8 ms. The rest waits for the next
turn."""

SHORT: Final = 0.001
"""Seconds between two accepts. While turns are as short as that, libuv's own accept is faster: it
needs no task."""


class Backlog:
    """Call `accepted` for each connection that the loop accepts. `factory` makes the protocol of
    each other connection that is taken.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._sockets = sockets
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def accepted(self) -> None:
        """A connection was accepted."""
        last, self._last = self._last, time.monotonic()  # loop.time() stands still during a turn
        if self._last - last > SHORT:
            self._loop.call_soon(self._take)

    def close(self) -> None:
        self._closed = True

    def _take(self) -> None:
        if self._closed:
            return
        for listener in self._sockets:
            # An OSError: nothing waits, or there are no file descriptors. libuv handles the latter
            # at its next accept.
            with contextlib.suppress(OSError):
                for _ in range(MAX_ACCEPTS):
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    task = self._loop.create_task(self._connect(sock), name="accept")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, sock)
        except OSError:  # the client has gone
            sock.close()
