"""What a client holds: the latest state of each run; of the finished ones not too many. Pure."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from brain.contract.messages import ACTIVE, RunData

Filter: TypeAlias = Mapping[str, Sequence[str]]
"""Field (`run_id` for the id) → the values that pass. None: every value."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of one run in the store."""

    id: str
    run: RunData | None
    """None: the run has left the store. Its row was deleted, or it no longer matches, or it has
    finished and others have finished since."""
    previous: RunData | None
    """What the store held before."""


class Store:
    """The runs that match a filter. Of the finished ones `max_finished`, those that ended last."""

    def __init__(self, wanted: Filter, max_finished: int) -> None:
        self._wanted = wanted
        self._max_finished = max_finished
        self._runs: dict[str, RunData] = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        """Ids of finished runs, the one that changed last at the end."""
        self.complete = False
        """Every run that matches is held. If not, finished ones may be missing."""

    def get(self, run_id: str) -> RunData | None:
        return self._runs.get(run_id)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[RunData]:
        return iter(self._runs.values())

    def take(self, run: RunData) -> list[Change]:
        """The run is now so. A filter of /ws also passes what it was just before."""
        change = self._put(run) if self._matches(run) else self._drop(run.id)
        return [each for each in (change, *self._evict()) if each is not None]

    def remove(self, run_id: str) -> list[Change]:
        change = self._drop(run_id)
        return [] if change is None else [change]

    def replace(self, runs: Iterable[RunData], *, complete: bool) -> list[Change]:
        """Hold these and no others. `runs`: those that changed last at the end."""
        listed = {run.id: run for run in runs}
        changes = [self._drop(run_id) for run_id in list(self._runs) if run_id not in listed]
        changes += map(self._put, listed.values())
        self.complete = complete
        changes += self._evict()
        return [each for each in changes if each is not None]

    def _matches(self, run: RunData) -> bool:
        values = {
            "run_id": run.id,
            "task_id": run.task_id,
            "agent": run.agent,
            "status": run.status,
        }
        return all(not wanted or values[name] in wanted for name, wanted in self._wanted.items())

    def _put(self, run: RunData) -> Change | None:
        known = self._runs.get(run.id)
        self._runs[run.id] = run
        self._done.pop(run.id, None)
        if run.status not in ACTIVE:
            self._done[run.id] = None
        return None if known == run else Change(run.id, run, known)

    def _drop(self, run_id: str) -> Change | None:
        self._done.pop(run_id, None)
        known = self._runs.pop(run_id, None)
        return None if known is None else Change(run_id, None, known)

    def _evict(self) -> list[Change | None]:
        dropped = []
        while len(self._done) > self._max_finished:
            self.complete = False
            dropped.append(self._drop(next(iter(self._done))))
        return dropped
