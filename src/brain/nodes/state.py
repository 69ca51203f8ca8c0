"""What a node is, and how the leader follows the database: for people and programs."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import structlog

from brain.contract.nodes import NodeReport, Role
from brain.nodes.log import Item
from brain.nodes.messages import decode_warnings
from brain.nodes.timing import NodeTiming
from brain.postgres.source_state import SourceState

log = structlog.get_logger()

FOREIGN = 60.0
"""Seconds between two lines about messages that somebody else has written."""

HINT = "look at NATS (BRAIN_NATS_URL) and at the logs of the other nodes, or run: brain doctor"


@dataclass(slots=True)
class NodeState:
    """`source` is what /readyz, messages and metrics say of the source: what the leader says, or
    that the log is away.
    """

    source: SourceState
    timing: NodeTiming
    role: Role = "follower"
    epoch: int = 0
    position: int = 0
    foreign: int = 0
    """Messages of the log that somebody else has written."""
    foreign_at: int = 0
    """The last of them. What is loaded again does not count again."""
    elsewhere: str = ""
    """Why the log is not of this node's table; "" if it is."""
    heard: float = -math.inf
    """When, by the loop's clock, the last message of the log was read."""
    led: float = -math.inf
    """The same for a message that a leader has written behind its claim."""
    at_end: float = -math.inf
    """When this node was last at the end of the log."""
    _late: float | None = None
    """Since when the leader is late."""
    _told: tuple[int, float] = (0, -math.inf)
    """How many messages of somebody else the log has told of, and when."""

    def __post_init__(self) -> None:
        self.source.lateness.follow(self._late_since)

    def report(self) -> NodeReport:
        return NodeReport(self.role, self.epoch, self.position, self.lag(), self.foreign)

    def lag(self) -> float:
        behind = asyncio.get_running_loop().time() - self.at_end
        return 0.0 if behind < 2 * self.timing.heartbeat else behind

    def mirror(self, status: dict[str, Any]) -> None:
        """What the leader has just said of its source."""
        now = asyncio.get_running_loop().time()
        source = self.source
        if source.code == "nats" and status["source"] != "none":
            log.info("source", now=status["source"])  # what `away` has said is over
        source.source, source.code = status["source"], status["code"]
        source.detail, source.hint = status["detail"], status["hint"]
        source.warnings = decode_warnings(status.get("warnings", ()))
        if status["age"] is not None:
            source.heard = max(source.heard, now - status["age"])
            source.lateness.answered()
        self._late = now - status["lag"] if status["lag"] else None

    def away(self, detail: str, hint: str = HINT) -> None:
        """(N9) Nobody knows what happens in the database."""
        if self.source.code != "nats" or self.source.detail != detail:
            self.source.change("none", "nats", detail, hint)

    def skip(self, stream: str, item: Item) -> None:
        """A message that is none of Brain's."""
        if item.seq <= self.foreign_at:
            return
        self.foreign_at = item.seq
        self.foreign += 1
        told, at = self._told
        now = asyncio.get_running_loop().time()
        if now - at < FOREIGN:
            return
        self._told = self.foreign, now
        log.warning(
            "somebody else writes to the log",
            messages=self.foreign - told,
            last=item.seq,
            detail=f"{item.data[:40]!r} is no message of Brain's, and is skipped",
            hint=f"let nobody but nodes publish to {stream}.>, or set another BRAIN_NATS_STREAM",
        )

    def _late_since(self) -> float | None:
        now = asyncio.get_running_loop().time()
        silent = self.heard if now - self.heard > 3 * self.timing.heartbeat else None
        return silent if self._late is None else min(self._late, silent or self._late)
