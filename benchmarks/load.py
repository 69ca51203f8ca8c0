"""The load: N WebSocket clients in one process, cheap enough to leave the other core to the
server.

A client is a raw non-blocking socket. Nearly all of them only count bytes: 25 times per second the
kernel discards what has arrived (recv with MSG_TRUNC copies nothing). All messages of a
measurement have one length, so bytes are messages, and a lost message is visible. (Where a peer
joins messages into frames, the bytes of a message vary by 1 %, and so does the count.) A few
clients are *probes*: they are read at once, and their frames are parsed. That gives the length,
and the time from a stamp in the message (`t=` and 19 digits, CLOCK_MONOTONIC in nanoseconds: one
clock for all processes of a machine) to its arrival.

As a program it takes its options as one JSON object, then commands on standard input, one per
line. It answers each with a line of JSON: `reset` begins a measurement, `progress` and `count`
report on it, `again` closes all connections and opens new ones. `Load` is the other end.
"""

import json
import re
import resource
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

EVERY = 0.040
"""Seconds between two reads of the clients that only count."""

GULP = 1 << 20
STRIDE = 64
"""Number of counting clients read between two looks at the probes: 0.1 ms."""

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of RFC 6455, section 1.3: the floor has the answer to it built in."""

STAMP = re.compile(rb"t=(\d{19})")
PING_BYTES = 2
"""Size of an empty ping, which may arrive between messages."""


@dataclass(slots=True)
class Options:
    port: int
    path: str
    clients: int
    probes: int = 16
    window: int = 256
    """Connections that are opened at the same time. As many as clients: a storm."""
    sources: int = 4
    """Addresses 127.0.0.x from which clients connect."""
    hello: str = ""
    """A text that each client sends first, for peers whose protocol needs one."""


class Client:
    __slots__ = ("count", "data", "head", "messages", "probe", "size", "sock", "stamps", "state")

    def __init__(self, probe: bool) -> None:
        self.sock: socket.socket
        self.probe = probe
        self.state = "new"
        self.head = b""
        self.clear()
        self.data = b""

    def clear(self) -> None:
        self.count = 0
        self.messages = 0
        self.size = 0
        self.stamps: list[tuple[int, int]] = []


class Crowd:
    """All clients. `counting` and `probing` are the two epoll objects."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.round = 0
        self.buffer = bytearray(GULP)
        self.open_all()

    def open_all(self) -> None:
        options = self.options
        self.clients: dict[int, Client] = {}
        self.failed: dict[str, int] = {}
        self.closed = 0
        self.joined = False
        """A frame had several messages."""
        self.last = 0
        self.counting, self.probing = select.epoll(), select.epoll()
        host = f"Host: localhost:{options.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        request = f"GET {options.path} HTTP/1.1\r\n{host}{key}".encode() + masked_text(
            options.hello
        )
        connecting = select.epoll()
        every = max(1, options.clients // options.probes)
        under_way: dict[int, Client] = {}
        begun, done = time.monotonic(), 0
        waits: list[float] = []
        since: dict[int, float] = {}
        opened = 0
        while done < options.clients:
            while opened < options.clients and len(under_way) < options.window:
                client = Client(opened % every == every // 2)
                self.connect(client, opened)
                connecting.register(client.sock, select.EPOLLOUT)
                under_way[client.sock.fileno()] = client
                since[client.sock.fileno()] = time.monotonic()
                opened += 1
            for fd, _ in connecting.poll(30.0, 1024) or self.give_up(under_way, done):
                client = under_way[fd]
                if client.state == "new":
                    error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not error:
                        client.sock.send(request)
                        client.state = "asked"
                        connecting.modify(fd, select.EPOLLIN)
                        continue
                    self.fail(client, f"errno {error}")
                elif (settled := self.settle(client)) is None:
                    continue
                elif settled:
                    (self.probing if client.probe else self.counting).register(fd, select.EPOLLIN)
                    self.clients[fd] = client
                    waits.append(time.monotonic() - since[fd])
                connecting.unregister(fd)
                del under_way[fd]
                done += 1
                if client.state == "failed":
                    client.sock.close()
        self.connected_in = time.monotonic() - begun
        waits.sort()
        self.waits = [waits[len(waits) // 2], waits[-1]] if waits else []
        self.reset()

    def connect(self, client: Client, number: int) -> None:
        sock = client.sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(
            socket.SOL_IP, 24, 1
        )  # IP_BIND_ADDRESS_NO_PORT: choose the port when the peer is known
        self.round += not number
        sock.bind((f"127.0.{self.round % 250}.{2 + number % self.options.sources}", 0))
        sock.connect_ex(("127.0.0.1", self.options.port))

    def settle(self, client: Client) -> bool | None:
        """True: connected. False: refused. None: not yet. Bytes after the head are the stream's."""
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:
            return self.fail(client, type(error).__name__)
        if not data:
            return self.fail(client, client.head[:40].decode("latin-1") or "closed")
        client.head += data
        head, found, rest = client.head.partition(b"\r\n\r\n")
        if not found:
            return None
        if not head.startswith(b"HTTP/1.1 101"):
            return self.fail(client, head.partition(b"\r\n")[0].decode("latin-1"))
        client.state, client.head = "open", b""
        if rest:
            self.came(client, rest) if client.probe else self.counted(client, len(rest))
        return True

    def fail(self, client: Client, detail: str) -> bool:
        client.state = "failed"
        self.failed[detail] = self.failed.get(detail, 0) + 1
        return False

    def give_up(self, under_way: dict[int, Client], done: int) -> list[tuple[int, int]]:
        raise SystemExit(
            f"no answer for 30 s to {len(under_way)} of {self.options.clients} ({done} done)"
        )

    def close_all(self) -> None:
        for client in self.clients.values():
            client.sock.close()
        self.counting.close()
        self.probing.close()

    # A measurement.

    def reset(self) -> None:
        """Begin to count. What has arrived so far is read first."""
        self.look()
        for client in self.clients.values():
            client.clear()
        self.joined = False
        self.began = self.last = time.monotonic_ns()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu = used.ru_utime + used.ru_stime

    def run(self, seconds: float) -> None:
        """Read the probes at once, and the others from time to time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for fd, _ in self.probing.poll(left, 256):
                self.read_probe(self.clients[fd])

    def look(self) -> None:
        """Read each counting client that has something, and the probes in between."""
        clients, buffer, trunc = self.clients, self.buffer, socket.MSG_TRUNC
        while True:
            ready = self.counting.poll(0, 20_000)
            for i, (fd, _) in enumerate(ready):
                client = clients[fd]
                try:
                    size = client.sock.recv_into(buffer, GULP, trunc)
                except BlockingIOError:
                    continue
                except OSError:
                    size = 0
                if size:
                    client.count += size
                else:
                    self.gone(self.counting, client)
                if i % STRIDE == 0:
                    for at, _ in self.probing.poll(0, 256):
                        self.read_probe(clients[at])
            if ready:
                self.last = time.monotonic_ns()
            return

    def counted(self, client: Client, size: int) -> None:
        client.count += size

    def read_probe(self, client: Client) -> None:
        try:
            data = client.sock.recv(GULP)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.came(client, data)
        else:
            self.gone(self.probing, client)

    def came(self, client: Client, data: bytes) -> None:
        now = time.monotonic_ns()
        self.last = now
        buffer = client.data + data
        at, end = 0, len(buffer)
        while end - at >= 2:
            size, start = buffer[at + 1] & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(buffer[at + 2 : at + 4]), at + 4
            elif size == 127:
                size, start = int.from_bytes(buffer[at + 2 : at + 10]), at + 10
            if end < start or end < start + size:
                break
            if buffer[at] & 0x0F == 1:
                # A peer may join several messages into one frame, so stamps are counted. Each but
                # the last then has a delimiter of one byte, and not a header.
                stamps = STAMP.findall(buffer, start, start + size)
                client.messages += len(stamps)
                client.count += start + size - at
                client.stamps.extend((int(stamp), now) for stamp in stamps)
                if stamps:
                    whole = start + size - at if len(stamps) == 1 else (size + 1) // len(stamps)
                    client.size = min(client.size or whole, whole)
                    self.joined |= len(stamps) > 1
            elif buffer[at] & 0x0F == 9:
                client.sock.send(
                    b"\x8a" + bytes([0x80 | size]) + b"\0\0\0\0" + buffer[start : start + size]
                )
            at = start + size
        client.data = buffer[at:]

    def gone(self, epoll: select.epoll, client: Client) -> None:
        epoll.unregister(client.sock)
        client.sock.close()
        client.state = "closed"
        self.closed += 1

    def progress(self) -> dict[str, Any]:
        """The cheap part of the report: 2 ms for 10 000 clients."""
        size = smallest(self.probes())
        return {
            "delivered": self.counts(size)[2],
            "clients": len(self.clients) - self.closed,
            "last": self.last,
        }

    def probes(self) -> list[Client]:
        return [client for client in self.clients.values() if client.probe]

    def counts(self, size: int) -> tuple[int, int, int]:
        """Messages: the minimum and maximum of a client, and the sum."""
        each = [
            client.messages if client.probe else (client.count // size if size else 0)
            for client in self.clients.values()
        ]
        return min(each, default=0), max(each, default=0), sum(each)

    def report(self) -> dict[str, Any]:
        """What arrived since the reset. `messages` is [min, max, sum] over clients."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        probes = self.probes()
        size = smallest(probes)
        ragged = sum(
            1
            for client in self.clients.values()
            if not client.probe
            and size
            and client.count % size not in (0, PING_BYTES, 2 * PING_BYTES)
        )
        latencies = sorted((came - sent) / 1e6 for client in probes for sent, came in client.stamps)
        return {
            "clients": len(self.clients) - self.closed,
            "closed": self.closed,
            "bytes": sum(client.count for client in self.clients.values()),
            "messages": self.counts(size),
            "size": size,
            "joined": self.joined,
            "ragged": ragged,
            "last": self.last,
            "cpu": used.ru_utime + used.ru_stime - self.cpu,
            "latency": quantiles(latencies),
        }

    def connected(self) -> dict[str, Any]:
        return {
            "clients": len(self.clients),
            "failed": self.failed,
            "seconds": self.connected_in,
            "waits": self.waits,
        }


def smallest(clients: list[Client]) -> int:
    """Bytes of a message; where a peer joins messages, the fewest that one takes."""
    return min((client.size for client in clients if client.size), default=0)


def quantiles(sorted_ms: list[float]) -> dict[str, float]:
    """Milliseconds."""
    n = len(sorted_ms)
    if not n:
        return {}
    return {
        "n": n,
        "p50": sorted_ms[n // 2],
        "p99": sorted_ms[min(n - 1, int(n * 0.99))],
        "max": sorted_ms[-1],
    }


def masked_text(text: str) -> bytes:
    """A client's text frame of at most 65 535 bytes, masked with zeros; no frame for no text."""
    payload = text.encode()
    if not payload:
        return b""
    length = (
        bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    )
    return b"\x81" + length + b"\0\0\0\0" + payload


def serve(options: Options) -> None:
    """The program: commands arrive on standard input."""
    crowd = Crowd(options)
    print(json.dumps(crowd.connected()), flush=True)
    commands = select.poll()
    commands.register(0, select.POLLIN)
    while True:
        began = time.monotonic()
        crowd.look()
        if commands.poll(0):
            match sys.stdin.readline().strip():
                case "reset":
                    crowd.reset()
                    answer: dict[str, Any] = {}
                case "progress":
                    answer = crowd.progress()
                case "count":
                    answer = crowd.report()
                case "again":
                    crowd.close_all()
                    crowd.open_all()
                    answer = crowd.connected()
                case _:
                    return
            print(json.dumps(answer), flush=True)
        crowd.run(max(EVERY - (time.monotonic() - began), 0.001))


class Load:
    """The program, seen from its parent. It runs on `cores`."""

    def __init__(self, options: Options, *, cores: str = "") -> None:
        command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(options))]
        self.process = subprocess.Popen(
            [*(["taskset", "-c", cores] if cores else []), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.connected = self._answer()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def check_connected(self) -> None:
        """Raises RuntimeError if clients were refused."""
        if self.connected["failed"]:
            raise RuntimeError(f"clients were refused: {self.connected['failed']}")

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if command == "again":
            self.connected = answer
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    serve(Options(**json.loads(sys.argv[1])))
