"""A TCP proxy that can forward, slow down, fall silent, cut, reset and refuse connections."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from tests.support.patience import PATIENCE
from tests.support.ports import close

NO_LINGER = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to `port` on loopback to the server at `target`.

    It runs in its own thread, so it forwards also while a test blocks.
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
        """Accepted since the start."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(PATIENCE)
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """The target's URL, through this proxy."""
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

    # What it does to connections.

    def fall_silent(self) -> None:
        """Accept connections and keep all bytes: neither end notices anything."""
        self._do(self._passing.clear)

    def forget(self) -> None:
        """Like fall_silent, but only for the present connections; new ones work."""

        def forget() -> None:
            self._forgotten |= self._sockets

        self._do(forget)

    def speak(self) -> None:
        """Forward the kept bytes, and all others, again."""
        self._do(self._passing.set)

    def slow(self, seconds: float) -> None:
        """Pause after each piece of up to 64 KiB. 0: no pause."""
        self._pause = seconds

    def cut(self) -> None:
        """End every connection by FIN, in the middle of whatever they send."""
        self._do(self._cut)

    def reset(self) -> None:
        """End every connection by RST."""
        self._do(self._reset)

    def refuse(self, refusing: bool = True) -> None:
        """Reset every present connection, and each new one at once."""
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
        await close(self._server)
        self._reset()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    # How it forwards.

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
        if sink not in self._forgotten:  # a forgotten end does not notice the close either
            sink.close()
            self._sockets.discard(sink)
