"""Restarts at random moments, and mutants of the rules (restarts.py)."""

import contextlib
import os
import random
from pathlib import Path

import pytest

from tests.oracle.restarts import Plan, World
from tests.support.patience import within
from tests.support.postgres import Postgres, available, running
from tests.support.template import ROLE, TEMPLATE, with_template

RESTARTS = int(os.environ.get("BRAIN_RESTARTS", "40"))
VERSIONS = [int(v) for v in os.environ.get("BRAIN_RESTARTS_VERSIONS", "18").split(",")]
SEED = int(os.environ.get("BRAIN_RESTARTS_SEED", str(random.randrange(1_000_000))))


@pytest.mark.parametrize("version", VERSIONS)
async def test_restarts_lose_nothing(
    version: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with contextlib.ExitStack() as stack:
        server: Postgres
        if version == 18:
            server = request.getfixturevalue("postgres")
        else:
            server = with_template(stack.enter_context(running(version)))
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = World(url, SEED, tmp_path, Plan(RESTARTS))
        await world.run(seconds=within(RESTARTS))
        print(world)
        assert world.faults == []
        assert not [why for why in world.gaps if why.startswith("NONE")], world.gaps
        assert world.resumed > 0.9 * world.restarts


@pytest.mark.parametrize("version", VERSIONS)
async def test_crashes_of_postgresql_lose_nothing(version: int, tmp_path: Path) -> None:
    """Half of the writers commit without waiting for the disk."""
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with running(version, fsync="on", wal_writer_delay="10s") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = World(url, SEED, tmp_path, Plan(RESTARTS // 3, crashes=0.4), server)
        await world.run(seconds=within(RESTARTS))
        print(world)
        assert world.faults == []
        assert not [why for why in world.gaps if why.startswith("NONE")], world.gaps
