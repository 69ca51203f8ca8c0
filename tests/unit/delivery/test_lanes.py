"""Lanes, groups and what is pending for them, rule by rule."""

import pytest

from brain.contract.subscription import Facet, Subscription
from brain.delivery.batches import BATCH
from brain.delivery.lanes import GROUP
from brain.delivery.pending import Pending, united
from tests.unit.delivery.runs import PLENTY, run
from tests.unit.delivery.test_board import begun, change
from tests.unit.delivery.test_hub import CountingFilter, Reader, Room, agents, crowd


def lanes(room: Room) -> list[tuple[int, int]]:
    """Of each lane: where it stands, and how many clients are live in it."""
    return [(lane.at, len(lane.group.live) if lane.group else -1) for lane in room.hub._lanes.all]


def test_a_group_that_is_full_is_followed_by_another() -> None:
    room = Room()
    readers = [room.join() for _ in range(2 * GROUP + 1)]
    assert lanes(room) == [(0, GROUP), (0, GROUP), (0, 1)]
    for reader in readers[: GROUP - 3]:
        room.hub.leave(reader)
    for _ in range(GROUP + 1):
        room.join()
    assert [live for _, live in lanes(room)] == [5, GROUP, GROUP]
    for _ in range(GROUP):
        room.join()
    assert [live for _, live in lanes(room)] == [GROUP, GROUP, GROUP, 5]


def test_a_group_that_nobody_is_in_is_dropped_when_it_is_planned() -> None:
    room = Room()
    first, second = crowd(room)
    room.rest()
    for reader in first:
        room.hub.leave(reader)
    room.now += 1
    room.change(run("r"))
    room.rest()
    assert [live for _, live in lanes(room)] == [GROUP]
    for reader in second:
        room.hub.leave(reader)
    assert lanes(room) == []
    room.change(run("r"))
    assert (room.hub.pending_bytes, room.armed()) == (0, None), "nobody is there"


def test_clients_that_drain_do_not_fill_a_group_further() -> None:
    room = Room()
    stalled = [room.join() for _ in range(GROUP)]
    for reader in stalled:
        room.hub.pause(reader)
    for _ in range(GROUP):
        room.join()
    for reader in stalled:
        reader.drain()
    room.rest()
    assert sorted(live for _, live in lanes(room)) == [GROUP, GROUP]


@pytest.mark.parametrize("wish", [Subscription(), Subscription(agents("a"))])
def test_a_lane_that_lags_is_sent_all_in_one_plan(wish: Subscription) -> None:
    room = Room(PLENTY, *(run(f"r{i}", "running", agent="a") for i in range(3)))
    readers = [room.join(wish) for _ in range(GROUP + 1)]
    room.change(*(run(f"r{i}", "running", 1.0, agent="a") for i in range(3)))
    room.change(run("r0", "running", 2.0, agent="a"), run("r1", "completed", agent="a"))
    room.rest()
    early = [("r0", "running", 1.0), ("r1", "running", 1.0), ("r2", "running", 1.0)]
    newer = [("r0", "running", 2.0), ("r1", "completed", None)]
    assert readers[0].taken() == early + newer
    assert readers[-1].taken() == [*early[1:], *newer], "it never lacked the first without the last"


def test_a_plan_of_ten_thousand_filters_compares_nothing() -> None:
    CountingFilter.compared.clear()
    room = Room()
    readers = [
        room.join(Subscription(CountingFilter(run_id=frozenset((f"r{i}",))))) for i in range(10_000)
    ]
    room.change(run("r1"))
    room.change(*(run(f"r{i}") for i in range(50)))
    assert len(CountingFilter.compared) == 51
    room.rest()
    assert len(CountingFilter.compared) == 51
    assert [len(reader.got) for reader in readers[:3]] == [1, 2, 1]


def test_a_change_is_matched_for_a_group_whose_only_client_has_stalled() -> None:
    room = Room(PLENTY, run("r", agent="a"))
    reader = room.join(Subscription(agents("a")))
    room.change(run("r", agent="a"))
    room.hub.pause(reader)
    room.change(run("r", agent="b"))
    reader.drain()
    assert reader.seq is None
    room.rest()
    assert len(reader.taken()) == 2


def test_lanes_at_one_place_share_their_batches() -> None:
    room = Room()
    everyone = crowd(room, groups=3)
    room.rest()
    written = {id(data) for group in everyone for reader in group for data in reader.writes}
    assert len(written) == 1
    assert room.hub._lanes._made == {}, "nothing is kept"


def test_a_change_is_kept_until_every_lane_has_been_sent_it() -> None:
    room = Room()
    crowd(room, groups=3)
    sizes = [room.hub.pending_bytes]
    while not room.hub.idle:
        room.tick()
        sizes.append(room.hub.pending_bytes)
    assert sizes[0] == sizes[1] > BATCH - 400
    assert sizes[2:] == [0]


def test_a_change_that_a_lane_was_sent_is_not_counted_as_conflated() -> None:
    room = Room(PLENTY, run("r", "running"))
    first, second = [room.join() for _ in range(GROUP)], [room.join() for _ in range(GROUP)]
    room.change(run("r", "running", 1.0))
    room.change(run("r", "running", 2.0))
    assert room.hub.counts.conflated == 0
    room.change(run("r", "running", 3.0))
    assert room.hub.counts.conflated == 1
    room.rest()
    assert [progress for _, _, progress in first[0].taken()] == [1.0, 3.0]
    assert [progress for _, _, progress in second[0].taken()] == [3.0]


def test_a_conflated_change_was_for_each_lane_what_the_lane_lacks() -> None:
    board = begun(PLENTY, run("r", "running", agent="a"))
    pending = Pending()
    for agent in ("b", "c", "b", "d"):
        pending.add(
            [change(board, "update", run("r", "running", agent=agent))], sent=0, tombstones=False
        )
    found = {
        at: {agent for _, _, facets in pending.since(at, at) for _, agent, _ in facets}
        for at in range(4)
    }
    assert found == {0: set("abcd"), 1: set("bcd"), 2: set("bcd"), 3: set("bd")}
    assert len(list(pending.since(0, 0))) == 1


def test_what_is_remembered_of_replaced_changes_is_bounded_by_what_a_run_was() -> None:
    board = begun(PLENTY, run("r", "running", agent="a"))
    pending = Pending()
    for i in range(1000):
        pending.add(
            [change(board, "update", run("r", "running", agent="ab"[i // 10 % 2]))],
            sent=0,
            tombstones=False,
        )
    (item,) = [item for item in pending._items if item is not None]
    assert len(item[2]) <= 4
    facets: tuple[Facet, ...] = (("running", "a", None),)
    assert united(facets, ((3, (("queued", "a", None),)),), 4) == facets


def test_readers_of_a_cohort_beyond_250_have_lanes_of_their_own() -> None:
    room = Room(PLENTY, run("r", agent="a"))
    readers: list[Reader] = [room.join(Subscription(agents("a"))) for _ in range(2 * GROUP)]
    assert [live for _, live in lanes(room)] == [-1, GROUP]
    room.change(run("r", agent="b"))
    room.change(run("s", agent="b"), op="insert")
    room.rest()
    assert all(reader.ids() == ["r"] for reader in readers)
