"""Transaction ids, and what a query has seen of them (PostgreSQL documentation, 9.27.10 "pg_snapshot")."""

from dataclasses import dataclass
from typing import NewType

Xid = NewType("Xid", int)
"""A transaction id of 64 bits, whose upper half counts the wraparounds of the 32 that rows and the stream carry."""


def widen(xid: int, near: int) -> Xid:
    """The 64-bit id of a 32-bit one that is less than 2^31 transactions away from `near`."""
    return Xid(near + (xid - near + 2**31) % 2**32 - 2**31)


@dataclass(frozen=True, slots=True)
class PgSnapshot:
    """A value of pg_current_snapshot(): which transactions a query has seen."""

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

    @property
    def whole(self) -> bool:
        """A read replica's says that something is running, but not what: equal ones need not mean that nothing was committed."""
        return self.xmin == self.xmax or bool(self.running)
