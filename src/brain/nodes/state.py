"""What a node is, and how the leader follows the database: for people and programs."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from brain.contract.nodes import NodeReport, Role
from brain.nodes.messages import decode_warnings
from brain.nodes.timing import NodeTiming
from brain.postgres.source_state import SourceState

HINT = "look at NATS (BRAIN_NATS_URL) and at the logs of the other nodes"


@dataclass(slots=True)
class NodeState:
    """`source` is what /readyz, clients and metrics are told of the source: what the leader says,
    or that the log is away.
    """

    source: SourceState
    timing: NodeTiming
    role: Role = "follower"
    epoch: int = 0
    position: int = 0
    heard: float = -math.inf
    """When, by the loop's clock, the last message of the log was read."""
    at_end: float = -math.inf
    """When this node was last at the end of the log."""
    _late: float | None = None
    """Since when the leader is late."""

    def __post_init__(self) -> None:
        self.source.lateness.follow(self._late_since)

    def report(self) -> NodeReport:
        return NodeReport(self.role, self.epoch, self.position, self.lag())

    def lag(self) -> float:
        behind = asyncio.get_running_loop().time() - self.at_end
        return 0.0 if behind < 2 * self.timing.heartbeat else behind

    def mirror(self, status: dict[str, Any]) -> None:
        """What the leader has just said of its source."""
        now = asyncio.get_running_loop().time()
        source = self.source
        source.source, source.code = status["source"], status["code"]
        source.detail, source.hint = status["detail"], status["hint"]
        source.warnings = decode_warnings(status.get("warnings", ()))
        if status["age"] is not None:
            source.heard = max(source.heard, now - status["age"])
            source.lateness.answered()
        self._late = now - status["lag"] if status["lag"] else None

    def away(self, detail: str) -> None:
        """(N9) Nobody knows what happens in the database."""
        if self.source.code != "nats" or self.source.detail != detail:
            self.source.change("none", "nats", detail, HINT)

    def _late_since(self) -> float | None:
        now = asyncio.get_running_loop().time()
        silent = self.heard if now - self.heard > 3 * self.timing.heartbeat else None
        return silent if self._late is None else min(self._late, silent or self._late)
