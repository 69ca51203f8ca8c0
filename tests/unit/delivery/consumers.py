"""The clients of the simulated world (world.py): programs with a filter, and their connections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brain.contract.close_codes import GAP
from brain.contract.include import Included
from brain.contract.messages import ID, Run, iso, parse_time
from brain.contract.subscription import Filter, Subscription
from brain.delivery.cohorts import Client
from tests.unit.delivery import judge

if TYPE_CHECKING:
    from tests.unit.delivery.world import World


@dataclass(frozen=True)
class Criteria:
    """A filter as protocol.md states it, written independently of contract/subscription.py."""

    run_id: frozenset[str] = frozenset()
    task_id: frozenset[str | None] = frozenset()
    agent: frozenset[str | None] = frozenset()
    status: frozenset[str] = frozenset()

    def __call__(self, run: Run | None) -> bool:
        if run is None:
            return False
        run_id, status, _, task_id, agent, *_ = run
        return all(
            not values or value in values
            for values, value in (
                (self.run_id, run_id),
                (self.status, status),
                (self.agent, agent),
                (self.task_id, task_id),
            )
        )


class Connection(Client):
    """The hub's client, on a transport that behaves like uvloop's (0.23, handles/stream.pyx).

    `write` buffers. It sends at once only if the buffer exceeds the high-water mark and nothing is
    queued; what is buffered is sent when the callback ends. The transport pauses from inside
    `write` and resumes from outside.
    """

    write: Callable[[bytes], object]

    def __init__(self, world: "World", consumer: "Consumer") -> None:
        self.world = world
        self.consumer = consumer
        self.number = next(world.numbers)
        self.kernel = world.random.choice((100, 300, 1000, 4000, 10**6))
        """Bytes that the socket buffers hold."""
        self.high = world.random.choice((0, 150, 400, 1200, 5000))
        self.write = self.buffer
        self.stream = bytearray()
        """The bytes written, less those parsed. `queued` of them have left the buffer, `sent` are
        in the kernel, `read` have arrived."""
        self.queued = self.sent = self.read = 0
        self.full = False
        self.broken = False
        self.code: int | None = None
        self.closed = False
        self.never_full = True
        self.snapshot_seq = 0
        """It joined with `snapshot` at this seq of the board."""
        self.live_since: int | None = None
        """It was live at once, and is owed everything after this seq."""
        self.lane_seq = 0
        """Where its group stood then. It may receive what came in between."""
        self.fresh = False
        """Its group was opened when it joined, so nothing from before is on its way."""
        self.reached = 0
        self.received: set[int] = set()
        self.joined = world.board.seq
        self.asked_for = 0
        """`ready` comes behind everything up to this seq."""
        self.ready = self.sources = 0
        """Messages of these types."""
        self.time = ""
        self.versions: dict[str, float] = {}

    def __hash__(self) -> int:
        """So that sets of connections have the same order each time a history is replayed."""
        return self.number

    def buffer(self, data: bytes) -> None:
        self.world.now += self.world.cost
        self.world.writes += 1
        if self.broken:
            raise RuntimeError(
                "unable to perform operation on a closed transport; the handler is closed"
            )
        if data[0] == 0x81:
            judge.write(self.world, self, data)
        self.stream += data
        if (
            not self.full
            and self.sent == self.queued
            and len(self.stream) - self.queued > self.high
        ):
            self.send()
        if not self.full and len(self.stream) - self.sent > self.high:
            self.full = True
            self.never_full = False
            self.world.hub.pause(self)

    def send(self) -> None:
        self.queued = len(self.stream)
        self.sent = max(self.sent, min(len(self.stream), self.read + self.kernel))

    def turn(self) -> None:
        """The loop's turn ends, or the socket has become writable."""
        if not self.closed:
            self.send()
            if self.full and len(self.stream) - self.sent <= self.high // 4:
                self.full = False
                self.world.hub.resume(self)

    def end(self, code: int, _reason: str) -> None:
        judge.refusal(self.world, self, code)
        self.code = code
        self.close()

    def drop(self, _error: Exception) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self.write = lambda _: None
        self.world.hub.leave(self)


class Consumer:
    """A user's program: it connects, and keeps every run that passes its filter."""

    def __init__(self, world: "World", wanted: Criteria, include: Included) -> None:
        self.world = world
        self.wanted = wanted
        self.include = include
        self.told = "deleted" in include
        self.connection: Connection | None = None
        self.reading = True
        self.refused = False
        self.snapshot = False
        self.reset()

    def reset(self) -> None:
        self.view: dict[str, Any] = {}
        self.heard: dict[str, int] = {}
        """Run id → the seq of the last message about it, or of the board when it was loaded."""
        self.last: str | None = None
        """The timestamp of the last message."""
        self.loaded = False
        """It has loaded the table, so from then on every run concerns it."""
        self.start = 0
        self.owed: set[str] = set()
        """The unfinished runs when it joined with `snapshot`."""

    def restarted(self) -> None:
        """Another Brain begins, which counts from 0.

        What is heard before it was born was another run to the last one, and is to this one, too.
        """
        born = self.world.born
        self.heard = {
            run_id: 0 if seq >= born.get(run_id, 0) else -1 for run_id, seq in self.heard.items()
        }
        self.start = 0

    def connect(self, since: str | None = None, how: str | None = None) -> None:
        """Resume from the last timestamp. Without one: plainly, with `snapshot`, or load the
        table.
        """
        world, hub = self.world, self.world.hub
        since = since or self.last
        snapshot = False
        if since is None or self.refused:
            since = None
            how = (
                "load"
                if self.refused
                else how or world.random.choice(("load", "snapshot", "plain"))
            )
            load, snapshot = how == "load", how == "snapshot"
            if load and (
                not world.board.begun or (self.wanted != Criteria() and not world.followed)
            ):
                return  # later: the table has changes that the board has not received
            self.reset()
            self.start = world.board.seq
            self.loaded = load
            if load:
                for run in world.table.values():
                    world.board.show(run, world.board.seq)  # as GET /api/runs does
                self.view = {
                    run[ID]: judge.shown(run) for run in world.table.values() if self.wanted(run)
                }
                self.heard = dict.fromkeys(self.view, world.board.seq)
            if snapshot and world.board.begun:
                self.owed = world.active_runs()
        self.refused = False
        self.snapshot = snapshot
        self.reading = True
        self.connection = connection = Connection(world, self)
        if since is None and not snapshot:
            connection.live_since = world.board.seq
        elif world.board.begun:
            connection.asked_for = world.board.seq
        if snapshot:
            connection.snapshot_seq = world.board.seq
        world.connections.append(connection)
        world.asked = since
        filter_ = Filter(**vars(self.wanted))
        moment = None if since is None else parse_time(since)
        hub.join(connection, Subscription(filter_, snapshot, moment, self.include))
        if connection.live_since is not None and connection.group is not None:
            connection.lane_seq = connection.group.position
            connection.fresh = connection.group.opened == hub._pending.end
        elif self.told:
            connection.live_since = None  # it waits for what is pending, and is not sent it
        world.asked = None
        lost = max(world.lost_time, world.dead_time if self.told else 0)
        if moment is not None and not connection.closed and moment <= lost:
            world.wrong.append(f"since {since} was answered, but a change at {iso(lost)} is lost")

    def read(self, limit: int) -> None:
        """Read up to `limit` bytes, and act on the messages that are complete."""
        connection = self.connection
        assert connection is not None
        connection.read = min(connection.sent, connection.read + limit)
        stream = connection.stream
        while len(stream) >= 2:
            head, size = 2, stream[1]
            if size == 126:
                head, size = 4, int.from_bytes(stream[2:4], "big")
            elif size == 127:
                head, size = 10, int.from_bytes(stream[2:10], "big")
            length = head + size
            if length > connection.read:
                return
            frame = bytes(stream[:length])
            del stream[:length]
            connection.read -= length
            connection.sent -= length
            connection.queued -= length
            if frame[0] == 0x81:
                self.receive(connection, frame[head:])

    def receive(self, connection: Connection, payload: bytes) -> None:
        message = judge.message(self.world, connection, payload)
        self.last = message["timestamp"]
        if message["type"] in ("ready", "source"):
            return
        run_id, run = message["data"]["id"], message["data"]
        if message["type"] == "run_deleted":
            self.view.pop(run_id, None)
            return
        self.heard[run_id] = message["seq"]
        values = (
            run_id,
            run["status"],
            None,
            run.get("task_id"),
            run.get("agent"),
            None,
            None,
            None,
        )
        if self.wanted(values):
            self.view[run_id] = run
        else:
            self.view.pop(run_id, None)

    def disconnect(self) -> None:
        """Lose the connection. Some of the bytes under way still arrive."""
        connection = self.connection
        assert connection is not None
        under_way = connection.sent - connection.read
        self.read(
            self.world.random.choice((0, self.world.random.randint(0, under_way), connection.sent))
        )
        connection.close()
        judge.live(self.world, connection, complete=False)
        self.world.connections.remove(connection)
        self.refused = self.refused or connection.code == GAP.code
        self.connection = None
