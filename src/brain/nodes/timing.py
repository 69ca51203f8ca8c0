"""Every interval, deadline and bound of the nodes: seconds, unless a field says otherwise.

They are one value that is handed in, so that a test can hand in shorter ones.
"""

import random
from dataclasses import dataclass, replace
from typing import Final

from brain.postgres.timing import TIMING, Timing


@dataclass(frozen=True, slots=True)
class NodeTiming:
    silence: float = 3.0
    """(N2) A node that hears nothing from the log for this time claims it (BRAIN_NATS_TAKEOVER)."""
    jitter: tuple[float, float] = (0.1, 0.5)
    """Added to it, at random, so that several nodes do not claim at once."""
    first: float = 0.5
    """How long a node without a board leaves an empty log to nodes that have one."""
    heartbeat: float = 0.5
    """A leader says at least this often that it lives."""
    append: float = 2.0
    """How long the log may take to confirm a message. Less than `silence`: a leader that cannot
    write stops before another node leads."""
    request: float = 2.0
    """The same for every other request."""
    watchdog: float = 2.5
    """Silence after which a reader looks whether it is still subscribed."""
    away: float = 3.0
    """Silence after which a node is not ready: without a connection …"""
    leaderless: float = 6.0
    """… and with one, in which time somebody should have claimed the log."""
    pause: float = 0.1
    """Between two looks at what nobody announces."""
    resign: float = 2.0
    """How long the end of a leader may take."""
    barrier: float = 3.0
    """How long a client may wait until this node has read what the client has seen elsewhere."""
    piece: int = 128 * 1024
    """Bytes of a message at most, encoded. NATS refuses more than 1 MB by default."""
    boards: float = 5.0
    """Between two boards that are written because a node asks for one."""
    checkpoint: int = 8 * 1024 * 1024
    """(N6) Bytes after which the board is written again, unless it is larger than that."""

    @classmethod
    def of(cls, silence: float) -> "NodeTiming":
        """With the other deadlines in proportion, so that a leader that cannot write stops before
        another node leads.
        """
        share = min(1.0, silence / 3)
        return cls(
            silence=silence,
            jitter=(0.1 * share, 0.5 * share),
            heartbeat=0.5 * share,
            append=2.0 * share,
            watchdog=2.5 * share,
            away=max(3.0, silence),
            leaderless=2 * silence,
        )

    def patience(self) -> float:
        """The silence after which this node claims the log."""
        return self.silence + random.uniform(*self.jitter)


NODE_TIMING: Final = NodeTiming()
"""What `brain serve` uses."""

READING: Final[Timing] = replace(TIMING, stream=replace(TIMING.stream, gulp=0.008))
"""How a leader reads the database. What one read brings is one message, which costs each node 0.4
ms, and a change in it 0.02. At 2 000 changes a second a node used 61 µs for each with 5 ms between
two reads, and 35 with 12. 100 changes a second do not wait.
"""
