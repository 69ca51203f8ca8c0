"""Faults of nodes, of NATS and of the database at random (nodes.py)."""

import os
import random

import pytest

from tests.oracle.nodes import play
from tests.support.nats import available
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(not available(), reason="nats-server is not installed"),
]

SEED = int(os.environ.get("BRAIN_NODES_SEED", str(random.randrange(1_000_000))))


async def test_nodes_lose_nothing_for_a_minute(postgres: Postgres) -> None:
    """Some 15 times one or two faults, in 27 s of CPU time. `make torture-nodes` plays them for 20
    minutes.
    """
    world = await play(SEED, 60, postgres, takeover=1.0)
    assert world.faults == []
    assert not world.undocumented, world.gaps
    assert world.checks > 1
