"""When a node loads the log again, and when it may lead (nodes/relay.py)."""

import pytest

from brain.delivery.board import Board
from brain.nodes.connection import Access, Connection
from brain.nodes.log import Facts, Log
from brain.nodes.messages import VERSION
from brain.nodes.origin import Origin
from brain.nodes.relay import Relay
from brain.nodes.state import NodeState
from brain.nodes.timing import NODE_TIMING
from brain.nodes.track import Claim
from brain.postgres.source_state import SourceState


def relay() -> Relay:
    log = Log(Connection(Access(["nats://h"]), "test", NODE_TIMING), "S", timing=NODE_TIMING)
    state = NodeState(SourceState(), NODE_TIMING)
    board = Board(1 << 20)

    async def unknown() -> None:
        return None

    found = Relay(
        log,
        board,
        state,
        node="n",
        empty=lambda: Board(1 << 20),
        origin=Origin(unknown),
        timing=NODE_TIMING,
    )
    found._search.created, found.track.position = "monday", 50
    return found


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (Facts(1, 50, "monday", 0), ""),
        (Facts(51, 60, "monday", 0), ""),
        (Facts(52, 60, "monday", 0), "message 51 was discarded: the log begins at 52"),
        (Facts(1, 49, "monday", 0), "the log ends at 49, before message 50"),
        (Facts(1, 60, "tuesday", 0), "the stream was deleted and created again"),
    ],
)
def test_a_node_loads_again_only_if_the_log_does_not_go_on(facts: Facts, why: str) -> None:
    """(N8)"""
    assert relay()._does_not_go_on(facts) == why


def test_a_node_without_a_connection_does_not_lead() -> None:
    """(N2)"""
    assert relay().base() is None


def test_the_deadlines_are_in_proportion_to_the_silence() -> None:
    """Who may lead no longer must know it before somebody else does."""
    for seconds in (1.0, 3.0, 60.0):
        timing = NODE_TIMING.of(seconds)
        assert timing.append < timing.silence == seconds
        assert 4 * timing.heartbeat < timing.silence
        assert timing.silence + timing.jitter[0] <= timing.patience()
    assert NODE_TIMING.of(3.0) == NODE_TIMING


def test_a_node_lets_the_log_alone_until_another_leader_than_one_of_a_later_version() -> None:
    found = relay()
    later = Claim(5, "l", "later", "log", VERSION + 1, VERSION + 1)
    found._newest = ("monday", later)
    assert found.later.startswith(f"the leader later writes version {VERSION + 1} of the log")
    assert [found.is_readable] == [False]
    found.loads, found.track.claim = "", Claim(9, "o", "other", "log", VERSION, VERSION)
    assert [found.is_readable] == [True]
    assert found.later == ""
    found._newest, found.track.claim = ("tuesday", later), None
    assert found.later == ""
