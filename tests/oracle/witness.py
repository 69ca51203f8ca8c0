"""Clients for the oracle: one process with one witness of each kind, who remembers what it was told, and is asked about it.

    python -m tests.oracle.witness PORT SEED       then one JSON document a line on standard input:
    {"cut": 3, "how": "rst", "away": 1.5}   the third loses its connection, and comes back after so many seconds
    {"present": true}                       a JSON document on standard output: how many of them are connected
    {"judge": "/path/of/the/truth.json"}    a JSON document on standard output: what they hold against what is so

What a witness is entitled to (docs/protocol.md):

- with `snapshot`: every run that is unfinished when it joins; without it, none;
- from the moment when it has joined a Brain that is ready: every change, as it was or superseded by a newer one. So when all
  is quiet it holds the very row that SELECT shows, of each run that changed since, and of each that it was ever told of;
- who comes back with `since` goes on as if it had not been away, or is refused by 4410: then it drops what it holds and begins
  anew, with GET /api/runs, which gives it everything, or with `snapshot`;
- who comes back without `since` begins anew. What its former connection had not been told when it ended is counted, and not judged: a
  commit that a query finds after an outage has the time of that query, and of a scan that is cut off and begun again some rows have
  the one time and some the other, so no time on that connection says that every commit before it was told.

On one connection timestamps never decrease. A run's versions never decrease, across connections either. What was
rolled back is never seen, and an end is final.
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

from tests.support import wire
from tests.support.wire import CLOSE, PONG, _decoded, frame, request

Row: TypeAlias = dict[str, Any]
"""The `data` of a message."""

FINAL = ("completed", "failed")
GHOST = "ROLLED BACK"
"""In the `error` of whatever is written to be rolled back."""

MARGIN = 2.0
"""Seconds by which a commit's own time may be off from its place in the order of commits, and then some."""

AGAIN = 4410


@dataclass(frozen=True)
class Kind:
    name: str
    first: Literal["plain", "snapshot"] = "plain"
    returns: Literal["since", "anew"] = "since"
    reloads: Literal["snapshot", "api"] = "snapshot"
    """Where it begins anew after 4410."""
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
    Kind("forgetful, snapshot", first="snapshot", returns="anew"),
    Kind("forgetful", returns="anew"),
    Kind("slow", first="snapshot", slow=True),
    Kind("slow, two agents", reloads="api", slow=True, filter={"agent": ("agent-2", "agent-3")}),
)


class Ended(NamedTuple):
    """A connection of one who forgets: what it was entitled to, and the ends that it was told."""

    since: float
    until: float
    finals: frozenset[str]


class Witness(asyncio.Protocol):
    def __init__(self, kind: Kind, port: int, dice: random.Random) -> None:
        self.kind = kind
        self.name = kind.name
        self.messages = self.sessions = self.reloads = self.older_than_get = 0
        self.faults: list[str] = []
        self.ended: list[Ended] = []
        self._port = port
        self._dice = dice
        self._begin_anew()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        self._away = 0.0
        self._code = 0
        self.awake = False
        """Nothing more is written, and who is slow may read at last."""
        self.present = False
        """Connected, upgraded, and Brain was ready since."""
        self.heard = 0.0

    def _begin_anew(self) -> None:
        self.known: dict[str, Row] = {}
        self.everything = False
        """It is entitled to every run that there is."""
        self.unfinished = False
        """And this, to every unfinished one."""
        self.since = float("inf")
        """And to whatever was committed after this moment."""
        self._stamp = self._stamp_before = ""
        self._from_api: set[str] = set()

    # Coming and going.

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
        """From one connection to its loss. Returns whether it was a good one."""
        loop = asyncio.get_running_loop()
        query: list[tuple[str, str]] = [
            (n, value) for n, values in self.kind.filter.items() for value in values
        ]
        if self.kind.returns == "anew" and self.sessions:
            self._forget()
        if self._code == AGAIN:
            self.reloads += 1
            self._begin_anew()
            if self.kind.reloads == "api":
                await self._reload(query)
            self._code = 0
        if self._stamp:
            query.append(("since", self._stamp))
        else:
            self._begin_anew()
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
        self._begin_anew()

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
        """GET /api/runs, page by page; the first page's timestamp is where to go on from."""

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
            return  # the other side was first
        match how:
            case "rst":
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            case "fin":
                self._transport.close()
            case _:
                self._transport.write(frame(struct.pack("!H", 1000), CLOSE))

    # What it is told.

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
            self._fault(f"{run_id}: a message of {stamp} behind one of {self._last}")
        if stamp != self._stamp:
            self._stamp_before, self._stamp = self._stamp, stamp
        self._last = stamp
        if GHOST in row["error"]:
            self._fault(f"{run_id}: what was rolled back was told: {row}")
        before = self.known.get(run_id)
        self.known[run_id] = row
        if before is None:
            return
        if version(row) < version(before):
            if run_id in self._from_api:
                self.older_than_get += (
                    1  # GET answers the later of board and table; the stream is behind it
                )
            else:
                self._fault(f"{run_id}: version {version(row)} behind {version(before)}")
        elif before["status"] in FINAL and row["status"] != before["status"]:
            self._fault(f"{run_id}: {row['status']} behind {before['status']}")
        self._from_api.discard(run_id)

    def _fault(self, text: str) -> None:
        if len(self.faults) < 5:
            self.faults.append(f"{self.name}: {text}")

    # What it says when it is asked.

    def judged(self, truth: dict[str, tuple[Row, float]]) -> tuple[list[str], int]:
        """What it holds against what is so: the differences, and how many final states it was entitled to."""
        wrong: list[str] = []
        finals = 0
        if not self.present:
            heard = time.monotonic() - self.heard
            wrong.append(
                f"it is not connected; connection {self.sessions}, last heard {heard:.1f} s ago, holds {len(self.known)} runs"
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
                    wrong.append(
                        f"{run_id} is missing: {row}, committed {committed - self.since:.3f} s after it came"
                    )
            elif (wanted or self.kind.wants(held)) and held != row:
                wrong.append(f"{run_id} is {row}, not {held}")
        return [f"{self.name}: {text}" for text in wrong], finals

    def untold(self, truth: dict[str, tuple[Row, float]]) -> int:
        """Ends that former connections had not been told, of those before the last time but one."""
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
    """Read once: 40 MB of it take a second, in which nobody here reads what Brain sends."""
    return {row["id"]: (row, committed) for row, committed in json.loads(Path(path).read_text())}


def judge(witnesses: list[Witness], path: str) -> dict[str, Any]:
    truth = _truth(path)
    verdicts = [each.judged(truth) for each in witnesses]
    return {
        "clients": len(witnesses),
        "messages": sum(each.messages for each in witnesses),
        "sessions": sum(each.sessions for each in witnesses),
        "reloads": sum(each.reloads for each in witnesses),
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
