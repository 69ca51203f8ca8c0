"""How long to wait before the next try."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackOff:
    """Exponential back-off with full jitter: clients dropped together come back spread out."""

    first: float
    """Seconds: the bound of the first wait. It doubles with each failure."""
    longest: float
    """Seconds: the largest bound."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row (1 or more)."""
        return random.uniform(0, min(self.longest, self.first * 2 ** min(failures - 1, 32)))
