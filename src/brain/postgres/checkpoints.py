"""The checkpoint: what is known of the table, so that the next poll brings only what changed."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot

Identity: TypeAlias = tuple[str | None, ...]
"""System identifier, timeline, database, table and its columns, and how Brain reads them. When one
of them changes, nothing known of the table holds."""

NO_LSN = LSN(0)

PARTS: Final = (
    "the server",
    "the table",
    "the columns that Brain reads",
    "the role",
    "the version of Brain",
    "BRAIN_MAX_TEXT",
    "BRAIN_TIMEZONE",
    "BRAIN_STATUS_MAP",
)
"""What the identity consists of."""


def parts(identity: Identity) -> tuple[object, ...]:
    """In the order of PARTS; shorter, if the identity is."""
    server, table, columns = identity[:3], identity[3:4], identity[4:-2]
    return (server, table, columns, identity[-2:-1], *str(identity[-1]).split(" ", 3))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that `visible` sees is known."""

    identity: Identity
    visible: PgSnapshot
    versions: frozenset[tuple[str, str | None]] = frozenset()
    """Id and xmin of row versions that are known although an open transaction holds the horizon
    before them: the next poll returns them again."""
    flushed: LSN = NO_LSN
    """How far the log was flushed to disk. It never goes back, unless an older state of this server
    is restored."""
    tree: frozenset[int] = frozenset()
    """The oids of the table and its partitions. One that is attached later brings rows that are
    older than the horizon."""
    epoch: str | None = None
    """When the server's statistics were reset: a crash resets them."""

    def voided_by(
        self, identity: Identity, visible: PgSnapshot, flushed: LSN, epoch: str | None = None
    ) -> bool:
        """Whether the database is no longer the one of this checkpoint."""
        return (
            identity != self.identity
            or epoch != self.epoch
            or visible.xmax < self.visible.xmax  # an older state of this very database was restored
            or 0 < flushed < self.flushed  # so it was, and has run as many transactions since
            or visible.xmax - self.visible.xmin >= 2**31  # more than 32 bits can tell
        )

    def is_current(self, visible: PgSnapshot, flushed: LSN) -> bool:
        """Whether nothing was committed anywhere since."""
        return visible == self.visible and visible.whole and not 0 < flushed < self.flushed
