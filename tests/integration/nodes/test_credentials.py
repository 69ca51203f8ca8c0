"""Nodes that identify themselves by a JWT, as `nsc` writes it, with the rights that
docs/reference/nodes.md names.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain.nodes.connection import Access
from tests.support.credentials import Operator
from tests.support.nats import NatsServer, nats_running
from tests.support.nodes import InProcessNode, Stream, leader_and_other
from tests.support.postgres import execute

DOCUMENT = Path(__file__).parents[3] / "docs/reference/nodes.md"
ROW = "INSERT INTO runs (id, status) VALUES ('{}', 'running')"


@pytest.fixture(scope="module")
def operator() -> Operator:
    return Operator()


@pytest.fixture(scope="module")
def server(operator: Operator) -> Iterator[NatsServer]:
    with nats_running(operator.settings) as server:
        yield server


def documented(what: str) -> list[str]:
    (line,) = re.findall(rf"^\| {what} \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    subjects = re.findall("`([^`]+)`", line)
    return [re.sub(r"\bS\b", Stream.name, each) for each in subjects]


async def test_the_documented_rights_are_enough(
    database: str, server: NatsServer, operator: Operator, tmp_path: Path
) -> None:
    """For two nodes: one leads, the other one follows, and takes its place."""
    path = operator.user(tmp_path / "user.creds", documented("publish"), documented("subscribe"))
    access = Access([server.url], path)
    async with (
        InProcessNode(database, access=access) as one,
        InProcessNode(database, access=access) as two,
    ):
        leader, other = await leader_and_other(one, two)
        await other.ready()
        execute(database, ROW.format("a"))
        for each in (one, two):
            await each.knows("a", "running")
        await leader.stop()
        execute(database, ROW.format("b"))
        await other.knows("b", "running")
        assert other.role == "leader"
        assert await other.node.reached(other.board.as_of)


async def test_a_user_of_another_operator_is_refused(
    database: str, server: NatsServer, tmp_path: Path
) -> None:
    access = Access([server.url], Operator().user(tmp_path / "user.creds"))
    async with InProcessNode(database, access=access) as node:
        await node.until(lambda: "uthorization" in node.node.state.detail)
        assert node.node.state.source == "none"
        assert not node.board.begun


async def test_a_user_without_the_right_to_write_follows_nobody(
    database: str, server: NatsServer, operator: Operator, tmp_path: Path
) -> None:
    """And the reason stands in its state."""
    some = [each for each in documented("publish") if each != f"{Stream.name}.>"]
    path = operator.user(tmp_path / "user.creds", some, documented("subscribe"))
    async with InProcessNode(database, access=Access([server.url], path)) as node:
        await node.until(lambda: node.node.state.code == "nats")
        assert node.role == "follower"
        assert not node.board.begun
