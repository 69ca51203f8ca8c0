"""A client of raw bytes, which no library would send, and a control client that must not notice."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.patience import PATIENCE
from tests.support.served import Brain

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""RFC 6455, section 1.3."""

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A client's frame (RFC 6455, section 5.2). `length` is a false length for the header."""
    size = len(payload) if length is None else length
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit = masked << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = b"\x11\x22\x33\x44"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(struct.pack("!H", code) + reason, CLOSE)


def request(
    target: str = "/ws", *, method: str = "GET", version: str = "1.1", **headers: str | None
) -> bytes:
    """A request to upgrade, with headers replaced or, by None, left out; `_` in a name is `-`."""
    fields: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [
        f"{method} {target} HTTP/{version}",
        *(f"{n}: {v}" for n, v in fields.items() if v is not None),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def get(target: str = "/healthz", host: str = "localhost", *more: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode("latin-1")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> str:
        """The sentence of a problem document (RFC 9457)."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = json.loads(self.body)
        assert document["status"] == self.status
        detail: str = document["detail"]
        return detail


class Frame(NamedTuple):
    opcode: int
    payload: bytes

    @property
    def code(self) -> int:
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2])


def parsed(data: bytes, at: int = 0) -> tuple[Frame, int] | None:
    """The server's frame at this offset, and where it ends. None if it is incomplete."""
    if len(data) < at + 2:
        return None
    assert data[at] & 0x70 == 0, "no extension was agreed on"
    assert not data[at + 1] & 0x80, "a server's frames are not masked"
    size, start = data[at + 1], at + 2
    if size > 125:
        start += 2 if size == 126 else 8
        size = int.from_bytes(data[at + 2 : start])
    if len(data) < start + size:
        return None
    return Frame(data[at] & 0x0F, data[start : start + size]), start + size


def unread(descriptor: int) -> int:
    """Bytes of a pipe or a socket that the kernel holds."""
    found: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return found


class Peer:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._buffer = b""
        self._at = 0

    @classmethod
    async def open(
        cls,
        port: int,
        *,
        host: str = "127.0.0.1",
        local: str | None = None,
        rcvbuf: int | None = None,
    ) -> Self:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if local is not None:
            sock.bind((local, 0))
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 24)
        return cls(reader, writer)

    @classmethod
    async def upgraded(
        cls, port: int, target: str = "/ws", *, local: str | None = None, rcvbuf: int | None = None
    ) -> Self:
        peer = await cls.open(port, local=local, rcvbuf=rcvbuf)
        peer.send(request(target))
        answer = await peer.answer()
        assert answer.status == 101, answer
        assert answer.headers["sec-websocket-accept"] == ACCEPT
        return peer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head: bool = False) -> Answer:
        """The next answer of HTTP."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(lines[0].split()[1])
            headers = {
                n.lower(): v.strip()
                for n, _, v in (line.partition(":") for line in lines[1:] if line)
            }
            size = 0 if status == 101 or head else int(headers.get("content-length", "0"))
            return Answer(status, headers, await self.reader.readexactly(size))

    async def frame(self) -> Frame:
        """The server's next frame."""
        while (found := parsed(self._buffer, self._at)) is None:
            async with asyncio.timeout(PATIENCE):
                data = await self.reader.read(1 << 20)
            if not data:
                raise asyncio.IncompleteReadError(bytes(self._buffer[self._at :]), None)
            self._buffer = self._buffer[self._at :] + data
            self._at = 0
        each, self._at = found
        return each

    async def message(self) -> dict[str, Any]:
        """The server's next message, after any pings."""
        found = await self.text()
        return _decoded(found.payload)

    async def text(self) -> Frame:
        """The next frame, which is a text. Pings are skipped."""
        while (found := await self.frame()).opcode == PING:
            assert found.payload == b""
        assert found.opcode == TEXT, found
        return found

    async def frames(self) -> list[Frame]:
        """All frames up to the end of the server's stream."""
        found: list[Frame] = []
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    found.append(await self.frame())
                except asyncio.IncompleteReadError as end:
                    assert end.partial == b"", "the stream ends in the middle of a frame"  # noqa: PT017
                    return found
                except ConnectionError:
                    return found

    async def farewell(self) -> int:
        """The code of the close frame, which is the last frame; then the stream ends."""
        return (await self.frames())[-1].code

    async def rest(self) -> bytes:
        """All bytes up to the end of the stream, or to a reset."""
        found = b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65536):
                    found += part
        return found

    def stall(self) -> None:
        """Stop reading. Soon the kernel's buffer is full, too."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    @property
    def arrived(self) -> int:
        """Bytes that the kernel holds for this end, while it is stalled."""
        return unread(self.writer.get_extra_info("socket").fileno())

    def wake(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), 1)
        self.writer.transport.abort()  # do not wait for bytes that the other side does not read
        await asyncio.sleep(0)

    def reset(self) -> None:
        """End the connection by RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@lru_cache(100_000)
def _decoded(payload: bytes) -> dict[str, Any]:
    """Cached: clients receive the same bytes, and decoding them again makes tests slow."""
    document: dict[str, Any] = json.loads(payload)
    return document


PAUSE = 0.1
"""Seconds between two runs of a Control: each costs four processes a millisecond."""


class Control:
    """A client in its own thread that inserts a run and waits for its message, again and again.

    Whatever a test does to others, it misses no message, and all arrive in order. `query` may
    filter out the changes of others: its own runs are queued.
    """

    def __init__(self, brain: Brain, database: str, query: str = "") -> None:
        self._url = brain.url(query)
        self._database = database
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._error: BaseException | None = None
        self.told = 0
        """Its own inserts whose messages have arrived."""
        self._thread = threading.Thread(target=self._work, name="control")
        self._thread.start()
        while not self.told and self._error is None:
            time.sleep(0.005)

    def _work(self) -> None:
        try:
            with (
                psycopg.connect(self._database, autocommit=True) as conn,
                connect(self._url, compression=None, proxy=None, ping_interval=None) as client,
            ):
                for number in itertools.count():
                    if self._stop.is_set():
                        return
                    run_id = f"control-{os.getpid()}-{id(self)}-{number}"
                    conn.execute("INSERT INTO runs (id) VALUES (%s)", (run_id,))
                    self._expect(client, run_id)
                    self.told += 1
                    self._hurry.wait(PAUSE)
                    self._hurry.clear()
        except BaseException as error:  # noqa: BLE001 - check() raises it
            self._error = error

    @staticmethod
    def _expect(client: ClientConnection, run_id: str) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            found = json.loads(client.recv(max(0.01, until - time.monotonic())))["data"]["id"]
            if found == run_id:
                return
            assert not found.startswith("control-"), f"{found} came in place of {run_id}"

    def check(self) -> None:
        if self._error is not None:
            raise AssertionError("the control client was disturbed") from self._error

    def stop(self) -> None:
        self._stop.set()
        self._hurry.set()
        self._thread.join(PATIENCE)
        self.check()

    def farewell(self) -> int:
        """Wait until the server closes its connection. Returns the code of the close frame."""
        self._thread.join(PATIENCE)
        assert isinstance(self._error, ConnectionClosed), self._error
        assert self._error.rcvd is not None, "it was cut off"
        return self._error.rcvd.code

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """During the block it stays connected, and receives each of its runs, in order."""
        first = self.told
        yield
        until = time.monotonic() + PATIENCE
        while self.told < first + 2 and self._error is None and time.monotonic() < until:
            self._hurry.set()
            time.sleep(0.005)
        self.check()
        assert self.told >= first + 2, "it receives nothing any more"


class Baseline(NamedTuple):
    """What a Brain holds while only the permanent clients are connected."""

    clients: int
    connections: float
    descriptors: int


def baseline(brain: Brain) -> Baseline:
    clients = brain.get("/readyz")[1]["clients"]
    connections = brain.metric("brain_connections") - 1  # its own
    return Baseline(clients, connections, descriptors(brain))


POOL = 8
"""Connections to the database that the API may open, and then keeps for some time."""


def descriptors(brain: Brain) -> int:
    """Open sockets."""
    found = 0
    for each in Path(f"/proc/{brain.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(each.readlink()).startswith("socket:")
    return found


def settled(brain: Brain, before: Baseline) -> None:
    """Wait until Brain holds no more than `before`. The log must show no traceback."""
    until = time.monotonic() + PATIENCE
    while True:
        now = baseline(brain)
        # The baseline is that of the whole module, so small leaks add up.
        if now[:2] == before[:2] and now.descriptors <= before.descriptors + POOL:
            break
        if time.monotonic() > until:
            raise AssertionError(f"{now} is left of {before}\n{brain.log()[-2000:]}")
        time.sleep(0.02)
    log = brain.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert not re.search(r"client failed|exception", log, re.IGNORECASE), log[-3000:]


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
