"""The checkpoint: what is known of the table, so that the next poll brings only what changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Column

Identity: TypeAlias = tuple[str | None, ...]
"""System identifier, timeline, database, table and its columns. When one of them changes, nothing
known of the table holds."""

NOWHERE = LSN(0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that `visible` sees is known."""

    identity: Identity
    visible: PgSnapshot
    versions: frozenset[tuple[str, str | None]] = frozenset()
    """Id and xmin of row versions that are known although an open transaction holds the horizon
    before them: the next poll returns them again."""
    flushed: LSN = NOWHERE
    """How far the log was flushed to disk. It never goes back, unless an older state of this server
    is restored."""
    tree: frozenset[int] = frozenset()
    """The oids of the table and its partitions. One that is attached later brings rows that are
    older than the horizon."""

    def voided_by(self, identity: Identity, visible: PgSnapshot, flushed: LSN) -> bool:
        """Whether the database is no longer the one of this checkpoint."""
        return (
            identity != self.identity
            or visible.xmax < self.visible.xmax  # an older state of this very database was restored
            or 0 < flushed < self.flushed  # … and has had as many transactions since as before
            or visible.xmax - self.visible.xmin >= 2**31  # more than 32 bits can tell
        )

    def is_current(self, visible: PgSnapshot, flushed: LSN) -> bool:
        """Whether nothing was committed anywhere since."""
        return visible == self.visible and visible.whole and not 0 < flushed < self.flushed


@dataclass(slots=True)
class Progress:
    """How far the table has been followed. It outlives connections and streams."""

    checkpoint: Checkpoint | None = None
    unseen: set[int] = field(default_factory=set)
    """Transactions that a stream has delivered and that a query may not see yet."""
    columns: Mapping[str, Column] | None = None
    """Of the table, as last described. None until it has been described once."""
