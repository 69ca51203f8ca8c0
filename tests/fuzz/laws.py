"""What must hold for any bytes: they are parsed, or refused as documented, in bounded time and
memory.

Each law takes bytes and raises AssertionError, or the exception that is not documented.
test_fuzz.py applies the laws to corpus/ and to what hypothesis generates, guided.py to what
atheris finds by coverage.
"""

import asyncio
import contextlib
import logging
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import uvloop
from structlog.testing import capture_logs
from websockets.frames import EXTERNAL_CLOSE_CODES

from brain.access.policy import Policy
from brain.config import Settings, SettingsError
from brain.contract.messages import STATUSES
from brain.environment import SECRETS
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import PgoutputError, shortened
from brain.postgres.table import init_sql
from brain.server.http import HTTPProtocol
from brain.server.websocket import STRIDE, Connection
from tests.support.in_process_server import InProcessServer, in_process_server
from tests.support.pgoutput import parse
from tests.support.wire import CLOSE, Frame, Peer, parsed, request

Law: TypeAlias = Callable[[bytes], None]

CORPUS = Path(__file__).parent / "corpus"
"""Bytes that once broke a law, by the name of the law: regression tests."""

SLOW = 2.0
"""Seconds of a processor that nothing here may take."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    began = time.thread_time()
    yield
    took = time.thread_time() - began
    assert took < SLOW, f"it took {took:.1f} s"


def pgoutput(data: bytes) -> None:
    tracemalloc.start()
    try:
        with in_time(), contextlib.suppress(PgoutputError):
            parse(data)
        with in_time(), contextlib.suppress(PgoutputError):
            parse(shortened(memoryview(data), 0, 4, "utf-8"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A column of one byte is an entry in a list, an empty name a string.
    assert peak < 64 * len(data) + 100_000, f"{len(data)} bytes took {peak}"


# On one server, in this process, for as many examples as there are

HTTP = {101, 204, 400, 403, 404, 405, 408, 413, 414, 421, 426, 429, 431, 503, 505}
"""Those of docs/reference/protocol.md, and 204, the one answer of the application here. Not 500."""

CODES = EXTERNAL_CLOSE_CODES | set(range(3000, 5000))
"""With those of the client, which Brain echoes. A 1011 of Brain's own shows in its log."""


class Errors(logging.Handler):
    def __init__(self, found: list[Any]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(record.getMessage())


class Host:
    """The server, and the errors that it logged."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(Errors(self.errors))
        self._stack = contextlib.AsyncExitStack()
        self.it: InProcessServer = self.loop.run_until_complete(
            self._stack.enter_async_context(in_process_server())
        )

    def close(self) -> None:
        self.loop.run_until_complete(self._stack.aclose())
        self.loop.close()

    def answer(self, first: bytes, parts: Iterable[bytes]) -> bytes:
        """All bytes that the server sends to a client that sends these and ends its stream.

        `first` comes by the network. Each part is handed to the protocol as the transport would, so
        that it arrives as one piece.
        """
        with in_time(), capture_logs() as logs:
            answer = self.loop.run_until_complete(self._answer(first, parts))
        assert not self.errors, self.errors
        assert not [line for line in logs if line["log_level"] in ("error", "critical")], logs
        return answer

    async def _answer(self, first: bytes, parts: Iterable[bytes]) -> bytes:
        it = self.it
        async with await Peer.open(it.port) as peer:
            while not (protocols := list(it.server.server_state.connections)):
                await asyncio.sleep(0)
            http = protocols[0]
            assert isinstance(http, HTTPProtocol)
            transport = http.transport
            if first:
                peer.send(first)
                while not it.connections:
                    await asyncio.sleep(0)
            for part in parts:
                if transport.is_closing():
                    break
                protocol: Any = transport.get_protocol()
                protocol.data_received(part)
                if isinstance(protocol, Connection):
                    bounded(protocol)
                await asyncio.sleep(0)
            while it.server.server_state.tasks:
                await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                peer.writer.write_eof()
            answer = await peer.rest()
        while it.limiter.connections or it.connections or it.state.connections.closing:
            await asyncio.sleep(0)
        assert not it.state.waiting, "a closed connection still has a deadline"
        assert not it.server.server_state.connections
        assert not it.server.server_state.tasks
        return answer


def bounded(connection: Connection) -> None:
    held = len(connection._message.data) if connection._message else 0
    max_message = connection._all.limits.max_message
    assert len(connection._unread) <= max_message
    assert held <= max_message
    if connection._protocol is not None:
        assert len(connection._protocol.reader.buffer) <= max_message + STRIDE


_hosts: list[Host] = []


def host() -> Host:
    if not _hosts:
        _hosts.append(Host())
    return _hosts[0]


def close_host() -> None:
    while _hosts:
        _hosts.pop().close()


def answers(data: bytes) -> tuple[list[int], bytes]:
    """The statuses of these answers, and the frames after a 101."""
    statuses = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head[:80]
        assert end, "an incomplete head"
        statuses.append(int(head[9:12]))
        if statuses[-1] == 101:
            break
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert all(32 <= byte < 256 for line in head.split(b"\r\n") for byte in line), head
        size = int(fields.get(b"content-length", b"0"))
        # The answer to a HEAD has a length and no body.
        data = data if data.startswith(b"HTTP/1.1 ") else data[size:]
    return statuses, data


def frames(data: bytes) -> list[Frame]:
    found, at = [], 0
    while at < len(data):
        next_ = parsed(data, at)
        assert next_ is not None, "an incomplete frame"
        each, at = next_
        found.append(each)
    assert CLOSE not in [each.opcode for each in found[:-1]], "a close frame is the last frame"
    return found


def checked(data: bytes) -> list[int]:
    statuses, rest = answers(data)
    assert set(statuses) <= HTTP, statuses
    frames(rest)
    return statuses


def each_byte(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def upgrade(data: bytes) -> None:
    """Any bytes as a request, whole and byte by byte: the first answer is the same.

    Or there is no answer: bytes that are not HTTP end the connection, even right after a request
    that is not answered yet.
    """
    whole = checked(host().answer(b"", [data]))
    cut = checked(host().answer(b"", each_byte(data)))
    assert not whole or not cut or whole[0] == cut[0], (whole, cut)


def client(data: bytes) -> None:
    """Any bytes as a client's frames, whole and byte by byte."""
    opening = request("/ws?run_id=nobody")
    whole, cut = (
        frames(answers(host().answer(opening, parts))[1]) for parts in ([data], each_byte(data))
    )
    ends = {
        end.code
        for found in (whole, cut)
        for end in found[-1:]
        if end.opcode == CLOSE and end.payload
    }
    assert ends <= CODES
    # 1007: of two errors in the same bytes, the parser chooses which it reports. 1008: the bound
    # of the rate depends on time.
    if not ends & {1007, 1008}:
        assert sorted(whole) == sorted(cut)


# Settings

PASSWORD = "hunter2-geheim"


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in list(os.environ):
        if name.upper().startswith("BRAIN_") or name == "DATABASE_URL":
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def settings(data: bytes) -> None:
    """NAME=value pairs, separated by NUL, which no variable can hold.

    The parts that take the settings accept all that Settings accepts.
    """
    text = data.decode("utf-8", "surrogateescape")
    pairs = (pair.partition("=") for pair in text.split("\0"))
    values = {f"BRAIN_{name}": value for name, equals, value in pairs if equals}
    # A host of that name is not a secret.
    shown = any(PASSWORD in value for name, value in values.items() if name not in SECRETS)
    with in_time(), capture_logs(), environment(values):
        refusal, found = "", None
        try:
            found = Settings.load()
        except SettingsError as error:
            refusal = str(error)
        if found is None:
            assert refusal
            assert shown or PASSWORD not in refusal
            assert refusal.replace("\n", "").isprintable(), refusal
            return
        Policy(
            networks=found.allowed_networks,
            origins=found.allowed_origins,
            hosts=found.allowed_hosts,
            trusted_proxies=found.trusted_proxies,
        )
        "".join(Decoder(found.status_map, found.max_text).words(*STATUSES)).encode()
        init_sql(found.table).encode()
        assert shown or PASSWORD not in repr(found)


LAWS: dict[str, Law] = {
    "pgoutput": pgoutput,
    "request": upgrade,
    "frames": client,
    "settings": settings,
}
