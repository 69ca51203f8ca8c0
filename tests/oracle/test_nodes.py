"""Faults of nodes, of NATS and of the database at random (nodes.py)."""

import os
import random

import pytest

from tests.oracle.nodes import PLAN, play
from tests.support.nats import available
from tests.support.patience import within
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(not available(), reason="nats-server is not installed"),
]

SEED = int(os.environ.get("BRAIN_NODES_SEED", str(random.randrange(1_000_000))))


@pytest.mark.faults
async def test_nodes_lose_nothing(postgres: Postgres) -> None:
    """A few faults; `make torture-nodes` plays them for 20 minutes."""
    plan = PLAN._replace(restarts=6, check_every=3)
    world = await play(SEED, within(60), postgres, takeover=1.0, plan=plan)
    assert world.faults == []
    assert not world.undocumented, world.gaps
    assert world.checks > 1


@pytest.mark.faults
async def test_nodes_lose_nothing_for_a_minute(postgres: Postgres) -> None:
    world = await play(SEED, within(60), postgres)
    assert world.faults == []
    assert not world.undocumented, world.gaps
