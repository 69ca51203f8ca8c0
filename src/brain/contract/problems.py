"""Problem documents (RFC 9457): the one form of every error that Brain answers over HTTP."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

CONTENT_TYPE: Final = "application/problem+json"


def problem_document(
    status: int, detail: str, *, instance: str = "", errors: Iterable[tuple[str, str]] = ()
) -> dict[str, object]:
    """`errors` are pairs of a field and what is wrong with it; empty members are left out."""
    document: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
    }
    if instance:
        document["instance"] = instance
    if listed := [{"field": field, "message": message} for field, message in errors]:
        document["errors"] = listed
    return document
