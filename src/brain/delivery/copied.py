"""A board that takes over another one: that of a node of the same log (nodes/relay.py).

Nodes that share a log are one history. So what clients were sent on another node has the same time
here, and a client may come back with it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from brain.contract.events import Image
from brain.contract.messages import ACTIVE, ID, STATUS, Micros, Run
from brain.contract.subscription import Facet
from brain.delivery.log import DELETED, OVERHEAD, Entry, Log
from brain.delivery.tombstones import ANYTHING

MAX_REFUSED = 100
"""Spans of refused times. Nodes have one for each change of the leader; the oldest are
forgotten."""


class Copied:
    """The base of Board, which declares and explains what is used here."""

    seq: int
    time: Micros
    last_time: Micros
    floor: int
    floor_time: Micros
    dead_floor: int
    dead_floor_time: Micros
    begun: bool
    size: int
    tombstones: int
    log: Log
    _runs: dict[str, Entry]
    _done: OrderedDict[str, None]
    _unfinished: set[str]
    _unheld: tuple[Facet, ...]
    _refused: Sequence[tuple[Micros, Micros]]
    _encode: Callable[[Run, Micros], bytes]
    _encode_deleted: Callable[[str, Micros], bytes]
    _forget: Callable[[Entry | None], None]
    _advance: Callable[[Micros], None]

    @property
    def ended_early(self) -> bool:
        """Whether a run that is not held may have been anything (T4)."""
        return self._unheld is ANYTHING

    @property
    def refused(self) -> Sequence[tuple[Micros, Micros]]:
        """Spans of times that no message bears, and at which every `since` is a gap (R9)."""
        return self._refused

    def _refuse(self, spans: Sequence[tuple[Micros, Micros]]) -> None:
        if spans:
            held = [each for each in {*self._refused, *spans} if each[1] > self.floor_time]
            self._refused = tuple(sorted(held)[-MAX_REFUSED:])

    def take_over(self, image: Image) -> list[tuple[Entry, tuple[Facet, ...], bool]]:
        """Returns what to push: nothing, if this board has not begun."""
        if image.new:
            for entry in list(self._runs.values()):
                self._forget(entry)
            self.log.entries.clear()
            self.log.seqs.clear()
            self.log.times.clear()
            self.seq += 1
            self.floor = self.dead_floor = self.seq
            self.time, self.begun = 0, False
        self._refuse(image.refused)
        pushes = [self._hold(*each) for each in image.entries]
        self._unheld = ANYTHING if image.ended_early else self._unheld
        if not self.begun:
            self.floor_time, self.dead_floor_time = image.floor_time, image.dead_floor_time
            self.time, self.last_time, self.begun = image.time, image.last_time, True
            return []
        self._advance(image.time)
        if image.dead_floor_time > self.dead_floor_time:
            self.seq += 1
            self.dead_floor, self.dead_floor_time = self.seq, image.dead_floor_time  # (T6)
        return pushes

    def _hold(
        self, time: Micros, run: Run, facets: tuple[Facet, ...], xid: int
    ) -> tuple[Entry, tuple[Facet, ...], bool]:
        """Make this the run's newest entry, as another board has it."""
        run_id = run[ID]
        self._forget(self._runs.get(run_id))
        self.seq += 1
        self.time = time = max(self.time, time)
        dead = run[STATUS] == DELETED
        frame = self._encode_deleted(run_id, time) if dead else self._encode(run, time)
        entry: Entry = (self.seq, time, run, frame, facets, xid)
        self._runs[run_id] = entry
        self.log.append(entry)
        self.size += OVERHEAD + 2 * len(frame)
        self.tombstones += dead
        if run[STATUS] in ACTIVE:
            self._unfinished.add(run_id)
        else:
            self._done[run_id] = None
        return entry, facets, False
