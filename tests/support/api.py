"""The HTTP API alone, on a real socket."""

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import httpx
import uvicorn
from fastapi import FastAPI

from brain.api.repository import RunRepository, open_repository
from brain.api.routes import create_api
from brain.contract.messages import Status
from brain.delivery.board import Board
from brain.postgres.column_map import ColumnMap
from brain.postgres.database_url import parse_url
from brain.postgres.decoder import Decoder
from brain.postgres.table import Table
from brain.postgres.time_zone import DEFAULT, TimeZone
from tests.support.patience import PATIENCE


@asynccontextmanager
async def serving(
    url: str,
    *,
    board: Board | None = None,
    table: str = "public.runs",
    columns: str = "",
    statuses: Mapping[str, Status] | None = None,
    zone: TimeZone = DEFAULT,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that listens on a free port during the block."""
    decoder = Decoder(statuses or {}, 10_000, zone)
    async with open_repository(
        parse_url(url),
        replace(Table.parse(table), columns=ColumnMap.parse(columns)),
        decoder,
        Board(1 << 20) if board is None else board,
    ) as runs:
        app, current = _made.pop() if _made else _make()
        current.runs = runs
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # With the protocol named, asyncio turns Nagle off; with it on, an answer takes 40 ms.
        with socket.socket(proto=socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            # Not serve(), which installs signal handlers and takes a tenth of a second.
            await server.startup([listener])
            base = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # Reading the certificates, which no http:// needs, takes 20 ms of each client.
            async with httpx.AsyncClient(
                base_url=base, timeout=PATIENCE, trust_env=False, verify=False
            ) as client:
                yield client
            for each in server.servers:
                each.close()
                await each.wait_closed()
    _made.append((app, current))


class _Current:
    """The repository of the block that has the API."""

    runs: RunRepository

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runs, name)


_made: list[tuple[FastAPI, _Current]] = []
"""Those that no block has. To create one takes longer than most tests of it."""


def _make() -> tuple[FastAPI, _Current]:
    current = _Current()
    return create_api(cast("RunRepository", current)), current


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """What every error must be; returns its document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(answer.content)
    assert document["type"] == "about:blank"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"].startswith("/")
    assert "?" not in document["instance"]
    assert "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    return document


def fields(document: dict[str, Any]) -> list[str]:
    return [each["field"] for each in document["errors"]]
