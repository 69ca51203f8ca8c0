"""Many clients at little cost, and the check that they hold what SELECT shows, whatever broke.

Load writes to the table, and `sound` checks that a block leaves nothing behind in Brain.
"""

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, Self, TypeAlias

import psycopg

from brain.contract.close_codes import GAP
from tests.support.patience import PATIENCE
from tests.support.served import Brain
from tests.support.wire import CLOSE, PING, TEXT, baseline, memory, request, settled

State: TypeAlias = dict[str, dict[str, Any]]
"""Run id → `data` of the last message about it."""

AGAIN = GAP.code.to_bytes(2) + GAP.reason.encode()

FIELDS = "id, status, progress, task_id, agent, started_at, completed_at, error"


class Fleet:
    """Clients that stay connected and read everything, in one thread.

    Their messages are examined afterwards, once for all clients that received the same bytes.
    `reload`: in the end each client has been closed with 4410, has loaded GET /api/runs and has
    reconnected.
    """

    def __init__(
        self, brain: Brain, count: int = 5, query: str = "?snapshot=true", *, reload: bool = False
    ) -> None:
        self._brain = brain
        self._reload = reload
        self._loaded: dict[int, list[dict[str, Any]]] = {}
        """Client → the answer of GET /api/runs when it reloaded."""
        self._sockets: list[socket.socket] = []
        self._received: list[bytearray] = []
        self.ended: list[int] = []
        """The clients whose connection has ended."""
        self._selector = selectors.DefaultSelector()
        for number in range(count):
            self._sockets.append(self._connect(number, query))
            self._received.append(bytearray())
        self._going = True
        self._thread = threading.Thread(target=self._read, name="fleet")
        self._thread.start()
        self.until(lambda: all(b"\r\n\r\n" in taken for taken in self._received))
        assert all(taken.startswith(b"HTTP/1.1 101 ") for taken in self._received), bytes(
            self._received[0][:500]
        )

    def _connect(self, number: int, query: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._brain.port))
        sock.sendall(request(f"/ws{query}"))
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, number)
        return sock

    def _reload_all(self, number: int) -> None:
        loaded: list[dict[str, Any]] = []
        stamp, cursor = "", ""
        while not stamp or cursor:
            page = self._brain.get(
                "/api/runs?limit=1000" + (f"&cursor={cursor}" if cursor else "")
            )[1]
            loaded += page["runs"]
            stamp, cursor = stamp or page["timestamp"], page["next_cursor"]
        self._received[number] = bytearray()
        self._sockets[number].close()
        self._sockets[number] = self._connect(number, f"?since={stamp}")
        self._loaded[number] = loaded

    def _read(self) -> None:
        while self._going:
            for key, _ in self._selector.select(0.05):
                number, sock = key.data, self._sockets[key.data]
                try:
                    data = sock.recv(1 << 18)
                except OSError:
                    data = b""
                if data:
                    self._received[number] += data
                else:
                    self._selector.unregister(sock)
                    if self._reload and AGAIN in self._received[number][-128:]:
                        self._reload_all(number)
                    else:
                        self.ended.append(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._going = False
        self._thread.join(PATIENCE)
        assert error[0] is not None or len(self._loaded) == (
            len(self._received) if self._reload else 0
        )
        for sock in self._sockets:
            sock.close()
        self._selector.close()

    @staticmethod
    def until(
        condition: Callable[[], bool],
        seconds: float = PATIENCE,
        what: Callable[[], str] = lambda: "",
    ) -> float:
        """Wait for it. Returns how long it took, in seconds. `what` says what is there instead."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, (
                what() or "the condition did not hold in time"
            )
            time.sleep(0.003)
        return time.monotonic() - begun

    def reloaded(self) -> None:
        """Wait until every client has loaded all runs again. What is committed from then on reaches
        each as a message.
        """
        self.until(lambda: len(self._loaded) == len(self._sockets))

    def received(self, text: str, seconds: float = PATIENCE) -> float:
        """Wait until every client has been sent this text, such as a run's id. Returns how long it
        took, in seconds.
        """
        needle = text.encode()
        left = set(range(len(self._received)))
        looked = dict.fromkeys(left, 0)

        def everyone() -> bool:
            for number in list(left):
                taken = self._received[number]
                if len(taken) < looked[number]:  # it has reloaded
                    looked[number] = 0
                loaded = (
                    number in self._loaded and needle in json.dumps(self._loaded[number]).encode()
                )
                if loaded or taken.find(needle, max(0, looked[number] - len(needle))) >= 0:
                    left.discard(number)
                looked[number] = len(taken)
            return not left

        return self.until(
            everyone, seconds, lambda: f"{len(left)} clients have not received {text}"
        )

    def messages(self, number: int = 0) -> list[dict[str, Any]]:
        """Every message that this client has received."""
        return list(_messages(bytes(self._received[number])))

    def state(self, taken: bytes, loaded: Sequence[dict[str, Any]] = ()) -> State:
        """The state of a client that loaded these runs and then received these bytes.

        Checks that timestamps and the versions of the runs of Load never decrease.
        """
        state: State = {run["id"]: _timed(run) for run in loaded}
        last = ""
        for message in _messages(taken):
            assert _moment(message["timestamp"]) >= _moment(last or message["timestamp"])
            last, run = message["timestamp"], message["data"]
            if run["id"].startswith("load-") and run["id"] in state:
                assert int(run["task_id"]) >= int(state[run["id"]]["task_id"]), (
                    f"{run['id']} went back"
                )
            state[run["id"]] = run
        return state

    def check(self, url: str) -> None:
        """Every client is connected, and holds what SELECT shows of each run in the table."""
        until = time.monotonic() + PATIENCE
        while True:
            wanted = truth(url)
            states = [
                self.state(taken)
                for taken in {bytes(each) for each in self._received if not self._loaded}
            ]
            states += [
                self.state(bytes(self._received[i]), loaded)
                for i, loaded in list(self._loaded.items())
            ]
            wrong = [
                (i, state.get(i), row)
                for state in states
                for i, row in wanted.items()
                if state.get(i) != row
            ]
            assert not self.ended, f"clients {self.ended} have lost their connection"
            if not wrong and len(self._loaded) in (0, len(self._received)):
                return
            assert time.monotonic() < until, (
                f"{len(wrong)} states differ from SELECT, for example {wrong[:3]}"
            )
            time.sleep(0.05)


def _messages(taken: bytes) -> Iterator[dict[str, Any]]:
    """The messages after the answer to the upgrade. A close frame is a failure."""
    at = taken.index(b"\r\n\r\n") + 4
    while at + 2 <= len(taken):
        opcode, size, start = taken[at] & 0x0F, taken[at + 1], at + 2
        if size > 125:
            start += 2 if size == 126 else 8
            size = int.from_bytes(taken[at + 2 : start])
        if start + size > len(taken):
            return
        assert opcode in (TEXT, PING), taken[start : start + size] if opcode == CLOSE else opcode
        if opcode == TEXT:
            yield _decoded(taken[start : start + size])
        at = start + size


@lru_cache(200_000)
def _decoded(payload: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(payload)
    message["data"] = _timed(message["data"])
    return message


def _timed(run: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _moment(value) if name in ("started_at", "completed_at") else value
        for name, value in run.items()
    }


@lru_cache(10_000)
def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def truth(url: str) -> State:
    """The table, as messages would show it."""
    with psycopg.connect(
        url, options="-c timezone=UTC -c datestyle=ISO", client_encoding="UTF8"
    ) as conn:
        rows = conn.execute(f"SELECT {FIELDS} FROM runs".encode()).fetchall()
    names = FIELDS.split(", ")
    return {
        str(row[0]): {
            name: value for name, value in zip(names, row, strict=True) if value is not None
        }
        for row in rows
    }


@contextmanager
def sound(brain: Brain, growth: int = 48 << 20) -> Iterator[None]:
    """The block leaves nothing behind in a warm Brain: no client, descriptor or traceback, and at
    most `growth` bytes of memory.
    """
    before, resident = baseline(brain), memory(brain.process.pid)
    yield
    settled(brain, before)
    grown = memory(brain.process.pid) - resident
    assert grown < growth, f"{grown >> 20} MiB more"


class Load:
    """Writers that change runs at `rate` a second, one commit each, and reconnect for ever.

    `task_id` counts a run's versions, so a client can tell whether one ever decreases.
    """

    CHANGE = (
        "INSERT INTO runs (id, status, task_id) VALUES (%s, 'queued', '1')"
        " ON CONFLICT (id) DO UPDATE SET task_id = (runs.task_id::int + 1)::text,"
        " status = (ARRAY['queued', 'running', 'running', 'completed', 'failed'])"
        "[1 + runs.task_id::int %% 5]"
    )

    def __init__(self, url: str, rate: float = 1000, *, writers: int = 2, runs: int = 200) -> None:
        self._url = url
        self._seconds_each = writers / rate if rate else 0.0
        self._runs = runs // writers
        self._going = True
        self.commits: list[tuple[float, float]] = []
        """When each transaction began, and the seconds until it was committed."""
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(writers)]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        number = 0
        while self._going:
            try:
                with psycopg.connect(
                    self._url, autocommit=True, connect_timeout=2, options="-c lock_timeout=3s"
                ) as conn:
                    due = time.monotonic()
                    while self._going:
                        began = time.monotonic()
                        conn.execute(self.CHANGE, (f"load-{writer}-{number % self._runs}",))
                        now = time.monotonic()
                        self.commits.append((began, now - began))
                        number += 1
                        due = max(due + self._seconds_each, now - 0.1)
                        time.sleep(max(0.0, due - now))
            except psycopg.OperationalError:
                time.sleep(0.02)

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
