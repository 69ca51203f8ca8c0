"""`ready` and `source`: when they are sent, to whom, and with which time (I1, I2)."""

from typing import Any

import pytest

from brain.contract.close_codes import GAP
from brain.contract.events import Snapshot
from brain.contract.include import Included, SourceName, SourceReport, source_message
from brain.contract.messages import PING, Micros, iso, parse_time
from brain.contract.subscription import Filter, Subscription
from brain.delivery import source_messages
from brain.delivery.groups import GROUP
from brain.delivery.source_messages import EVERY, STRIDE, TICK
from tests.unit.delivery.runs import PLENTY, T, run
from tests.unit.delivery.test_hub import Reader, Room

READY: Included = frozenset(("ready",))
SOURCE: Included = frozenset(("source",))
BOTH = READY | SOURCE


class TimedRoom(Room):
    """A room whose timers fire in the order of time, and whose source the test sets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.source: SourceName = "replication"
        self.lag = 0.25
        super().__init__(
            *args, report=lambda: SourceReport(self.source, None, "", self.lag), **options
        )

    def rest_of_rotation(self) -> None:
        while not self.hub.idle:
            self.hub.tick()

    def wait(self, seconds: float) -> None:
        """Let this time pass."""
        until = self.now + seconds
        while due := [each for each in self.timers if not each.cancelled and each.due <= until]:
            timer = min(due, key=lambda each: each.due)
            self.timers.remove(timer)
            self.now = max(self.now, timer.due)
            timer.callback()
        self.now = until


def kinds(reader: Reader) -> list[str]:
    return [each["type"] for each in reader.all]


def sources(reader: Reader) -> list[dict[str, Any]]:
    return [each["data"] for each in reader.all if each["type"] == "source"]


def times(reader: Reader) -> list[Micros]:
    return [parse_time(each["timestamp"]) for each in reader.all]


# ready


def test_ready_is_sent_once_behind_what_was_asked_for() -> None:
    room = TimedRoom(PLENTY, run("a"), run("b"))
    room.change(run("done", "completed"), at=T + 5)
    plain = room.join(Subscription(include=READY))
    assert plain.all == [{"type": "ready", "timestamp": iso(T + 5)}], "it has asked for nothing"
    snapshot = room.join(Subscription(snapshot=True, include=READY))
    since = room.join(Subscription(since=T + 5, include=READY))
    filtered = room.join(Subscription(Filter(run_id=frozenset("x")), True, include=READY))
    other = room.join(Subscription(snapshot=True))
    room.rest()
    room.now += 1
    room.change(run("a"), at=T + 9)
    room.rest()
    assert kinds(plain) == ["ready", "run_update"]
    assert kinds(snapshot) == ["run_update"] * 2 + ["ready", "run_update"]
    assert kinds(since) == ["run_complete", "ready", "run_update"]
    assert kinds(filtered) == ["ready"]
    assert "ready" not in kinds(other)
    assert [max(times(reader)[:-1]) for reader in (snapshot, since)] == [T + 5, T + 5]


def test_ready_is_not_earlier_than_since() -> None:
    """A list has the board's time, to which events without any news have moved it. So has a client
    that was served by a node whose newest entry was another one. Its own time may be later still.
    """
    room = TimedRoom(PLENTY, run("a"))
    room.hub.push(room.board.apply(Snapshot([], T + 50)))
    since = [T + 20, T + 50, T + 10**9]
    readers = [room.join(Subscription(since=each, include=BOTH)) for each in since]
    room.wait(0.1)
    assert [times(each) for each in readers] == [[T + 20] * 2, [T + 50] * 2, [T + 50] * 2]
    room.change(run("a"), at=T + 60)
    room.wait(0.1)
    assert [kinds(each)[-1] for each in readers] == ["run_update"] * 3
    room.wait(EVERY + 2 * TICK)
    assert {times(each)[-1] for each in readers} == {T + 60}


def test_ready_comes_while_a_client_is_still_behind_what_changed_since() -> None:
    room = TimedRoom(PLENTY, *(run(f"r{i:03}", error="x" * 1000) for i in range(150)))
    reader = room.join(Subscription(snapshot=True, include=READY))
    reader.full = True
    while "ready" not in kinds(reader):
        assert reader.paused is False or room.hub.lagging == 1
        room.now += 1
        room.change(run("new", error="x" * 60_000), run("r000"), at=T + 7)
        room.rest()
        if reader.paused:
            reader.drain()
            reader.full = True
        room.rest()
    ids = [each.get("data", {}).get("id") for each in reader.all]
    assert {f"r{i:03}" for i in range(1, 150)} <= set(ids[: ids.index(None)])
    assert room.board.seq > 150
    time = times(reader)[ids.index(None)]
    assert time <= min(times(reader)[ids.index(None) :])
    assert room.board.since(time) is not None


def test_a_client_that_waits_for_the_first_snapshot_is_ready_behind_it() -> None:
    room = TimedRoom(begun=False)
    reader = room.join(Subscription(snapshot=True, include=BOTH))
    assert kinds(reader) == ["source"], "at once"
    assert times(reader) == [0]
    room.lag = float("inf")
    room.source = "none"
    room.wait(TICK + 0.01)
    assert sources(reader)[-1] == {"source": "none", "lag_seconds": None}
    room.hub.push(room.board.apply(Snapshot([run("a")], T)))
    room.wait(TICK)
    assert kinds(reader) == ["source", "source", "run_update", "ready", "source"]
    assert room.join(Subscription(since=0, include=BOTH)).closed == GAP.code


def test_ready_is_not_sent_to_a_full_transport() -> None:
    room = TimedRoom(PLENTY, run("a"))
    reader = room.join(Subscription(snapshot=True, include=BOTH))
    reader.full = True
    room.wait(1)
    assert kinds(reader) == ["run_update"]
    reader.drain()
    room.wait(0.1)
    assert kinds(reader) == ["run_update", "ready", "source"]


# source


def test_source_is_not_sent_to_a_full_transport() -> None:
    """Before the first Snapshot, clients that are not live are told, too."""
    room = TimedRoom(begun=False)
    reader, full = (room.join(Subscription(snapshot=True, include=SOURCE)) for _ in range(2))
    room.hub.pause(full)
    room.source = "none"
    room.wait(TICK + 0.01)
    assert (len(sources(reader)), len(sources(full))) == (2, 1)


def test_source_is_sent_at_once_and_every_five_seconds() -> None:
    room = TimedRoom(PLENTY, run("a"))
    readers = [room.join(Subscription(include=BOTH)) for _ in range(3)]
    other = room.join()
    assert all(kinds(reader) == ["ready", "source"] for reader in readers)
    room.lag = 0.5
    room.wait(3 * EVERY + 2 * TICK)
    for reader in readers:
        assert [each["lag_seconds"] for each in sources(reader)] == [0.25, 0.5, 0.5, 0.5]
        assert set(times(reader)) == {T}
    assert other.all == []


def test_a_frame_is_made_once_for_all_clients_of_a_turn() -> None:
    room = TimedRoom()
    readers = [room.join(Subscription(include=SOURCE)) for _ in range(3000)]
    for reader in readers:
        reader.writes.clear()
    room.wait(TICK)
    frames = [data for reader in readers for data in reader.writes]
    assert len({len(data) for data in frames}) == 1
    assert len(frames) in (29, 30), "a hundredth of the clients"
    assert len({id(data) for data in frames}) == 1
    room.wait(EVERY)
    assert {len(reader.writes) for reader in readers} <= {1, 2}


def test_a_message_about_the_source_takes_one_ping_along() -> None:
    """Until the round of pings has passed: then the next one is due."""
    room = TimedRoom()
    told, other = room.join(Subscription(include=SOURCE)), room.join()
    room.wait(2 * EVERY + 2 * TICK)
    assert (len(sources(told)), told.pings, told.pinged) == (3, 1, True)
    assert told.writes[1].endswith(PING)
    told.pinged = False
    room.wait(2 * EVERY + 2 * TICK)
    assert (len(sources(told)), told.pings, told.pinged) == (5, 2, True)
    assert (other.writes, other.pinged) == ([], False)


def test_a_client_that_is_not_told_is_not_pinged() -> None:
    room = TimedRoom(PLENTY, run("r"))
    lags, gone = (room.join(Subscription(include=SOURCE)) for _ in range(2))
    lags.full = True
    room.change(run("r"), at=T + 5)
    room.hub.leave(gone)
    room.wait(3 * EVERY)
    assert (lags.pings, lags.pinged) == (0, False)
    assert gone.pings == 0
    assert list(room.hub._source_messages._round) == [lags]


def test_a_late_turn_is_not_followed_by_one_for_the_few_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A timer is always a little late, so a hundredth of the clients is always exceeded."""
    monkeypatch.setattr(source_messages, "STRIDE", 10)
    made: list[bytes] = []

    def counted(report: SourceReport, time: Micros) -> bytes:
        made.append(source_message(report, time))
        return made[-1]

    room = TimedRoom()
    readers = [room.join(Subscription(include=SOURCE)) for _ in range(1000)]
    monkeypatch.setattr(source_messages, "source_message", counted)
    late = 1.04
    while len(made) < 100:
        due = min(each.due for each in room.timers if not each.cancelled)
        room.now = max(due, room.now) + (late - 1) * TICK
        room.wait(0)
    told = sum(len(reader.writes) for reader in readers) - len(readers)
    assert told in range(990, 1041)


@pytest.mark.parametrize("what", ["source", "silence"])
def test_a_change_of_the_source_is_told_at_once(what: str) -> None:
    """That nothing is heard of the database any more is a change, and so is its end."""
    room = TimedRoom()
    readers = [room.join(Subscription(include=SOURCE)) for _ in range(3 * STRIDE)]
    room.wait(1)
    before = [len(reader.all) for reader in readers]
    if what == "source":
        room.source = "poll"
    else:
        room.lag = 5.1
    room.wait(TICK)
    told = [sources(reader)[-1] for reader in readers]
    assert {(each["source"], each["lag_seconds"]) for each in told} == {(room.source, room.lag)}
    assert all(len(r.all) - count == 1 for r, count in zip(readers, before, strict=True))
    room.lag = 0.1
    room.wait(TICK if what == "silence" else EVERY + TICK)
    assert all(sources(reader)[-1]["lag_seconds"] == 0.1 for reader in readers)


def test_source_has_the_time_of_what_its_client_was_sent() -> None:
    room = TimedRoom(PLENTY, run("r"))
    early, late = (
        [room.join(Subscription(include=SOURCE)) for _ in range(GROUP)] for _ in range(2)
    )
    room.change(run("r"), at=T + 5)
    room.source = "poll"
    room.hub._source_messages._due = 2 * GROUP
    while min(len(sources(reader)) for reader in (*early, *late)) < 2:
        room.hub._source_messages._tick()
    for reader in early:
        assert kinds(reader) == ["source", "run_update", "source"]
        assert times(reader) == [T, T + 5, T + 5]
    for reader in late:
        assert times(reader) == [T, T]
    room.rest_of_rotation()
    assert all(times(reader) == [T, T, T + 5] for reader in late)


def test_a_client_that_lags_hears_of_the_source_when_it_has_caught_up() -> None:
    room = TimedRoom(PLENTY, run("r"))
    reader = room.join(Subscription(include=SOURCE))
    reader.full = True
    room.change(run("r"), at=T + 5)
    room.source = "poll"
    room.wait(1)
    room.change(run("r", "completed"), at=T + 9)
    room.wait(2 * EVERY)
    assert kinds(reader) == ["source", "run_update"]
    reader.drain()
    room.wait(TICK)
    assert kinds(reader) == ["source", "run_update", "run_complete", "source"]
    assert times(reader) == [T, T + 5, T + 9, T + 9]


def test_the_time_of_source_is_not_beyond_what_is_pending() -> None:
    room = TimedRoom(PLENTY, run("r"))
    reader = room.join(Subscription(include=BOTH))
    room.change(run("r"), at=T + 5)
    room.change(run("s"), at=T + 6)
    late = room.join(Subscription(include=BOTH))
    assert times(late) == [T + 5, T + 5]
    other = room.join(Subscription(include=SOURCE))
    assert times(other) == [T + 6], "nothing is pending for it"
    room.source = "poll"
    room.timers.sort(key=lambda timer: timer.due)
    next(timer for timer in room.timers if timer.due - room.now > 0.03).callback()
    assert times(reader)[-1] == T + 5
    assert room.board.time == T + 6


def test_a_time_of_source_is_one_that_since_takes() -> None:
    """Also where the last change has been evicted, or was a TRUNCATE."""
    everything: Included = frozenset(("deleted", "source"))
    for events in (["evicted"], ["truncate"], ["delete"], []):
        room = TimedRoom(0)
        for each in events:
            if each == "evicted":
                room.change(run("r", "completed"), at=T + 5)
            else:
                room.change(run("r"), op=each, at=T + 5)  # type: ignore[arg-type]
        room.wait(1)
        reader = room.join(Subscription(include=everything))
        (time,) = times(reader)
        assert room.join(Subscription(since=time, include=everything)).closed is None


def test_nothing_is_armed_without_clients_that_include_source() -> None:
    room = TimedRoom()
    room.join()
    reader = room.join(Subscription(include=SOURCE))
    assert room.armed() == TICK
    room.hub.leave(reader)
    room.wait(1)
    assert room.armed() is None
    assert sources(room.join(Subscription(include=SOURCE))) != []
    assert room.armed() == TICK


def test_a_client_whose_write_fails_is_dropped_alone() -> None:
    room = TimedRoom()
    first, second = (room.join(Subscription(include=SOURCE)) for _ in range(2))

    def fail(_: bytes) -> None:
        raise RuntimeError("closed")

    first.write = fail
    room.source = "poll"
    room.wait(TICK)
    assert first.dropped is not None
    assert len(sources(second)) == 2
    assert room.hub.clients == 1
