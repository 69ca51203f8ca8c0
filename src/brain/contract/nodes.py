"""What one of several nodes that share a log says of itself: for /readyz and /metrics."""

from typing import Final, Literal, NamedTuple, TypeAlias, get_args

Role: TypeAlias = Literal["alone", "leader", "follower"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)


class NodeReport(NamedTuple):
    role: Role
    epoch: int
    """The leader's: the place of its claim in the log. 0: there is none yet, or no log."""
    position: int
    """Up to where this node has read the log."""
    lag: float
    """Seconds for which it has not been at the end of the log."""
    foreign: int = 0
    """Messages of the log that are none of Brain's, and were skipped."""


ALONE: Final = NodeReport("alone", 0, 0, 0.0)
"""A Brain that follows the database itself, and shares no log."""
