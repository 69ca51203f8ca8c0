"""Thousands of connections at once: raw sockets and one epoll, from many addresses of loopback."""

import contextlib
import itertools
import resource
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Self

from tests.support.patience import PATIENCE
from tests.support.wire import request

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux, ip(7): the port is chosen when the peer is known, so one port can serve many peers."""

PER_ADDRESS = 50
"""Connections of one address: few enough for the limits of an address."""

_numbers = itertools.count()


def capped(count: int, spare: int = 500) -> int:
    """`count`, or as many connections as the hard limit of descriptors permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(count, hard - spare)


class Member:
    __slots__ = ("connected", "data", "ended", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        """What it received. Without the head of the answer, if it asked for an upgrade."""
        self.connected = False
        """Connected, and upgraded if it asked for that."""
        self.ended = 0.0
        """When its stream ended, or 0."""


class Crowd:
    """`ask`: bytes that each sends when it connects. Then it counts as connected once it gets a
    101.
    """

    def __init__(self, port: int, ask: bytes = b"", *, rcvbuf: int | None = None) -> None:
        self.members: list[Member] = []
        self.refused: list[bytes] = []
        self._port = port
        self._ask = ask
        self._rcvbuf = rcvbuf
        self._epoll = select.epoll()
        self._by_fd: dict[int, Member] = {}
        self._under_way = 0

    @classmethod
    def clients(
        cls, port: int, count: int, target: str = "/ws", *, rcvbuf: int | None = None
    ) -> Self:
        """`count` WebSocket clients, all of them connected."""
        crowd = cls(port, request(target), rcvbuf=rcvbuf)
        crowd.connect(count)
        return crowd

    def connect(self, count: int, *, window: int = 500) -> None:
        """Open `count` more connections, `window` at a time. Returns when all are connected or
        refused.
        """
        capped(0)
        until = time.monotonic() + PATIENCE
        begun = 0
        while begun < count or self._under_way:
            for _ in range(min(window - self._under_way, count - begun)):
                self.members.append(self._begin())
                begun += 1
            self.pump(0.0 if begun < count else 0.05, lambda: not self._under_way)
            assert time.monotonic() < until, f"{self._under_way} of {count} did not connect"

    def _begin(self) -> Member:
        sock = socket.socket()
        sock.setblocking(False)
        if self._rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
        place = next(_numbers) // PER_ADDRESS % 60_000
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.{2 + place // 250}.{place % 250}.1", 0))
        sock.connect_ex(("127.0.0.1", self._port))
        member = Member(sock)
        self._by_fd[sock.fileno()] = member
        self._epoll.register(sock, select.EPOLLOUT)
        self._under_way += 1
        return member

    def pump(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Read for `seconds`, or until `done`. Returns whether it is done."""
        until = time.monotonic() + seconds
        while True:
            for fd, events in self._epoll.poll(max(0.0, min(0.05, until - time.monotonic())), 4096):
                self._serve(self._by_fd[fd], events)
            if done is not None and done():
                return True
            if time.monotonic() >= until:
                return False

    def _serve(self, member: Member, events: int) -> None:
        sock = member.sock
        try:
            if events & select.EPOLLOUT:
                self._epoll.modify(sock, select.EPOLLIN)
                sock.send(self._ask)
                if not self._ask:
                    self._arrive(member)
                return
            data = sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._end(member)
            return
        member.data += data
        if not member.connected and (end := member.data.find(b"\r\n\r\n")) >= 0:
            if member.data.startswith(b"HTTP/1.1 101 "):
                member.data = member.data[end + 4 :]
                self._arrive(member)
            else:
                self.refused.append(member.data)
                self._end(member)

    def _arrive(self, member: Member) -> None:
        member.connected = True
        self._under_way -= 1

    def _end(self, member: Member) -> None:
        self._under_way -= not member.connected
        member.ended = time.monotonic()
        del self._by_fd[member.sock.fileno()]
        self._epoll.unregister(member.sock)
        member.sock.close()

    def send(self, data: bytes) -> None:
        """Send this on each connection. (Nothing here answers a ping.)"""
        for member in self.present:
            with contextlib.suppress(OSError):
                member.sock.send(data)

    @property
    def present(self) -> list[Member]:
        return [each for each in self.members if each.connected and not each.ended]

    def close(self, *, reset: bool = False) -> None:
        """Close all connections, by FIN or by RST."""
        for member in self._by_fd.values():
            if reset:
                with contextlib.suppress(OSError):
                    member.sock.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
            member.sock.close()
        self._by_fd.clear()
        self._under_way = 0
        self._epoll.close()
        self._epoll = select.epoll()
        self.members.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(reset=True)
        self._epoll.close()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The complete frames of a server in this: (opcode, payload)."""
    return split(data)[0]


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The complete frames of a server in this, and the bytes behind them."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at + 2 <= len(data):
        size, start = data[at + 1], at + 2
        if size > 125:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start])
        if start + size > len(data):
            break
        found.append((data[at] & 0x0F, data[start : start + size]))
        at = start + size
    return found, data[at:]
