"""A metric as a worker tells it to its supervisor, and how those of several workers become one."""

from typing import Literal, TypeAlias, TypedDict

Merge: TypeAlias = Literal["sum", "most", "max", "min"]
"""How one number is made of those of several workers.

sum   What each worker has or does for itself, such as its clients.
most  A counter of what every worker sees, such as a change: what the one counted that saw most.
max   A gauge of which the highest, or the worst, counts.
min   A gauge of which the lowest counts: what a client finds at every worker.
"""


class Family(TypedDict):
    """`samples` are names, labels and values."""

    name: str
    type: str
    help: str
    merge: Merge
    samples: list[tuple[str, dict[str, str], float]]
