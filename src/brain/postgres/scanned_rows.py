"""The rows of one scan as they arrive: which of them are news, and which runs were not found."""

from collections.abc import Callable, Collection
from typing import TypeAlias

from brain.contract.events import Known
from brain.contract.messages import ID, Run
from brain.postgres.connection import Row
from brain.postgres.decoder import Decoder, is_expressible
from brain.postgres.snapshots import PgSnapshot, widen

Keep: TypeAlias = Callable[[Run, int], bool]
"""Whether to report a row, of which this is the id of the transaction that wrote it: 0 if that was
so long ago that nobody can tell."""

Leave: TypeAlias = Callable[[str, int], object]
"""Receives the id of a row that is no run, and that of its transaction, as for Keep."""


class ScannedRows:
    """Created before the scan begins: a run that is inserted during it is not missing.

    `seen`: the versions of the checkpoint since which the scan looks.
    """

    def __init__(
        self,
        decoder: Decoder,
        known: Known,
        seen: Collection[tuple[str, str | None]],
        keep: Keep | None,
        leave: Leave | None,
    ) -> None:
        self.changed: list[Run] = []
        """What no piece of a Snapshot has yet."""
        self.missing = set(known.unfinished())
        """The unfinished runs of the board that were not found."""
        self.rejected: list[str] = []
        """The runs of the board that the contract can no longer express."""
        self.versions: set[tuple[str, str | None]] = set()
        """As in Checkpoint.versions."""
        self._decoder = decoder
        self._known = known
        self._seen = seen
        self._keep = keep
        self._leave = leave

    def take(self, row: Row, visible: PgSnapshot) -> None:
        """A row of the scan, whose statement sees `visible`."""
        _, _, xmin, *values = row
        run_id = values[ID]
        if run_id is None:
            if xmin is not None:  # a row, and not the one of NULLs
                self._decoder(values)
            return
        self.missing.discard(run_id)
        xid = widen(int(xmin), visible.xmax) if xmin is not None else 0
        if xid >= visible.xmin:
            self.versions.add((run_id, xmin))
        if (run_id, xmin) in self._seen:
            return
        run = self._decoder(values)
        xid = xid if xid < visible.xmax else 0
        if run is None:
            if run_id in self._known:
                self.rejected.append(run_id)
            if self._leave is not None and is_expressible(run_id):
                self._leave(run_id, xid)
        elif self._keep is None or self._keep(run, xid):
            self.changed.append(run)

    def take_changed(self) -> list[Run]:
        taken, self.changed = self.changed, []
        return taken
