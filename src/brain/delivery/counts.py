"""What the hub counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Totals since the start."""

    changes: int = 0
    conflated: int = 0
    flushes: int = 0
    deliveries: int = 0
    """Messages written to clients by flushes."""
    pieces: int = 0
    """Writes that caught up a client."""
    lags: int = 0
    """Times that a client missed a flush."""
    gaps: int = 0
    """Clients closed because the board no longer held what they missed (R12, T6)."""
    failures: int = 0
