"""What is right in the simulated world (world.py).

Every message is judged when it arrives: order, time, no duplicate, no run that goes back. When the
world is at rest, so is everything that a consumer received: its view must be the table, and a
client that never lagged must have received every change of status.
"""

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brain.contract.close_codes import TRY_AGAIN_LATER
from brain.contract.messages import ACTIVE, STATUS, TYPES, Run, body, parse_time
from brain.delivery.catch_up import BUDGET

if TYPE_CHECKING:
    from tests.unit.delivery.consumers import Connection, Consumer
    from tests.unit.delivery.world import World

FINISHED = ("completed", "failed")


class Violation(AssertionError):  # noqa: N818 - the verdict on a history, not an error of the program
    """A rule of the contract is broken."""


def shown(run: Run) -> Any:
    """The run as a message shows it."""
    return json.loads(body(run))


def message(world: "World", connection: "Connection", payload: bytes) -> Any:
    """Parse and judge one message."""
    found = world.parsed.get(payload)
    if found is None:
        found = world.parsed[payload] = json.loads(payload)
    if found["timestamp"] < connection.time:
        raise Violation(f"time goes back from {connection.time}: {found}")
    connection.time = found["timestamp"]
    if found["type"] in ("ready", "source"):
        report(connection, found["type"])
        return found
    run = found["data"]
    seq = found["seq"]
    if seq <= connection.reached:
        raise Violation(f"sent twice, or out of order: {found}")
    if connection.ready and seq <= connection.asked_for:
        raise Violation(f"sent behind `ready`, up to {connection.asked_for}: {found}")
    connection.reached = seq
    connection.received.add(seq)
    if found["type"] == "run_deleted":
        if not connection.consumer.told or seq <= connection.snapshot_seq:
            raise Violation(f"a delete was sent to who does not need it: {found}")
        return found
    run_id, version = run["id"], run["progress"]
    if found["type"] != TYPES[run["status"]]:
        raise Violation(f"type and status disagree: {found}")
    if version < connection.versions.get(run_id, 0):
        raise Violation(f"{run_id} goes back from {connection.versions[run_id]}: {found}")
    if seq <= connection.snapshot_seq and run["status"] in FINISHED:
        raise Violation(f"a finished run was sent for `snapshot`: {found}")
    connection.versions[run_id] = version
    return found


def report(connection: "Connection", kind: str) -> None:
    if kind not in connection.consumer.include:
        raise Violation(f"{kind} was sent to who did not ask for it")
    connection.ready += kind == "ready"
    connection.sources += kind == "source"
    if connection.ready > 1:
        raise Violation("`ready` was sent twice")


def pace(world: "World", before: float) -> None:
    """The hub holds the loop no longer than half a budget and the writes to a group."""
    # A client that has caught up is sent `ready` and `source` besides its piece.
    most = 0.5 * BUDGET + (world.max_group + 3) * world.cost
    lanes = world.hub._lanes.all
    if any(lane.group and len(lane.group.live) > world.max_group for lane in lanes):
        world.wrong.append("a group has too many clients")
    ready = world.hub._catch_up._ready
    if len(ready) > len(set(ready)):
        world.wrong.append("a client waits twice for its catch-up")
    if world.now - before > most + 1e-9:
        world.wrong.append(
            f"the loop was held for {world.now - before:.3f} s, more than {most:.3f}"
        )


class Pacing:
    """When flushes go (pace.py), computed once more from what can be seen of a hub."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.mean = 0.0
        self.began = float("-inf")
        self.flushes = self.taken = 0
        self.rotating = False
        self.ended: list[float] = []
        """When the flushes began whose rotations have ended in this turn."""
        rotation, pending = world.hub._rotation, world.hub._pending
        begin = rotation.begin

        def beginning() -> None:
            if rotation.under_way:
                world.wrong.append("a rotation began before the last one had ended")
            self.taken = pending.bytes
            begin()

        rotation.begin = beginning

    @property
    def gap(self) -> float:
        return min(self.world.interval, max(0.001, self.mean))

    def worked(self, began: float) -> None:
        """The hub has worked from then on."""
        hub = self.world.hub
        if hub.counts.flushes != self.flushes:
            early = self.began + self.gap - began
            if early > 0.0005 + 1e-9 and self.taken < self.world.max_batch:
                self.world.wrong.append(f"a flush went {early:.4f} s too early")
            self.flushes, self.began, self.rotating = hub.counts.flushes, began, True
        if self.rotating and not hub._rotation.under_way:
            self.rotating = False
            self.ended.append(self.began)

    def turn(self) -> None:
        """The loop has sent what was written in this turn."""
        for began in self.ended:
            cost = min(self.world.now - began, max(2 * self.mean, 0.001))
            self.mean = 0.8 * self.mean + 0.2 * cost
        self.ended.clear()

    def rests(self) -> None:
        """What is pending has a timer."""
        world = self.world
        if not world.hub.pending_bytes or world.hub._rotation.under_way:
            return
        at_once = world.hub._pending.bytes >= world.max_batch or world.hub._lanes.shared.behind
        due = world.now if at_once else max(world.now, self.began + self.gap)
        set_to = min((at for at, _, timer in world.timers if timer.callback), default=None)
        if set_to is None or set_to > due + 1e-9:
            world.wrong.append(f"changes are due at {due:.4f}, and the timer at {set_to}")


def write(world: "World", connection: "Connection", data: bytes) -> None:
    sent = seqs(data)
    world.sent.update(sent)
    live = connection.seq is None and connection.never_full
    if live and connection.fresh and sent and sent[0] <= connection.joined:
        world.wrong.append(f"seq {sent[0]} was sent to who joined at {connection.joined}")
    if connection.full:
        world.wrong.append("a full transport was sent something")
    most = max(world.max_batch, world.max_piece)
    size = (
        data[1] if data[1] < 126 else int.from_bytes(data[2 : 4 if data[1] == 126 else 10], "big")
    )
    if len(data) > max(most, size + 10):
        world.wrong.append(f"{len(data)} bytes in one write")


@lru_cache(1024)
def seqs(data: bytes) -> tuple[int, ...]:
    """Of the messages in these bytes."""
    return tuple(map(int, re.findall(rb'{"seq":(\d+)', data)))


def refusal(world: "World", connection: "Connection", code: int) -> None:
    if world.resetting:
        return
    if code == TRY_AGAIN_LATER.code:
        if world.board.begun:
            world.wrong.append("closed with 1013, but the database has been read")
    elif world.asked is not None:
        lost = max(world.lost_time, world.dead_time if connection.consumer.told else 0)
        if parse_time(world.asked) > lost:
            world.wrong.append(f"refused, but nothing since {world.asked} is lost")
    elif connection.consumer.told and world.dead_seq > connection.joined:
        pass
    elif world.lost_seq <= max(connection.seq or 0, connection.until):
        world.wrong.append(
            f"refused at {connection.seq} (until {connection.until}),"
            f" but everything after {world.lost_seq} is held"
        )


def live(world: "World", connection: "Connection", *, complete: bool) -> None:
    """A client that never lagged received every change that concerns it, less conflated progress.

    `complete`: the world is at rest, so the last change has arrived, too.
    """
    if connection.live_since is None or not connection.never_full or connection.broken:
        return
    wanted, due = connection.consumer.wanted, dict[str, bool]()
    lenient = set[str]()
    """Runs of which a change is pending that the board may send to more clients than necessary."""
    for run_id, seq, was, now, steady, loose in world.pushed:
        if connection.lane_seq < seq <= connection.live_since:
            lenient.add(run_id)  # its group may lack it; what replaces it was what it was
        if seq <= connection.live_since or (seq > connection.reached and not complete):
            continue
        if due.get(run_id) and not steady:
            became = "deleted" if now is None else now[STATUS]
            raise Violation(f"no change before {run_id} became {became} (seq {seq}) was sent")
        if now is None and (not connection.consumer.told or seq <= connection.joined):
            continue  # what was deleted before it joined is not on its way if nobody was told
        concerned = due.get(run_id, False) or wanted(was) or wanted(now)
        received = seq in connection.received
        if not steady:
            lenient.discard(run_id)
        if loose:
            lenient.add(run_id)
        if received:
            if not concerned and run_id not in lenient:
                raise Violation(f"{now} does not concern {wanted}")
            lenient.discard(run_id)
        due[run_id] = concerned and not received
    if complete and any(due.values()):
        raise Violation(f"a live client was not sent the last change of {due}")
    if not connection.received <= {push.seq for push in world.pushed}:
        raise Violation("a live client was sent something that was not pushed")


def view(world: "World", consumer: "Consumer") -> None:
    if consumer.told:
        for run_id in consumer.view.keys() - world.table.keys() - world.untold:
            # A run that was finished, evicted, and opened again unseen counts as another.
            if consumer.heard[run_id] >= world.born.get(run_id, 0):
                raise Violation(f"{consumer.wanted} still holds {run_id}, which was deleted")
    for run_id, run in world.table.items():
        concerned = (
            consumer.loaded
            or run_id in consumer.view
            or run_id in consumer.owed
            or world.pushed_at.get(run_id, 0) > consumer.start
        )
        if not concerned:
            continue
        seen = consumer.view.get(run_id)
        if consumer.wanted(run):
            if seen != shown(run):
                raise Violation(f"{consumer.wanted} holds {seen}, but it is {shown(run)}")
        elif seen is not None and consumer.heard[run_id] >= world.born.get(run_id, 0):
            raise Violation(f"{consumer.wanted} still holds {seen}, but it is {shown(run)}")


def rest(world: "World") -> None:
    """Everything has been delivered."""
    hub = world.hub
    unsent = sum(push.seq not in world.sent for push in world.pushed)
    if hub.counts.conflated > unsent:
        raise Violation(f"{hub.counts.conflated} conflated, but {unsent} were sent to nobody")
    if hub.lagging or hub.clients != len(world.connections):
        raise Violation(
            f"{hub.lagging} of {hub.clients} lag, and there are {len(world.connections)}"
        )
    for consumer in world.consumers:
        assert consumer.connection is not None
        connection = consumer.connection
        if consumer.told and world.dead_seq > connection.joined:
            raise Violation("a client was not told that deletes are unknown")
        for kind, count in (("ready", connection.ready), ("source", connection.sources)):
            if kind in consumer.include and not count:
                raise Violation(f"a client was not sent {kind}")
        live(world, connection, complete=True)
        view(world, consumer)


def newcomers(
    world: "World", snapshot: "Consumer", since: "Consumer", moment: int, *, refused: bool
) -> None:
    """At rest: what `snapshot` and `since=moment` gave to two consumers with the same filter."""
    wanted = snapshot.wanted
    active = {
        run_id: shown(run)
        for run_id, run in world.table.items()
        if run[STATUS] in ACTIVE and wanted(run)
    }
    found = {run_id: run for run_id, run in snapshot.view.items() if run["status"] in ACTIVE}
    if found != active:
        raise Violation(f"snapshot gave {snapshot.view}, but unfinished are {active}")
    if not refused:
        for run_id, run in world.table.items():
            due = run_id in world.held and world.held[run_id][1] >= moment and wanted(run)
            if due and since.view.get(run_id) != shown(run):
                raise Violation(f"since {moment} gave {since.view}, without {shown(run)}")
