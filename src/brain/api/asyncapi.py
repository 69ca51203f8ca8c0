"""/asyncapi.json: what goes over `/ws`, as an AsyncAPI 3 document, made from the code's tables.

AsyncAPI has no place for close codes and for what is answered before the upgrade: they are in
`x-close-codes` and `x-rejections`, with whether to come back.
"""

from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from brain import __version__
from brain.access.rejections import REJECTIONS
from brain.api.openapi import FILTER, TOKEN
from brain.contract.close_codes import CLOSE_CODES
from brain.contract.include import (
    INCLUDE,
    DeletedMessage,
    Include,
    ReadyMessage,
    SourceMessage,
)
from brain.contract.messages import STATUSES, TYPES, WSMessage

TARGET: Final = "/asyncapi.json"

_TIME: Final = "2026-11-21T09:30:04.502771Z"
_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "run_update": {"status": "running", "progress": 40, "agent": "agent-1", "started_at": _TIME},
    "run_complete": {"status": "completed", "started_at": _TIME, "completed_at": _TIME},
    "run_failed": {"status": "failed", "completed_at": _TIME, "error": "out of memory"},
}
_SUMMARIES: Final = {
    "run_update": "A run is queued or running, and has just changed",
    "run_complete": "A run has completed, or a completed run has changed",
    "run_failed": "A run has failed, or a failed run has changed",
}

_INCLUDED: Final[dict[Include, tuple[type[BaseModel], str, dict[str, Any]]]] = {
    "deleted": (
        DeletedMessage,
        "A run was deleted, or its row can no longer be shown",
        {"type": "run_deleted", "data": {"id": "run-1"}, "timestamp": _TIME},
    ),
    "ready": (
        ReadyMessage,
        "What `snapshot` or `since` asked for has been sent",
        {"type": "ready", "timestamp": _TIME},
    ),
    "source": (
        SourceMessage,
        "How far behind the database Brain may be: at once, at each change, and every 5 s",
        {
            "type": "source",
            "data": {"source": "replication", "lag_seconds": 0.4},
            "timestamp": _TIME,
        },
    ),
}
"""Word of `include` → its message, what it is, and an example."""

_BEGINNING: Final[dict[str, Any]] = {
    "snapshot": {
        "description": "first the current state of all queued and running runs",
        "type": "string",
        "enum": ["true", "false"],
    },
    "since": {
        "description": "first the current state of every run that changed at or after this time: "
        "the timestamp of the last message, or of the answer of GET /api/runs",
        "type": "string",
        "format": "date-time",
    },
    "include": {
        "description": "messages beyond those of the contract; repeatable, or by commas",
        "type": "array",
        "items": {"type": "string", "enum": [*INCLUDE]},
    },
}

_SAID: Final[dict[str, dict[str, Any]]] = {
    "ping": {
        "summary": "Answered with `pong`: a browser cannot send a ping of the protocol",
        "contentType": "text/plain",
        "payload": {"type": "string", "const": "ping"},
        "examples": [{"payload": "ping"}],
    },
    "pong": {
        "summary": "The answer to `ping`",
        "contentType": "text/plain",
        "payload": {"type": "string", "const": "pong"},
        "examples": [{"payload": "pong"}],
    },
}
_TOKEN: Final[dict[str, Any]] = {
    "summary": "A token, as the first message: for clients that cannot send a header",
    "contentType": "text/plain",
    "payload": {"type": "string", "description": "a JWT"},
}


def asyncapi(*, host: str, protocol: str, requires_token: bool) -> dict[str, Any]:
    _, schemas = models_json_schema(
        [
            (WSMessage, "serialization"),
            *((model, "serialization") for model, _, _ in _INCLUDED.values()),
        ],
        ref_template="#/components/schemas/{model}",
    )
    included = {
        str(example["type"]): _of_include(word) for word, (_, _, example) in _INCLUDED.items()
    }
    messages = {name: _message(name) for name in _EXAMPLES} | included | _SAID
    if requires_token:
        messages["token"] = _TOKEN
    sent = [*_EXAMPLES, *included]
    received = ["ping", *(["token"] if requires_token else [])]
    server: dict[str, Any] = {"host": host, "protocol": protocol, "description": "This Brain"}
    components: dict[str, Any] = {"schemas": schemas["$defs"], "messages": messages}
    if requires_token:
        server["security"] = [{"$ref": "#/components/securitySchemes/token"}]
        components["securitySchemes"] = {"token": TOKEN}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Brain",
            "version": __version__,
            "license": {"name": "MIT"},
            "description": "Pushes every change of the table of runs to every client. "
            "The HTTP API is in /openapi.json, the rules of reconnecting in protocol.md.",
        },
        "defaultContentType": "application/json",
        "servers": {"brain": server},
        "channels": {
            "changes": {
                "address": "/ws",
                "title": "The changes of runs",
                "description": "Values of one parameter are alternatives, and a run must match "
                "each parameter. `snapshot` and `since` exclude each other.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "query": _query()}},
                "x-close-codes": _close_codes(),
                "x-rejections": _rejections(),
            }
        },
        "operations": {
            "push": {
                "action": "send",
                "summary": "Each change of a run, and first what the query asks for",
                "channel": {"$ref": "#/channels/changes"},
                "messages": _references(sent),
            },
            "listen": {
                "action": "receive",
                "summary": "A client need not send anything",
                "channel": {"$ref": "#/channels/changes"},
                "messages": _references(received),
                "reply": {
                    "channel": {"$ref": "#/channels/changes"},
                    "messages": _references(["pong"]),
                },
            },
        },
        "components": components,
    }


def _references(names: list[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/changes/messages/{name}"} for name in names]


def _message(name: str) -> dict[str, Any]:
    statuses = [status for status in STATUSES if TYPES[status] == name]
    narrowed = {
        "type": {"const": name},
        "data": {"type": "object", "properties": {"status": {"enum": statuses}}},
    }
    message = {"type": name, "data": {"id": "run-1", **_EXAMPLES[name]}, "timestamp": _TIME}
    return {
        "summary": _SUMMARIES[name],
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/WSMessage"},
                {"type": "object", "properties": narrowed},
            ]
        },
        "examples": [{"payload": message}],
    }


def _of_include(word: Include) -> dict[str, Any]:
    model, what, example = _INCLUDED[word]
    return {
        "summary": f"{what}. With `include={word}` only",
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": [{"payload": example}],
    }


def _query() -> dict[str, Any]:
    filters = {
        each["name"]: {**each["schema"], "description": each["description"]} for each in FILTER
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": filters | _BEGINNING,
    }


def _close_codes() -> list[dict[str, Any]]:
    return [
        {"code": each.code, "meaning": each.meaning, "come_back": each.retry.value}
        for each in CLOSE_CODES.values()
    ]


def _rejections() -> list[dict[str, Any]]:
    """What Brain answers instead of an upgrade."""
    return [
        {"status": each.status, "meaning": each.meaning, "come_back": each.retry.value}
        for each in REJECTIONS.values()
        if each.status is not None
    ]


def add_asyncapi(app: FastAPI, *, requires_token: bool) -> None:
    async def document(request: Request) -> Response:
        # A proxy that ends TLS says so. What else a client sends comes back to itself alone.
        scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
        protocol = "wss" if scheme == "https" else "ws"
        return JSONResponse(
            asyncapi(host=request.url.netloc, protocol=protocol, requires_token=requires_token)
        )

    app.add_api_route(TARGET, document, include_in_schema=False)
