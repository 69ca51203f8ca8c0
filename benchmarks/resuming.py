"""N clients in one process that resume over a restart of Brain, as protocol.md asks for.

As a program it takes the number of clients and the ports of one Brain or more, and then commands on
standard input, one per line, each answered with a line of JSON: `record` begins to keep what
arrives, `state` reports on it, and `missing FIRST LAST` says how many of the runs once-FIRST to
once-LAST did not arrive. Of several Brains, a client comes back to the next one.

A client is *current* when it has received a change that was committed after it had connected: what
it missed comes before that. Equal bytes are kept once, because all clients receive the same.
"""

import heapq
import json
import random
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, Self

from benchmarks.load import KEY, STAMP

EVERY: Final = 0.04
TIME: Final = b'"timestamp":"'
ONCE: Final = re.compile(rb"once-(\d{9})")
GAP: Final = b"\x11\x3a"
"""How the payload of a close frame with 4410 begins."""

FIRST: Final = 0.002
"""Seconds between the first connects of two clients. Those after a restart are not spread."""

BACK_OFF: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)


class Client:
    __slots__ = ("chunks", "connected", "current", "failures", "port", "since", "sock", "state")

    def __init__(self, port: int) -> None:
        self.sock: socket.socket
        self.port = port
        """As a place in the list of ports."""
        self.state = "away"
        self.since = b""
        self.failures = 0
        self.connected = self.current = 0
        """When, in nanoseconds; 0 for not yet."""
        self.chunks: list[bytes] = []


class Crowd:
    def __init__(self, ports: Sequence[int], count: int) -> None:
        self.ports = ports
        self.clients = [Client(number % len(ports)) for number in range(count)]
        self.by_fd: dict[int, Client] = {}
        self.open = select.epoll()
        self.opening = select.epoll()
        begun = time.monotonic()
        self.due: list[tuple[float, int]] = [
            (begun + number * FIRST, number) for number in range(count)
        ]
        self.numbers = {id(client): number for number, client in enumerate(self.clients)}
        self.known: dict[bytes, bytes] = {}
        self.gaps = self.losses = self.refused = 0
        self.recording = False
        self.buffer = bytearray(1 << 20)

    # Connections.

    def connect(self, client: Client) -> None:
        sock = client.sock = socket.socket()
        sock.setblocking(False)
        number = self.numbers[id(client)]
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((f"127.0.1.{2 + number % 200}", 0))
        sock.connect_ex(("127.0.0.1", self.ports[client.port]))
        client.state = "new"
        self.by_fd[sock.fileno()] = client
        self.opening.register(sock, select.EPOLLOUT)

    def away(self, client: Client) -> None:
        """Wait as long as the protocol says, and come back."""
        self.by_fd.pop(client.sock.fileno(), None)
        client.sock.close()
        client.state, client.current = "away", 0
        client.port = (client.port + 1) % len(self.ports)
        longest = BACK_OFF[min(client.failures, len(BACK_OFF) - 1)]
        client.failures += 1
        at = time.monotonic() + random.uniform(longest / 2, longest)
        heapq.heappush(self.due, (at, self.numbers[id(client)]))

    def step(self, client: Client, events: int) -> None:
        """On the way to an open connection."""
        sock = client.sock
        if client.state == "new":
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or events & select.EPOLLHUP:
                self.away(client)
                return
            asked = b"since=" + client.since if client.since else b"snapshot=true"
            head = b"GET /ws?%s HTTP/1.1\r\nHost: localhost:%d\r\n" % (
                asked,
                self.ports[client.port],
            )
            upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            sock.send(head + upgrade + b"Sec-WebSocket-Key: %s\r\n\r\n" % KEY.encode())
            client.state = "asked"
            self.opening.modify(sock, select.EPOLLIN)
            return
        try:
            data = sock.recv(1 << 20)
        except OSError:
            data = b""
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found or not head.startswith(b"HTTP/1.1 101"):
            self.refused += bool(data)
            self.away(client)
            return
        self.opening.unregister(sock)
        self.open.register(sock, select.EPOLLIN)
        client.state, client.connected, client.current = "open", time.monotonic_ns(), 0
        if rest:
            self.take(client, rest)

    def take(self, client: Client, data: bytes) -> None:
        data = self.known.setdefault(data, data) if self.recording else data
        if self.recording:
            client.chunks.append(data)
        at = data.rfind(TIME)
        if at >= 0 and (end := data.find(b'"', at + len(TIME))) >= 0:
            client.since = data[at + len(TIME) : end]
        if not client.current:
            stamps = STAMP.findall(data[-4096:])
            if stamps and int(stamps[-1]) >= client.connected:
                client.current, client.failures = time.monotonic_ns(), 0

    def read(self, client: Client) -> None:
        try:
            data = bytes(memoryview(self.buffer)[: client.sock.recv_into(self.buffer)])
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.take(client, data)
        if not data or self.is_close(data):
            self.losses += 1
            if GAP in data[-64:]:
                self.gaps += 1
                client.since = b""
            self.away(client)

    @staticmethod
    def is_close(data: bytes) -> bool:
        """Whether a close frame is at the end."""
        at = data.rfind(b"\x88", -128)
        return at >= 0 and len(data) - at >= 2 and data[at + 1] == len(data) - at - 2

    def turn(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for fd, _ in self.open.poll(0, 20_000):
            if fd in self.by_fd:
                self.read(self.by_fd[fd])
        while True:
            while self.due and self.due[0][0] <= time.monotonic():
                self.connect(self.clients[heapq.heappop(self.due)[1]])
            left = until - time.monotonic()
            wait = min(left, self.due[0][0] - time.monotonic() if self.due else left)
            for fd, events in self.opening.poll(max(0.0, wait), 10_000):
                if fd in self.by_fd:
                    self.step(self.by_fd[fd], events)
            if left <= 0:
                return

    # Commands.

    def answer(self, *words: str) -> dict[str, Any] | None:
        """None for no command: the parent has ended."""
        match words:
            case ["record"]:
                return self.record()
            case ["state"]:
                return self.state()
            case ["missing", first, last]:
                return self.missing(int(first), int(last))
        return None

    def record(self) -> dict[str, Any]:
        self.known.clear()
        self.gaps = self.losses = self.refused = 0
        self.recording = True
        for client in self.clients:
            client.chunks = []
        return {}

    def state(self) -> dict[str, Any]:
        times = sorted(client.current for client in self.clients)
        return {
            "open": sum(client.state == "open" for client in self.clients),
            "current": sum(map(bool, times)),
            "first": min((client.connected for client in self.clients), default=0),
            "most": times[len(times) * 99 // 100],
            "last": times[-1],
            "gaps": self.gaps,
            "losses": self.losses,
            "refused": self.refused,
        }

    def missing(self, first: int, last: int) -> dict[str, Any]:
        """Also of what lies across two chunks."""
        wanted = set(range(first, last + 1))
        found: dict[bytes, frozenset[int]] = {}
        missing, worst = 0, 0
        for client in self.clients:
            got: set[int] = set()
            before = b""
            for chunk in client.chunks:
                if chunk not in found:
                    found[chunk] = frozenset(map(int, ONCE.findall(chunk)))
                got |= found[chunk]
                got.update(map(int, ONCE.findall(before[-13:] + chunk[:13])))
                before = chunk
            lacks = len(wanted - got)
            missing += lacks
            worst += bool(lacks)
        return {"missing": missing, "clients": worst}


class Resuming:
    """The program, seen from its parent."""

    program = "benchmarks.resuming"

    def __init__(self, ports: Sequence[int], clients: int, *, cores: str) -> None:
        command = [sys.executable, "-m", self.program, str(clients), *map(str, ports)]
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def serve(crowd: Crowd) -> None:
    commands = select.poll()
    commands.register(0, select.POLLIN)
    while True:
        if commands.poll(0):
            answer = crowd.answer(*sys.stdin.readline().split())
            if answer is None:
                return
            print(json.dumps(answer), flush=True)
        crowd.turn(EVERY)


if __name__ == "__main__":
    serve(Crowd([int(port) for port in sys.argv[2:]], int(sys.argv[1])))
