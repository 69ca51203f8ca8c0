"""When a node claims the log (nodes/leadership.py), without one."""

from typing import Any

from brain.nodes.leadership import Leadership
from brain.nodes.timing import NODE_TIMING
from brain.nodes.track import Claim
from tests.unit.nodes.test_relay import relay as made


async def test_a_node_that_has_led_for_a_moment_a_thousand_times_claims_again() -> None:
    """As on a full disk of NATS, which takes claims and nothing else. One day it is emptied."""
    relay = made()
    unused: Any = None
    relay.track.claim = Claim(1, "me", "me", "log", 1, 1)
    leadership = Leadership(
        relay._log, relay, relay.state, unused, node="me", name="me", timing=NODE_TIMING
    )
    for lost in (0, 1, 2000):
        leadership._lost = lost
        assert leadership._is_due("log")
