"""Whether the log is of the table that this node would follow itself.

Two clusters may share a stream by mistake: with one BRAIN_NATS_STREAM, or one URL that leads to two
servers. Then one of them must not show the runs of the other. And nodes of one table may differ in
what makes a run of a row: then the present leader decides, and each change of leader is a new
beginning for all clients.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from brain.postgres.checkpoints import PARTS, Identity, parts

Identify: TypeAlias = Callable[[], Awaitable[Identity | None]]
"""Asks the database now. None: it cannot be reached."""

PLACES: Final = {0: "another server", 2: "another database", 3: "another table"}
"""Positions in an identity. What is None nobody knows."""

HINT: Final = (
    "correct BRAIN_DATABASE_URL or BRAIN_TABLE of this node, or set another BRAIN_NATS_STREAM"
)


class Origin:
    def __init__(self, identify: Identify) -> None:
        self._identify = identify

    async def compare(self, identity: Identity) -> tuple[str, str]:
        """Why a log with this identity is not of this node's table, and the settings in which the
        leader differs. Each is "" if there is none, or if nobody can tell.
        """
        own = await self._identify()
        if own is None:
            return "", ""
        why = elsewhere(own, identity)
        return why, "" if why else differing(own, identity)


def elsewhere(own: Identity, identity: Identity) -> str:
    for at, what in PLACES.items():
        mine, theirs = own[at], identity[at]
        if mine is not None and theirs is not None and str(mine) != str(theirs):
            return f"the log is of {what} ({theirs}, and this node's is {mine})"
    return ""


def differing(own: Identity, identity: Identity) -> str:
    both = zip(PARTS, parts(own), parts(identity), strict=False)
    return ", ".join(name for name, mine, theirs in both if mine != theirs and name != PARTS[0])
