"""The documents of /readyz of all workers as one: pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

Document: TypeAlias = Mapping[str, Any]

SUMS: Final = ("clients", "lagging")
MOST: Final = ("lag_seconds", "log_lag_seconds", "epoch", "position", "runs")
LEAST: Final = ("since_seconds", "resume_seconds")
LISTS: Final = ("warnings", "rejected")

OWN: Final = ("source", "code", "detail", "role", "lag_seconds", "clients", "lagging")
"""What each worker's entry has of its own document."""


def merged(workers: Sequence[tuple[Document, Document | None]]) -> dict[str, Any]:
    """One document for all workers: ready if one of them is.

    Each worker is given as its entry (`worker`, `pid`, `state`) and its document, which is None if
    the worker has not answered. A field that cannot be merged, such as `detail`, is that of the
    first worker that is ready, or else of the first that has answered. The other fields have a rule
    above.
    """
    documents = [document for _, document in workers if document is not None]
    ready = [document for document in documents if document["ready"]]
    counted = ready or documents
    answer: dict[str, Any] = {"ready": False, **(counted[0] if counted else {})}
    rules = ((SUMS, sum, documents), (MOST, max, counted), (LEAST, min, counted))
    for names, rule, of in rules:
        for name in names:
            values = [each[name] for each in of if each.get(name) is not None]
            if values:
                answer[name] = rule(values)
    if any(each.get("role") == "leader" for each in documents):
        answer["role"] = "leader"
    for name in LISTS:
        answer[name] = _distinct(entry for each in documents for entry in each.get(name) or ())
    answer["workers"] = [
        {**entry, **{name: document[name] for name in OWN if name in document}}
        if document is not None
        else dict(entry)
        for entry, document in workers
    ]
    return answer


def _distinct(entries: Iterable[Any]) -> list[Any]:
    return list({json.dumps(entry, sort_keys=True): entry for entry in entries}.values())
