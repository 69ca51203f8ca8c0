"""The operator's routes, and the plain GET of /ws."""

import json
import math
import time
from dataclasses import asdict
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from brain.access.rejections import Rejection
from brain.metrics import Metrics, Parts
from brain.server.answers import answer
from brain.server.handshake import PATH
from brain.server.probes import BARE
from brain.server.state import ServerState

_READY: Final[dict[str, Any]] = {
    "ready": True,
    "source": "poll",
    "code": "wal_level",
    "detail": "wal_level is replica",
    "hint": "a sentence that says what to run",
    "lag_seconds": 0.012,
    "role": "leader",
    "epoch": 4711,
    "position": 4812,
    "log_lag_seconds": 0.0,
    "since_seconds": 86.4,
    "since_detail": "a sentence, if clients from before had to start over",
    "resume_seconds": 3600.0,
    "resume_detail": "a sentence, if clients cannot resume over a restart",
    "clients": 40,
    "lagging": 0,
    "runs": 1234,
    "warnings": [],
    "rejected": [],
}
_AWAY: Final[dict[str, Any]] = {
    **_READY,
    "ready": False,
    "source": "none",
    "code": "away",
    "detail": "connection refused",
    "hint": "a sentence that says what to do",
    "lag_seconds": 4.2,
}


def _shown(description: str, example: Any, content_type: str = "application/json") -> Any:
    content = {content_type: {"examples": {"example": {"value": example}}}}
    return {"description": description, "content": content}


def add_operations(app: FastAPI, parts: Parts, server: ServerState, metrics: Metrics) -> None:
    @app.get(
        "/healthz",
        tags=["operations"],
        summary="Alive: the process answers",
        responses={200: _shown("It does", {"status": "alive"})},
    )
    async def healthz() -> Response:
        return Response('{"status":"alive"}', media_type="application/json")

    @app.get(
        "/readyz",
        tags=["operations"],
        summary="Ready: the database is being followed",
        responses={200: _shown("It is", _READY), 503: _shown("It is not", _AWAY)},
    )
    async def readyz(request: Request) -> Response:
        state, node = parts.state, parts.node()
        now = time.time()
        ready = parts.board.begun and state.source != "none" and not server.closing
        detail = {
            "source": state.source,
            "code": state.code,
            "detail": "the server is stopping" if server.closing else state.detail or None,
            "hint": state.hint or None,
            "lag_seconds": round(parts.lag(), 3) if parts.board.begun else None,
            "role": node.role,
            "epoch": node.epoch,
            "position": node.position,
            "log_lag_seconds": round(node.lag, 3) if math.isfinite(node.lag) else None,
            "since_seconds": round(parts.since(now), 3),
            "since_detail": parts.records.voided or None,
            "resume_seconds": round(parts.resume(now), 3),
            "resume_detail": parts.records.detail or None,
            "clients": parts.hub.clients,
            "lagging": parts.hub.lagging,
            "runs": len(parts.board),
            "warnings": [
                *(
                    {
                        "code": each.code,
                        "detail": f"{each.detail}: {each.effect}",
                        "hint": each.hint,
                    }
                    for each in state.warnings
                ),
                *parts.records.warnings(),
            ],
            "rejected": [asdict(reason) for reason in parts.decoder.reasons],
        }
        document = {"ready": ready} | ({} if request.scope.get(BARE) else detail)
        return Response(json.dumps(document), 200 if ready else 503, media_type="application/json")

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="For Prometheus",
        response_class=PlainTextResponse,
        responses={
            200: _shown(
                "docs/reference/metrics.md lists them", "brain_clients 40.0\n", "text/plain"
            )
        },
    )
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get(PATH, include_in_schema=False)
    async def plain_get() -> Response:
        rejection = Rejection("version", "this is a WebSocket: connect to it with ws://")
        headers, body = answer(rejection, close=False)
        return Response(body, rejection.status, headers=headers)
