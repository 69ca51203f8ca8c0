"""Transaction ids, and which of them a query sees (PostgreSQL documentation, 9.27.10)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

Xid = NewType("Xid", int)
"""A transaction id of 64 bits. The upper half counts wraparounds of the lower half, which rows and
the stream carry."""


def widen(xid: int, near: int) -> Xid:
    """The 64-bit id of a 32-bit one, which is less than 2^31 transactions from `near`."""
    # Without a call of Xid, which costs as much as the rest: each transaction has an id.
    return near + (xid - near + 2**31) % 2**32 - 2**31  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class PgSnapshot:
    """A value of pg_current_snapshot(): which transactions a query sees."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "PgSnapshot":
        xmin, xmax, running = text.split(":")
        return cls(
            int(xmin),
            int(xmax),
            frozenset(map(int, running.split(","))) if running else frozenset(),
        )

    def sees(self, xid: Xid) -> bool:
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)

    def unseen(self, xids: Iterable[int]) -> set[int]:
        """Those that it does not see, of a hundred thousand that a stream delivers in a while."""
        xmin, xmax, running = self.xmin, self.xmax, self.running
        return {xid for xid in xids if xid >= xmin and (xid >= xmax or xid in running)}

    @property
    def whole(self) -> bool:
        """False for a read replica's: it says that transactions run, but not which. Two equal ones
        do not prove that nothing was committed between them.
        """
        return self.xmin == self.xmax or bool(self.running)
