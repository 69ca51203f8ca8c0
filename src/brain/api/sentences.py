"""What is wrong with a value of a request, as a sentence: the field, the value and the rule.

pydantic finds what is wrong; its own messages ("Extra inputs are not permitted") name neither.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from brain.contract.messages import MAX_ID_BYTES, STATUSES, shown

MAX_ERRORS = 20
"""Sentences of an answer: a body of 1 MiB can have 100 000 unknown fields."""

_ID = f"a text of 1 to {MAX_ID_BYTES} bytes"
_TIME = "an ISO 8601 time with a zone, such as 2026-11-21T09:30:00.123456Z"

RULES: Mapping[str, str] = {
    "id": _ID,
    "run_id": _ID,
    "status": f"one of {', '.join(STATUSES)}",
    "progress": "a number from 0 to 100, or null",
    "task_id": "a text, or null",
    "agent": "a text, or null",
    "started_at": f"{_TIME}, or null",
    "completed_at": f"{_TIME}, or null",
    "error": "a text, or null",
}
"""What each field of a request takes."""

BREAKS_RULE = "rule"
"""The type of our own error where RULES has the whole sentence."""

_RULE = "{field} is {rule}, not {value}"

SENTENCES: Mapping[str, str] = {
    "extra_forbidden": "the body has an unknown field {field} with the value {value}: "
    "the fields here are {known}",
    "literal_error": _RULE,
    "string_type": _RULE,
    "float_type": _RULE,
    "finite_number": _RULE,
    "greater_than_equal": _RULE,
    "less_than_equal": _RULE,
    BREAKS_RULE: _RULE,
    "string_unicode": "{field} must not contain half a surrogate pair, which is no character: "
    "{value}",
    "value_error": "{field} {message}: {value}",
}
"""pydantic's type of an error → the sentence."""


def sentences(
    errors: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None
) -> tuple[tuple[str, str], ...]:
    """Pairs of a field and the sentence about it, for at most MAX_ERRORS."""
    found: dict[str, str] = {}
    for error in errors:
        where = [str(each) for each in error["loc"] if each not in ("path", "query", "body")]
        name = where[0] if where else ""
        value = error["input"]
        field = field_name(name)
        if field in found:  # a union reports an error for each of its members
            continue
        if not name:
            field, template, value = "body", "the body {message}", {}
        else:
            template = SENTENCES.get(error["type"], _RULE)
        found[field] = template.format(
            field=field,
            value=shown(value),
            rule=RULES.get(name, "not valid"),
            known=", ".join(model.model_fields) if model is not None else "",
            message=str(error.get("ctx", {}).get("error", "")),
        )
        if len(found) == MAX_ERRORS:
            break
    return tuple(found.items())


def field_name(name: str) -> str:
    """For an answer: a name that is no plain word is quoted in ASCII, and cut."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 40 else shown(name)
