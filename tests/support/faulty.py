"""Servers with faults: a proxy that cuts, stalls, resets or answers itself, and a server that
closes.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from websockets.asyncio.server import ServerConnection, serve

from tests.support.patience import PATIENCE
from tests.support.ports import close


class FaultyProxy:
    """Passes bytes between a client and `port`, and causes faults."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.stalled = False
        self.answers: deque[bytes] = deque()
        """Sent to the next connections instead of the server's answer."""
        self.api_answers: deque[bytes] = deque()
        """Sent to the next requests of the API instead of the server's answer."""
        self.came: list[float] = []
        """When each connection was accepted."""
        self.passed = 0
        """Answers 200 that were passed on."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._opened: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/ws"
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._server)
        async with asyncio.timeout(PATIENCE):
            while True:
                self.cut()  # also those that were still connecting at the last time
                if not self._serving:
                    break
                await asyncio.wait(self._serving, timeout=0.05)
            for writer in self._opened:
                writer.transport.abort()  # what nobody has read would keep it open
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.append(time.monotonic())
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self._writers.add(writer)
        self._opened.append(writer)
        head, reply = b"", b""
        if self.answers or self.api_answers:
            with contextlib.suppress(OSError, EOFError):
                head = await reader.readuntil(b"\r\n\r\n")
            if self.answers:
                reply = self.answers.popleft()
            elif self.api_answers and head.startswith(b"GET /api/"):
                reply = self.api_answers.popleft()
        if reply:
            writer.write(reply)
            self._close(writer)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._close(writer)
            return
        self._writers.add(back)
        self._opened.append(back)
        back.write(head)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                while self.stalled and writer in self._writers:
                    await asyncio.sleep(0.01)
                writer.write(data)
                self.passed += data.startswith(b"HTTP/1.1 200 ")
        writer.close()

    def cut(self, *, reset: bool = False) -> None:
        """End every connection, by FIN or by RST."""
        for writer in self._writers:
            if reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
        self._writers = set()


def answer(status: int, *headers: str) -> bytes:
    body = b'{"detail":"said by the test"}'
    lines = [
        f"HTTP/1.1 {status} Said",
        *headers,
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


@contextlib.asynccontextmanager
async def closing(*codes: int) -> AsyncIterator[tuple[str, list[tuple[float, str]]]]:
    """A server that closes each connection with the next of these codes, and all further ones with
    the last. 0 keeps the connection open.

    Yields its URL, and the time and target of each connection.
    """
    came: list[tuple[float, str]] = []

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        came.append((time.monotonic(), connection.request.path))
        if code := codes[min(len(came), len(codes)) - 1]:
            await connection.close(code, "said by the test")
        else:
            await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws", came
