"""Clients of several nodes, who read at once: how long each hears nothing, and what it holds."""

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from benchmarks.load import STAMP
from tests.support.crowd import frames
from tests.support.patience import wait_until
from tests.support.wire import PING, TEXT, frame, request

RUN_ID = b'"id":"'


class Watcher:
    __slots__ = ("data", "ended", "last", "longest", "node", "sock", "stamp")

    def __init__(self, node: int, port: int) -> None:
        self.node = node
        self.data = bytearray()
        self.last = self.longest = 0
        """When a change came last, and the longest time without one, in nanoseconds."""
        self.stamp = 0
        """When the last change that came was written."""
        self.ended = False
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(request("/ws?snapshot=true"))
        self.sock.setblocking(False)

    def take(self, data: bytes) -> None:
        self.data += data
        if not (stamps := STAMP.findall(data)):
            return
        now = time.monotonic_ns()
        if self.last:
            self.longest = max(self.longest, now - self.last)
        self.last, self.stamp = now, max(self.stamp, int(stamps[-1]))

    def state(self) -> dict[str, str]:
        """Run → the stamp that this client holds."""
        found = {}
        body = bytes(self.data).partition(b"\r\n\r\n")[2]
        for opcode, payload in frames(body):
            if opcode == TEXT and (stamps := STAMP.findall(payload)):
                run = payload.partition(RUN_ID)[2].partition(b'"')[0]
                found[run.decode()] = stamps[-1].decode()
        return found


class Watchers:
    """`each` clients of every port, inside `with`."""

    def __init__(self, ports: Sequence[int], each: int) -> None:
        self._epoll = select.epoll()
        self.all = [Watcher(node, port) for node, port in enumerate(ports) for _ in range(each)]
        self._by_fd = {watcher.sock.fileno(): watcher for watcher in self.all}
        self._going = True
        self._thread = threading.Thread(target=self._read, name="watchers", daemon=True)

    def __enter__(self) -> Self:
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()
        for watcher in self.all:
            watcher.sock.close()
        self._epoll.close()

    def _read(self) -> None:
        while self._going:
            for fd, _ in self._epoll.poll(0.05):
                watcher = self._by_fd[fd]
                try:
                    data = watcher.sock.recv(1 << 18)
                except OSError:
                    data = b""
                if not data:
                    watcher.ended = True
                    self._epoll.unregister(fd)
                elif data == frame(opcode=PING, masked=False):
                    watcher.sock.send(b"\x8a\x80\0\0\0\0")
                else:
                    watcher.take(data)

    def mark(self) -> None:
        """Measure silences from now on: also one that has begun."""
        for watcher in self.all:
            watcher.longest = 0

    def of(self, *without: int) -> list[Watcher]:
        """Those of the other nodes."""
        return [watcher for watcher in self.all if watcher.node not in without]

    def current(self, since: int, *without: int) -> None:
        """Wait until each of the other nodes' has a change that was written after this time."""
        wait_until(
            lambda: all(watcher.stamp > since or watcher.ended for watcher in self.of(*without)),
            lambda: f"clients of nodes {sorted({w.node for w in self.of(*without)})} hear nothing",
        )


def silent(watchers: Sequence[Watcher]) -> float:
    """The longest silence of any of them, in seconds, also one that goes on."""
    now = time.monotonic_ns()
    return max(max(watcher.longest, now - watcher.last) for watcher in watchers) / 1e9


def wrong(watchers: Sequence[Watcher], truth: Callable[[], dict[str, Any]], seconds: float) -> int:
    """How many hold something else than the truth, also after this time."""
    deadline = time.monotonic() + seconds
    while True:
        known = truth()
        differ = sum(
            any(state.get(run) != stamp for run, stamp in known.items())
            for state in (watcher.state() for watcher in watchers)
        )
        if not differ or time.monotonic() > deadline:
            return differ
        time.sleep(0.3)  # between two looks
