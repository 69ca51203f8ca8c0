"""The operator's routes, and the plain GET of /ws."""

import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from brain.access.rejections import Rejection
from brain.metrics import Metrics, Parts, exposition
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


_NO_METRICS: Final = "the supervisor of the workers does not answer\n"


def _shown(description: str, example: Any, content_type: str = "application/json") -> Any:
    content = {content_type: {"examples": {"example": {"value": example}}}}
    return {"description": description, "content": content}


def _seconds(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 3) if math.isfinite(value) else None


Collect: TypeAlias = Callable[[], Awaitable[dict[str, Any] | None]]
"""Asks all workers for what `report` says, as one. None if their supervisor does not answer."""

_ALONE: Final = {
    "code": "supervisor",
    "detail": "the supervisor does not answer: this is what one worker says of itself",
    "hint": "",
}


class Operations:
    def __init__(
        self, parts: Parts, server: ServerState, metrics: Metrics, collect: Collect | None = None
    ) -> None:
        """`collect`: if this process is one of several workers."""
        self._parts = parts
        self._server = server
        self._metrics = metrics
        self._collect = collect

    def report(self) -> dict[str, Any]:
        """What one of several workers says of itself."""
        return {"readiness": self.readiness(), "metrics": self._metrics.families()}

    def readiness(self) -> dict[str, Any]:
        parts, server = self._parts, self._server
        state, node = parts.state, parts.node()
        now = time.time()
        return {
            "ready": parts.board.begun and state.source != "none" and not server.closing,
            "source": state.source,
            "code": state.code,
            "detail": "the server is stopping" if server.closing else state.detail or None,
            "hint": state.hint or None,
            "lag_seconds": _seconds(parts.lag()) if parts.board.begun else None,
            "role": node.role,
            "epoch": node.epoch,
            "position": node.position,
            "log_lag_seconds": _seconds(node.lag),
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

    async def _readiness_of_all(self) -> dict[str, Any]:
        document = self.readiness()
        if self._collect is None:
            return document
        if (report := await self._collect()) is not None:
            return dict(report["readiness"])
        return {**document, "warnings": [*document["warnings"], _ALONE]}

    async def _metrics_of_all(self) -> bytes | None:
        if self._collect is None:
            return self._metrics.text()
        report = await self._collect()
        return None if report is None else exposition(report["metrics"])

    def add_to(self, app: FastAPI) -> None:
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
            document = await self._readiness_of_all()
            ready = document["ready"]
            if request.scope.get(BARE):
                document = {"ready": ready}
            return Response(
                json.dumps(document), 200 if ready else 503, media_type="application/json"
            )

        @app.get(
            "/metrics",
            tags=["operations"],
            summary="For Prometheus",
            response_class=PlainTextResponse,
            responses={
                200: _shown(
                    "docs/reference/metrics.md lists them", "brain_clients 40.0\n", "text/plain"
                ),
                503: _shown(
                    "The supervisor of the workers does not answer", _NO_METRICS, "text/plain"
                ),
            },
        )
        async def read_metrics() -> Response:
            text = await self._metrics_of_all()
            if text is None:
                # One worker's counters would look like a restart of the service.
                return PlainTextResponse(_NO_METRICS, 503)
            return Response(text, media_type=self._metrics.content_type)

        @app.get(PATH, include_in_schema=False)
        async def plain_get() -> Response:
            rejection = Rejection("version", "this is a WebSocket: connect to it with ws://")
            headers, body = answer(rejection, close=False)
            return Response(body, rejection.status, headers=headers)
