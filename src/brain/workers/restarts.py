"""How long to wait before a child process that has died is started again."""

import time
from dataclasses import dataclass, field
from typing import Final

from brain.contract.back_off import BackOff

STEADY: Final = 10.0
"""Seconds. A process that ran for so long counts as started: the back-off begins again."""


@dataclass(slots=True)
class Restarts:
    """One for all workers: what makes one die at its start makes the others die, too."""

    back_off: BackOff = field(default_factory=lambda: BackOff(first=0.2, longest=5.0))
    steady: float = STEADY
    count: int = 0
    _failures: int = 0

    def delay(self, began: float) -> float:
        """Seconds to wait, after the death of a process that began at this time.monotonic()."""
        if time.monotonic() - began >= self.steady:
            self._failures = 0
        self.count += 1
        return self.again()

    def again(self) -> float:
        """Seconds to wait after a start that has failed: no process has died."""
        self._failures += 1
        return self.back_off.delay(self._failures)
