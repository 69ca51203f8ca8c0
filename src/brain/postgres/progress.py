"""How far the table has been followed: it outlives connections and streams."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from brain.postgres.checkpoints import Checkpoint
from brain.postgres.pgoutput import LSN
from brain.postgres.records import Records
from brain.postgres.table import Column


@dataclass(slots=True)
class Progress:
    checkpoint: Checkpoint | None = None
    unseen: set[int] = field(default_factory=set)
    """Transactions that a stream has delivered and that a query may not see yet."""
    columns: Mapping[str, Column] | None = None
    """Of the table, as last described. None until it has been described once."""
    streamed: bool = False
    """A stream, which names every delete, has been lost. The next Snapshot has to say that deletes
    may be unknown (T7 in delivery/tombstones.py)."""
    records: Records = field(default_factory=Records)
    durable: Checkpoint | None = None
    """The last mark, if nothing was read by a query since: a crash of PostgreSQL loses nothing."""
    mark: tuple[LSN, Checkpoint] | None = None
    """While polling: once the log has been flushed up to here, this checkpoint is durable."""

    def read_rows(self) -> None:
        """Call it before rows that a query has read are passed on."""
        self.records.settle(None)
        self.durable = self.mark = None

    def settle(self, checkpoint: Checkpoint) -> None:
        """What this checkpoint sees has been flushed since."""
        self.durable = checkpoint
        self.records.settle(checkpoint)

    def flushed(self, flushed: LSN, inserted: LSN) -> None:
        """While polling: where the log is flushed and written, after the last query."""
        if self.mark is not None and self.mark[0] <= flushed:
            self.settle(self.mark[1])
            self.mark = None
        if self.mark is None and self.checkpoint is not None and inserted:
            self.mark = inserted, self.checkpoint

    def notice(self, epoch: str | None) -> None:
        """Look whether PostgreSQL has crashed. If it may have lost something that was sent, the
        next poll finds a new history.
        """
        if self.checkpoint is None or self.checkpoint.epoch == epoch:
            return
        if self.durable is not None:
            self.checkpoint = self.durable = replace(self.durable, epoch=epoch)
            self.records.crashed(self.checkpoint)
