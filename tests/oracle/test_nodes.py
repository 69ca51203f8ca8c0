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


async def lose_nothing(postgres: Postgres, seconds: float, *, least: int) -> None:
    """`least`: how often all clients were compared with the table."""
    world = await play(SEED, seconds, postgres, takeover=1.0)
    assert world.faults == []
    assert not world.undocumented, world.gaps
    assert world.checks >= least


async def test_nodes_lose_nothing(postgres: Postgres) -> None:
    """Some 5 times one or two faults, in 9 s of CPU time."""
    await lose_nothing(postgres, 20, least=1)


@pytest.mark.faults
async def test_nodes_lose_nothing_for_a_minute(postgres: Postgres) -> None:
    """Some 15 times, in 27 s. `make torture-nodes` plays them for 20 minutes."""
    await lose_nothing(postgres, 60, least=2)
