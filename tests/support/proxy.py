"""What may stand between two programs, and what it may do to them: pass on, be slow, fall silent, cut, reset, refuse."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from tests.support.patience import PATIENCE

NO_LINGER = struct.pack("ii", 1, 0)


class Proxy:
    """Between whoever connects to `port` on loopback and the server at `target`, in a thread of its own: it goes on while a
    test blocks, and a test may wait for it.
    """

    def __init__(self, target: int | str) -> None:
        """A port on loopback, or a URL that names one."""
        self._url = target if isinstance(target, str) else f"tcp://127.0.0.1:{target}"
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._pause = 0.0
        self._refusing = False
        self._pumps: set[asyncio.Task[None]] = set()
        self._sockets: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self.connections = 0
        """Made since the beginning, by whoever came."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(PATIENCE)
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """The target's, by way of here."""
        parts = urlsplit(self._url)
        who = f"{parts.username}@" if parts.username else ""
        return urlunsplit(parts._replace(netloc=f"{who}127.0.0.1:{self.port}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    # What it may do.

    def fall_silent(self) -> None:
        """Who connects is let in, and what arrives is taken and kept: neither end is told of anything."""
        self._do(self._passing.clear)

    def forget(self) -> None:
        """As fall_silent, of the connections that there are: those that are made from now on are served."""

        def forget() -> None:
            self._forgotten |= self._sockets

        self._do(forget)

    def speak(self) -> None:
        """Pass on again, and what was kept first."""
        self._do(self._passing.set)

    def slow(self, seconds: float) -> None:
        """Pause so long behind every piece of 64 KiB or less. 0: not at all."""
        self._pause = seconds

    def cut(self) -> None:
        """End every connection in good order (FIN), whatever its ends are saying."""
        self._do(self._cut)

    def reset(self) -> None:
        """End every connection by RST."""
        self._do(self._reset)

    def refuse(self, refusing: bool = True) -> None:
        """Reset every connection there is, and each new one at once."""
        self._refusing = refusing
        if refusing:
            self.reset()

    def _do(self, what: Callable[[], None]) -> None:
        async def call() -> None:
            what()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    def _cut(self) -> None:
        for writer in self._sockets:
            writer.close()

    def _reset(self) -> None:
        for writer in self._sockets:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        self._reset()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    # How it passes on.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._sockets.add(writer)
        if self._refusing:
            self._reset()
            return
        parts = urlsplit(self._url)
        try:
            there, back = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            writer.transport.abort()
            return
        self._sockets.add(back)
        for ends in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(*ends))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._passing.wait()
                if sink in self._forgotten:
                    continue
                sink.write(data)
                await sink.drain()
                if self._pause:
                    await asyncio.sleep(self._pause)
        except OSError:
            pass
        if sink not in self._forgotten:  # else it is not told of an end either
            sink.close()
            self._sockets.discard(sink)
