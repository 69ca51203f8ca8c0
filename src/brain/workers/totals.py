"""The metrics of all workers as one: pure.

A counter must never fall: Prometheus takes a fall for a restart, and counts the whole new value
once more. So what a worker had counted when it ended, and what a silent one had counted when it
last answered, stays in the totals.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeAlias

from brain.contract.families import Family, Merge

Sample: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample, and its labels."""

Values: TypeAlias = dict[Sample, float]

Metrics: TypeAlias = dict[str, Values]
"""By the name of the family."""

GAUGES: Final[dict[Merge, Callable[[Iterable[float]], float]]] = {
    "sum": sum,
    "max": max,
    "min": min,
}


class Totals:
    """What the processes report, each under a number that no other process ever had."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._last: dict[int, Metrics] = {}
        self._ended: Metrics = defaultdict(dict)
        """What the processes that have ended had counted, of rule `sum`."""
        self._begun: dict[int, Metrics] = {}
        """What the service had counted when the process began, of rule `most`."""
        self._most: Metrics = defaultdict(dict)
        """The most that was seen, of rule `most`."""

    def note(self, process: int, families: Iterable[Family]) -> None:
        """Take the values that a process has now."""
        self._last[process] = {}
        for family in families:
            self._families[family["name"]] = family
            self._last[process][family["name"]] = {
                (name, tuple(labels.items())): value for name, labels, value in family["samples"]
            }

    def end(self, process: int) -> None:
        """The process has ended. Its counters stay."""
        last = self._last.pop(process, {})
        begun = self._begun.pop(process, None)
        for family, values in last.items():
            rule = self._families[family]["merge"]
            if self._families[family]["type"] == "gauge":
                continue
            if rule == "sum":
                _add(self._ended[family], values)
            elif begun is not None:
                self._see(family, values, begun)

    def merged(self, answered: Collection[int]) -> list[Family]:
        """The metrics of the service. The gauges are those of the processes that have answered."""
        self._place()
        return [self._merged(family, answered) for family in self._families.values()]

    def _place(self) -> None:
        """Say of each new process what the service had counted when it began.

        A process that began later than another has counted less of what both see. This waits until
        all have been noted: then both have counted up to now.
        """
        old = {process: self._last[process] for process in self._begun if process in self._last}
        for process in self._last.keys() - self._begun.keys():
            self._begun[process] = defaultdict(dict)
            for family, values in self._last[process].items():
                if self._families[family]["merge"] != "most":
                    continue
                for sample, value in values.items():
                    now = [
                        self._begun[other][family].get(sample, 0) + metrics[family][sample]
                        for other, metrics in old.items()
                        if sample in metrics.get(family, ())
                    ]
                    before = self._most[family].get(sample, 0)
                    self._begun[process][family][sample] = max(now) - value if now else before

    def _merged(self, family: Family, answered: Collection[int]) -> Family:
        name, rule = family["name"], family["merge"]
        values: Values = {}
        if family["type"] == "gauge":
            present = [self._last[each].get(name, {}) for each in answered if each in self._last]
            for sample in dict.fromkeys(sample for each in present for sample in each):
                values[sample] = GAUGES[rule](each[sample] for each in present if sample in each)
        elif rule == "sum":
            _add(values, self._ended[name])
            for metrics in self._last.values():
                _add(values, metrics.get(name, {}))
        else:
            for process, metrics in self._last.items():
                self._see(name, metrics.get(name, {}), self._begun[process])
            values = self._most[name]
        return {
            **family,
            "samples": [
                (sample, dict(labels), value) for (sample, labels), value in values.items()
            ],
        }

    def _see(self, family: str, values: Values, begun: Metrics) -> None:
        most = self._most[family]
        for sample, value in values.items():
            most[sample] = max(most.get(sample, 0), begun[family].get(sample, 0) + value)


def _add(sums: Values, values: Values) -> None:
    for sample, value in values.items():
        sums[sample] = sums.get(sample, 0) + value
