"""Lanes, groups and what is pending for them, rule by rule."""

import pytest

from brain.contract.subscription import Facet, Filter, Subscription
from brain.delivery.batches import BATCH
from brain.delivery.groups import GROUP
from brain.delivery.pending import Pending, united
from brain.delivery.rotation import PLANNED
from brain.delivery.shared import PLACE
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


def test_changes_that_concern_ten_thousand_filters_are_matched_in_slices() -> None:
    """Here 100, of which 150 comparisons fit into a turn."""
    CountingFilter.compared.clear()
    room = Room(max_compared=150)
    everyone = room.join()
    readers = [
        room.join(Subscription(CountingFilter(agent=frozenset(("hot", str(i))))))
        for i in range(100)
    ]
    room.change(*(run(f"r{i}", agent="hot") for i in range(10)), op="insert")
    assert everyone.ids() == [f"r{i}" for i in range(10)], "the other lanes are served meanwhile"
    turns, before = 0, 0
    while before < 1000:
        compared = len(CountingFilter.compared)
        assert 0 < compared - before < 150 + 100
        assert compared == 1000 or not any(reader.got for reader in readers)
        before, turns = compared, turns + 1
        if before < 1000:
            assert room.armed() == 0
            room.tick()
    assert turns >= 5
    room.rest()
    assert all(reader.ids() == [f"r{i}" for i in range(10)] for reader in readers)
    assert len(CountingFilter.compared) == 1000
    assert room.hub.pending_bytes == 0


def test_the_source_waits_for_what_is_noted_of_filters_too() -> None:
    room = Room()
    for i in range(100):
        room.join(Subscription(Filter(agent=frozenset(("hot", str(i))))))
    room.change(run("first"))
    room.change(run("r", agent="hot"), op="insert")
    assert room.hub.pending_bytes == room.hub._pending.bytes + 100 * PLACE
    room.rest()
    assert room.hub.pending_bytes == 0


def unknown(room: Room, *ids: str, agent: str = "z", status: str = "failed") -> None:
    """Changes of runs that the board does not hold: they may have been anything finished."""
    room.change(*(run(each, status, agent=agent) for each in ids), op="update")


def test_a_change_that_may_have_been_anything_is_matched_once_for_all_of_a_kind() -> None:
    CountingFilter.compared.clear()
    room = Room()
    readers = [
        room.join(Subscription(CountingFilter(agent=frozenset((f"a{i}",))))) for i in range(1000)
    ]
    unfinished = frozenset(("running", "queued"))
    others = [
        room.join(Subscription(CountingFilter(agent=frozenset((f"a{i}",)), status=unfinished)))
        for i in range(10)
    ]
    room.change(run("other"), op="insert")
    unknown(room, "r", "s")
    assert len(CountingFilter.compared) == 0
    room.rest()
    assert all(
        reader.taken() == [("r", "failed", None), ("s", "failed", None)] for reader in readers
    )
    assert not any(reader.got for reader in others), "it was not unfinished"
    written = {id(data) for reader in readers for data in reader.writes}
    assert len(written) == 1
    room.now += 1
    room.change(run("t", agent="a7"), op="insert")
    unknown(room, "u")
    room.rest()
    assert readers[7].ids() == ["t", "u"]
    assert readers[8].ids() == ["u"]
    assert (others[7].ids(), others[8].ids()) == (["t"], [])


def test_a_new_filter_is_sent_nothing_that_was_pushed_before() -> None:
    """It would be sent a part: what may have been anything, but not what replaces it."""
    room = Room(max_compared=1)
    early = room.join(Subscription(agents("z")))
    room.change(run("first", agent="z"), op="insert")
    unknown(room, "r")
    room.change(run("r", "completed", agent="z"), run("s", agent="z"), op="insert")
    late = room.join(Subscription(agents("z", "y")))
    room.change(run("t", agent="y"), op="insert")
    unknown(room, "u")
    room.rest()
    assert early.ids() == ["first", "r", "r", "s", "u"]
    assert late.ids() == ["t", "u"]


def test_batches_of_the_shared_lane_are_made_when_they_are_written() -> None:
    room = Room(PLENTY, run("r", "running"))
    readers = [room.join(Subscription(Filter(run_id=frozenset(("r", str(i)))))) for i in range(600)]
    room.change(run("r", "running", 1.0))
    groups = [reader.group for reader in readers if reader.group is not None]
    assert sum(group.left for group in groups) == 600 - GROUP
    room.change(run("r", "running", 2.0))
    room.rest()
    assert {tuple(reader.taken()) for reader in readers} == {
        (("r", "running", 1.0), ("r", "running", 2.0))
    }


def test_a_turn_plans_only_as_many_changes_as_it_could_write() -> None:
    room = Room(max_group=2)
    readers = [room.join(Subscription(agents("a"))) for _ in range(7)]
    room.change(run("r", agent="a"))
    room.rest()
    room.now += 1
    room.change(*(run(f"r{i}", agent="b") for i in range(3 * PLANNED)), op="insert")
    planned = [sum(lane.at == room.hub._pending.end for lane in room.hub._lanes.all)]
    while not room.hub.idle:
        room.tick()
        planned.append(sum(lane.at == room.hub._pending.end for lane in room.hub._lanes.all))
    assert planned == [1, 2, 3, 4]
    assert {tuple(reader.ids()) for reader in readers} == {("r",)}


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
