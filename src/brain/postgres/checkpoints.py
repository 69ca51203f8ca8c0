"""The last good moment: as of when everything of the table is known."""

from dataclasses import dataclass
from typing import TypeAlias

from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot

Identity: TypeAlias = tuple[str | None, ...]
"""System identifier, timeline, database, table and its columns: when one of them changes, what was known of the table is void."""

NOWHERE = LSN(0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """As of when everything is known: the last good moment."""

    identity: Identity
    visible: PgSnapshot
    versions: frozenset[tuple[str, str | None]] = frozenset()
    """Id and xmin of the row versions that are known though they lie beyond the horizon, which an open transaction holds:
    the next answer will contain them again."""
    flushed: LSN = NOWHERE
    """How far the log was on the disk, and is for ever, unless an older state of this server is put back."""
    tree: frozenset[int] = frozenset()
    """Of which tables. One that was attached since has brought rows along that are older than the horizon."""
