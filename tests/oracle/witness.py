"""The clients of the oracle: a process with one witness of each kind, which remembers its messages.

    python -m tests.oracle.witness PORT SEED    takes one JSON document a line on standard input:
    {"cut": 3, "how": "rst", "away": 1.5}       witness 3 loses its connection, and reconnects after
                                                1.5 s
    {"present": true}                           prints how many of them are connected
    {"judge": "/path/of/the/truth.json"}        prints how what they hold differs from the truth

What a witness is entitled to (docs/reference/protocol.md):

- With `snapshot`: every run that is unfinished when it joins. Without it: none.
- Once it has joined a Brain that is ready: every change, as it was or superseded by a newer one. So
  when nothing changes any more, it holds the row that SELECT shows of each run that changed since,
  and of each run that it ever received.
- A witness that reconnects with `since` continues as if it had stayed connected, or is closed with
  4410. Then it discards what it holds and reloads: with GET /api/runs, which gives it everything,
  or with `snapshot`.
- A witness that reconnects without `since` starts from nothing. What its last connection had not
  received when it ended is counted, but not judged: a commit that a query finds after an outage has
  the time of that query, and if a scan is cut off and repeated, its rows have either time. So no
  time on that connection proves that every earlier commit was sent.

On one connection, timestamps never decrease. The versions of a run never decrease, not even across
connections. Nothing that was rolled back is ever seen, and a finished run stays finished.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlencode

import uvloop

from brain.contract.close_codes import GAP
from tests.support import wire
from tests.support.wire import CLOSE, PONG, _decoded, frame, request

Row: TypeAlias = dict[str, Any]
"""The `data` of a message."""

FINAL = ("completed", "failed")
GHOST = "ROLLED BACK"
"""The `error` of every row that is written and then rolled back."""

MARGIN = 2.0
"""Seconds by which a commit's time may differ from its place in the order of commits, at most."""

RELOAD = GAP.code


@dataclass(frozen=True)
class Kind:
    name: str
    first: Literal["plain", "snapshot"] = "plain"
    returns: Literal["since", "fresh"] = "since"
    reloads: Literal["snapshot", "api"] = "snapshot"
    """How it reloads after 4410."""
    slow: bool = False
    filter: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def wants(self, row: Row) -> bool:
        return all(
            row.get("id" if name == "run_id" else name) in values
            for name, values in self.filter.items()
        )


KINDS = (
    Kind("plain", reloads="api"),
    Kind("snapshot", first="snapshot"),
    Kind("one agent", reloads="api", filter={"agent": ("agent-1",)}),
    Kind("what runs", first="snapshot", filter={"status": ("running",)}),
    Kind(
        "ends of two tasks",
        reloads="api",
        filter={"task_id": ("task-1", "task-2"), "status": FINAL},
    ),
    Kind(
        "some runs", first="snapshot", filter={"run_id": tuple(f"run-{i}" for i in range(1, 100))}
    ),
    Kind("forgetful, snapshot", first="snapshot", returns="fresh"),
    Kind("forgetful", returns="fresh"),
    Kind("slow", first="snapshot", slow=True),
    Kind("slow, two agents", reloads="api", slow=True, filter={"agent": ("agent-2", "agent-3")}),
)


class Ended(NamedTuple):
    """A connection of a witness that starts fresh: what it was entitled to, and the runs that it
    saw finish.
    """

    since: float
    until: float
    finals: frozenset[str]


class Witness(asyncio.Protocol):
    def __init__(self, kind: Kind, port: int, dice: random.Random) -> None:
        self.kind = kind
        self.name = kind.name
        self.messages = self.sessions = self.reloads = self.older_than_get = 0
        self.gaps: list[tuple[float, float]] = []
        """When it was told 4410, and the timestamp that it had: 0 if none."""
        self.faults: list[str] = []
        self.ended: list[Ended] = []
        self._port = port
        self._dice = dice
        self._reset()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        self._away = 0.0
        self._code = 0
        self.awake = False
        """Nothing more is written, so slow witnesses read on."""
        self.present = False
        """Connected, upgraded, and Brain has been ready since."""
        self.heard = 0.0

    def _reset(self) -> None:
        self.known: dict[str, Row] = {}
        self.everything = False
        """It is entitled to every run."""
        self.unfinished = False
        """It is entitled to every unfinished run."""
        self.since = float("inf")
        """It is entitled to everything committed after this time."""
        self._stamp = self._stamp_before = ""
        self._from_api: set[str] = set()

    # Connections

    async def run(self) -> None:
        failures = 0
        while True:
            failures += 1
            with contextlib.suppress(OSError, TimeoutError, ValueError, HTTPException):
                if await self._session():
                    failures = 0
            if self._away:
                await asyncio.sleep(self._away)
                self._away = 0.0
            else:
                await asyncio.sleep(self._dice.uniform(0, min(1.0, 0.1 * 2**failures)))

    async def _session(self) -> bool:
        """From one connection to its loss. Returns whether Brain was ready on it."""
        loop = asyncio.get_running_loop()
        query: list[tuple[str, str]] = [
            (n, value) for n, values in self.kind.filter.items() for value in values
        ]
        if self.kind.returns == "fresh" and self.sessions:
            self._forget()
        if self._code == RELOAD:
            self.reloads += 1
            self.gaps.append((time.time(), _seconds(self._stamp) if self._stamp else 0.0))
            self._reset()
            if self.kind.reloads == "api":
                await self._reload(query)
            self._code = 0
        if self._stamp:
            query.append(("since", self._stamp))
        else:
            self._reset()
            if self.kind.first == "snapshot" or (self.reloads and self.kind.reloads == "snapshot"):
                query.append(("snapshot", "true"))
                self.unfinished = True
        self._buffer, self._upgraded, self._last = b"", False, ""
        self._gone = asyncio.Event()
        sock = socket.socket()
        if self.kind.slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        try:
            await asyncio.wait_for(loop.sock_connect(sock, ("127.0.0.1", self._port)), 5)
        except BaseException:
            sock.close()
            raise
        self._transport, _ = await loop.create_connection(lambda: self, sock=sock)
        self._transport.write(request(f"/ws?{urlencode(query)}"))
        presence = asyncio.create_task(self._become_present())
        naps = asyncio.create_task(self._nap()) if self.kind.slow else None
        try:
            await self._gone.wait()
            return self.present
        finally:
            self.present = False
            presence.cancel()
            if naps is not None:
                naps.cancel()
            self._transport.abort()
            self._transport = None

    def _forget(self) -> None:
        if self._stamp_before and self.since < float("inf"):
            finals = frozenset(i for i, row in self.known.items() if row["status"] in FINAL)
            self.ended.append(Ended(self.since, _seconds(self._stamp_before), finals))
        self._reset()

    async def _become_present(self) -> None:
        while not self._upgraded:
            await asyncio.sleep(0.02)
        while not await asyncio.to_thread(self._ready):
            await asyncio.sleep(0.2)
        if self.since == float("inf"):
            self.since = time.time()
        self.present = True

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, HTTPException), self._get("/readyz") as answer:
            return bool(answer.status == 200)
        return False

    def _get(self, path: str) -> Any:
        return urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10)

    async def _reload(self, query: list[tuple[str, str]]) -> None:
        """GET /api/runs, page by page. The timestamp of the first page is the next `since`."""

        def pages() -> str:
            stamp, cursor = "", ""
            while True:
                more = [("cursor", cursor)] if cursor else []
                with self._get(
                    f"/api/runs?{urlencode([*query, ('limit', '1000'), *more])}"
                ) as answer:
                    page = json.load(answer)
                stamp = stamp or page["timestamp"] or ""
                self.known.update((row["id"], row) for row in page["runs"])
                cursor = page["next_cursor"]
                if not cursor:
                    return stamp

        self._stamp = await asyncio.to_thread(pages)
        if not self._stamp:
            raise ValueError("Brain has not read the database yet")
        self._from_api = set(self.known)
        self.everything = True

    async def _nap(self) -> None:
        while not self.awake:
            await asyncio.sleep(self._dice.uniform(0.05, 1))
            if self._transport is not None:
                self._transport.pause_reading()
                until = time.monotonic() + self._dice.uniform(1, 4)
                while time.monotonic() < until and not self.awake:
                    await asyncio.sleep(0.05)
                self._transport.resume_reading()

    def cut(self, how: str, away: float) -> None:
        """Lose the connection: by RST, by FIN, or by a close frame."""
        self._away = away
        if self._transport is None or self._transport.is_closing():
            return  # the other side closed first
        match how:
            case "rst":
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            case "fin":
                self._transport.close()
            case _:
                self._transport.write(frame(struct.pack("!H", 1000), CLOSE))

    # Messages

    def connection_lost(self, _: Exception | None) -> None:
        self._gone.set()

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        buffer = self._buffer + data
        at = 0
        if not self._upgraded:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = buffer
                return
            if not buffer.startswith(b"HTTP/1.1 101 "):
                self._gone.set()
                return
            self._upgraded, at = True, end + 4
            self.sessions += 1
        while len(buffer) >= at + 2:
            size, start = buffer[at + 1], at + 2
            if size == 126:
                start = at + 4
                size = int.from_bytes(buffer[at + 2 : start])
            elif size == 127:
                start = at + 10
                size = int.from_bytes(buffer[at + 2 : start])
            if len(buffer) < start + size:
                break
            self._frame(buffer[at] & 0x0F, buffer[start : start + size])
            at = start + size
        self._buffer = buffer[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        assert self._transport is not None
        match opcode:
            case wire.TEXT:
                self._message(payload)
            case wire.PING:
                self._transport.write(frame(payload, PONG))
            case wire.CLOSE:
                self._code = int.from_bytes(payload[:2])
                self._transport.write(frame(payload, CLOSE))
                self._transport.close()
            case _:
                self._fault(f"a frame of opcode {opcode}")

    def _message(self, payload: bytes) -> None:
        message = _decoded(payload)
        row, stamp = message["data"], message["timestamp"]
        run_id: str = row["id"]
        self.messages += 1
        if stamp < self._last:
            self._fault(f"{run_id}: a message of {stamp} after one of {self._last}")
        if stamp != self._stamp:
            self._stamp_before, self._stamp = self._stamp, stamp
        self._last = stamp
        if GHOST in row["error"]:
            self._fault(f"{run_id}: a rolled-back row was sent: {row}")
        before = self.known.get(run_id)
        self.known[run_id] = row
        if before is None:
            return
        if version(row) < version(before):
            if run_id in self._from_api:
                # GET answers the newer of board and table, and the stream may lag behind the table.
                self.older_than_get += 1
            else:
                self._fault(f"{run_id}: version {version(row)} after {version(before)}")
        elif before["status"] in FINAL and row["status"] != before["status"]:
            self._fault(f"{run_id}: {row['status']} after {before['status']}")
        self._from_api.discard(run_id)

    def _fault(self, text: str) -> None:
        if len(self.faults) < 5:
            self.faults.append(f"{self.name}: {text}")

    # The verdict

    def judged(self, truth: dict[str, tuple[Row, float]]) -> tuple[list[str], int]:
        """Where it differs from the truth, and how many final states it was entitled to."""
        wrong: list[str] = []
        finals = 0
        if not self.present:
            heard = time.monotonic() - self.heard
            wrong.append(
                f"not connected: connection {self.sessions}, last heard {heard:.1f} s ago,"
                f" holds {len(self.known)} runs"
            )
        for run_id, (row, committed) in truth.items():
            held, wanted = self.known.get(run_id), self.kind.wants(row)
            entitled = wanted and (
                self.everything
                or committed > self.since
                or (self.unfinished and row["status"] not in FINAL)
            )
            finals += entitled and row["status"] in FINAL
            if held is None:
                if entitled:
                    after = committed - self.since
                    wrong.append(
                        f"{run_id} is missing: {row}, committed {after:.3f} s after it joined"
                    )
            elif (wanted or self.kind.wants(held)) and held != row:
                wrong.append(f"{run_id} is {row}, not {held}")
        return [f"{self.name}: {text}" for text in wrong], finals

    def untold(self, truth: dict[str, tuple[Row, float]]) -> int:
        """Final states that ended connections had not received, committed before their last
        timestamp but one.
        """
        return sum(
            run_id not in ended.finals
            for ended in self.ended
            for run_id, (row, committed) in truth.items()
            if row["status"] in FINAL
            and self.kind.wants(row)
            and ended.since < committed < ended.until - MARGIN
        )


def version(row: Row) -> int:
    progress: float = row["progress"]
    return round(progress * 1000)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


@lru_cache(1)
def _truth(path: str) -> dict[str, tuple[Row, float]]:
    """Read once: 40 MB take a second, in which no witness reads from its connection."""
    return {row["id"]: (row, committed) for row, committed in json.loads(Path(path).read_text())}


def judge(witnesses: list[Witness], path: str) -> dict[str, Any]:
    truth = _truth(path)
    verdicts = [each.judged(truth) for each in witnesses]
    return {
        "clients": len(witnesses),
        "messages": sum(each.messages for each in witnesses),
        "sessions": sum(each.sessions for each in witnesses),
        "reloads": sum(each.reloads for each in witnesses),
        "gaps": [gap for each in witnesses for gap in each.gaps],
        "older_than_get": sum(each.older_than_get for each in witnesses),
        "untold": sum(each.untold(truth) for each in witnesses),
        "finals": sum(finals for _, finals in verdicts),
        "wrong": [text for wrong, _ in verdicts for text in wrong],
        "faults": [text for each in witnesses for text in each.faults],
    }


async def main(port: int, seed: str) -> None:
    witnesses = [Witness(kind, port, random.Random(f"{seed}/{kind.name}")) for kind in KINDS]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each.run()) for each in witnesses]
        while line := await reader.readline():
            command = json.loads(line)
            if "judge" in command:
                for each in witnesses:
                    each.awake = True
                print(json.dumps(judge(witnesses, command["judge"])), flush=True)
            elif "present" in command:
                print(json.dumps({"present": sum(each.present for each in witnesses)}), flush=True)
            else:
                witnesses[command["cut"] % len(witnesses)].cut(command["how"], command["away"])
        for task in running:
            task.cancel()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
