"""When a flush goes, on a clock that the test moves."""

from brain.delivery.groups import GROUP
from brain.delivery.pace import EARLY, LEAST, REST, Pace
from tests.unit.delivery.runs import run
from tests.unit.delivery.test_hub import INTERVAL, Room


class Street(Room):
    """A room whose flushes have cost nothing yet. The loop takes `kernel` seconds at the end of a
    turn for what a flush has queued.
    """

    kernel = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.hub._pace = Pace(INTERVAL, lambda: self.now)

    def turn(self) -> None:
        """The loop ends its turn."""
        self.now += self.kernel
        while self.soon:
            self.soon.pop()()

    def flush(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.change(run("r"))
            self.turn()


def test_a_change_that_comes_alone_is_sent_at_once() -> None:
    street = Street()
    reader = street.join()
    for _ in range(3):
        street.flush()
        assert reader.ids() == ["r"]
        assert street.armed() is None


def test_a_change_waits_for_as_long_as_flushes_cost() -> None:
    street = Street()
    reader = street.join()
    street.change(run("a"))
    street.change(run("b"))
    assert street.armed() == LEAST, "the least"
    street.rest()
    street.kernel = 0.008
    street.flush(100)
    reader.taken()
    street.now += 1
    street.change(run("a"))
    street.change(run("b"))
    assert street.armed() == round(REST * 0.008, 6)
    street.turn()
    street.change(run("c"))
    assert reader.ids() == ["a", "b", "c"], "what came during the flush goes as soon as it may"


def test_a_change_waits_no_longer_than_the_interval() -> None:
    street = Street()
    street.join()
    street.kernel = 0.4
    street.flush(100)
    assert street.hub._pace.cost > 0.39
    street.change(run("a"))
    street.now += 0.01
    street.change(run("b"))
    assert street.armed() == round(INTERVAL - 0.01, 6)


def test_a_change_that_waits_goes_earlier_when_flushes_have_become_cheaper() -> None:
    street = Street()
    street.join()
    street.kernel = 0.01
    street.flush(100)
    street.kernel = 0.0
    street.now += 1
    street.change(run("a"))
    street.change(run("b"))
    before = street.armed()
    street.turn()
    after = street.armed()
    assert before is not None
    assert after is not None
    assert after < before


def test_a_flush_costs_what_the_turn_of_the_loop_takes() -> None:
    street = Street()
    street.join()
    street.kernel = 0.003
    street.cost = 0.001
    street.flush(100)
    assert round(street.hub._pace.cost, 6) == 0.004


def test_a_rotation_costs_all_the_turns_it_takes() -> None:
    street = Street()
    readers = [street.join() for _ in range(2 * GROUP)]
    street.cost = 0.001
    street.change(run("r"))
    assert not street.hub.idle
    street.turn()
    street.rest()
    assert all(reader.got for reader in readers)
    (written,) = street.soon
    began = street.hub._pace.began
    street.turn()
    assert street.hub._pace.cost == 0.2 * LEAST, "of the first, a millisecond counts"
    assert street.now - began >= 0.5
    assert written is not None


def test_one_slow_flush_changes_the_pace_little() -> None:
    now = 0.0
    pace = Pace(INTERVAL, lambda: now)
    for _ in range(100):
        now += 0.004
        pace.ended(now - 0.004)
    now += 10.0
    pace.ended(now - 10.0)
    assert round(pace.cost, 6) == 0.0048
    for _ in range(100):
        now += 0.012
        pace.ended(now - 0.012)
    assert round(pace.cost, 4) == 0.012, "but what lasts counts"


def test_the_first_flush_goes_at_once() -> None:
    pace = Pace(INTERVAL, lambda: 0.0)
    assert pace.wait() <= EARLY
    pace.begin()
    assert pace.wait() == LEAST
