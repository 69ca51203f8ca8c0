"""The body of a request: bytes in, a validated model out.

Every error names the field, the value and the rule. Python's parser alone would keep the last of
two equal keys, take NaN for a number, and lose the digits of a number that no float holds.
"""

import json
import math
import re
from typing import Any, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from brain.api.errors import InvalidRequest
from brain.api.sentences import field_name, sentences
from brain.contract.messages import shown

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 32
"""Lists and objects in one another. A run is one object without any."""

MAX_DIGITS = 18
"""Of a whole number. No field of a run takes a longer one."""

_not_brackets = re.compile(rb'"(?:[^"\\]|\\.)*"|[^][{}"]+', re.DOTALL)


async def read(request: Request, model: type[Model]) -> Model:
    """Raises InvalidRequest."""
    try:
        data = await request.body()
    except ClientDisconnect:  # nobody waits for the answer
        raise _invalid("the body is not complete: the client has gone") from None
    document = parse(data)
    if not isinstance(document, dict):
        raise _invalid(f"the body is a JSON object with the fields of a run, not {shown(document)}")
    for name, value in document.items():
        if not _is_text(name):  # pydantic names no field here
            message = f"the body has an unknown field {shown(name)} with the value {shown(value)}"
            raise InvalidRequest(message, (field_name(name), message))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        fields = sentences(error.errors(include_url=False), model)
        detail = "; ".join(message for _, message in fields[:3])
        raise InvalidRequest(detail, *fields) from None


def parse(data: bytes) -> object:
    """JSON (RFC 8259). Raises InvalidRequest."""
    if not data:
        raise _invalid("the body is a JSON object with the fields of a run, and this one is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {data[error.start]:#04x} at position {error.start}"
        raise _invalid(f"the body is not UTF-8: {wrong}") from None
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=Unrepresentable,
        )
    except json.JSONDecodeError as error:
        where = f"at position {error.pos}: {shown(text[error.pos :])}"
        raise _invalid(f"the body is not JSON: {error.msg} {where}") from None
    except RecursionError:
        raise _too_deep() from None
    if _is_deep(data):
        raise _too_deep()
    return document


class Unrepresentable(float):
    """A number as it was written, if no float has its value: 1e400, NaN. It is not finite."""

    def __new__(cls, text: str) -> Self:
        self = super().__new__(cls, math.nan)
        self.text = text
        return self

    text: str

    def __str__(self) -> str:
        return self.text


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else Unrepresentable(text)


def _integer(text: str) -> float:
    # A longer one would lose digits, or (above 4300) not be read at all.
    return int(text) if len(text) <= MAX_DIGITS else Unrepresentable(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, value in pairs:
            if name in seen:
                message = (
                    f"the body has the field {shown(name)} twice, and {shown(value)} is another"
                )
                raise InvalidRequest(message, (field_name(name), message))
            seen.add(name)
    return found


def _is_text(name: str) -> bool:
    """Without an unpaired surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _is_deep(data: bytes) -> bool:
    """Of a text that is JSON: each round removes the innermost lists and objects."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _not_brackets.sub(b"", data)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _too_deep() -> InvalidRequest:
    return _invalid(
        f"the body is nested more than {MAX_DEPTH} levels deep: a run is one JSON object of texts "
        "and numbers"
    )


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, ("body", message))
