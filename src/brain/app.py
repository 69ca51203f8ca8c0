"""The only module that wires the others: settings in, a running Brain out."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import structlog
from fastapi import FastAPI, Request, Response

from brain.access.jwks import KeySet, Secret
from brain.access.limits import ConnectionLimiter
from brain.access.policy import Policy
from brain.access.tokens import Tokens
from brain.api.repository import open_repository
from brain.api.routes import create_api
from brain.config import Settings
from brain.contract.close_codes import GAP
from brain.contract.events import Snapshot
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.embedded.server import embedded
from brain.metrics import Metrics, Parts
from brain.postgres.connection import connect, redact
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.table import init_sql
from brain.server.http import ServerState, http_answer
from brain.server.listener import Server, listen
from brain.server.websocket import Connections

log = structlog.get_logger()

PENDING = 4 * 1024 * 1024
"""Bytes waiting for the next flush above which the source waits: a transaction of a million rows must not outrun the board."""

DRAIN = 0.005

COLLECTOR = (2_000, 2, 2_500)
"""Thresholds of the garbage collector's three generations: see `_pump`."""

FIRST_LOOK = 3.0
"""Seconds for the first look at the table before clients are let in without it."""


@dataclass(frozen=True)
class Running:
    """What a person wants to know who has just started Brain."""

    port: int
    database: str
    """Without the password."""
    embedded_port: int | None
    trouble: str | None = None
    """Why the table is not followed, if it is not."""


async def serve(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Run until SIGTERM or SIGINT. `announce` is called once connections are taken and the table is read, or cannot be.

    Raises EmbeddedError, ListenError.
    """
    task = asyncio.current_task()
    assert task is not None
    # Before there is a server to stop, and behind it: an embedded PostgreSQL that is being made, started or stopped is a child that
    # would outlive us.
    _on_signal(task.cancel)
    with contextlib.suppress(asyncio.CancelledError), contextlib.ExitStack() as closing:
        sockets = listen(settings.host, settings.port)
        for each in sockets:
            closing.enter_context(each)
        async with _database(settings) as (url, embedded_port):
            port = sockets[0].getsockname()[1]
            running = Running(port, redact(url), embedded_port)
            await _serve(
                settings, url, sockets, lambda trouble: announce(replace(running, trouble=trouble))
            )
            _on_signal(task.cancel)
    log.info("stopped")


def _on_signal(stop: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[tuple[str, int | None]]:
    """The URL of the database, and the port of the embedded one if it is that."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), None
        return
    async with embedded(settings.data_dir, settings.postgres_port) as server:
        async with await connect(server.url, "brain-init") as conn:
            await conn.execute(init_sql(settings.table).encode())
        yield server.url, server.port


async def _serve(
    settings: Settings,
    url: str,
    sockets: list[socket.socket],
    announce: Callable[[str | None], None],
) -> None:
    loop = asyncio.get_running_loop()
    decoder = Decoder(settings.status_map, settings.max_text)
    board = Board(settings.board_memory, push_unchanged=settings.push_unchanged)
    metrics = Metrics(time.time)
    hub = Hub(
        board,
        interval=settings.flush_interval,
        clock=loop.time,
        call_later=loop.call_later,
        observe=metrics.observe,
    )
    follow = Follow(
        url,
        settings.table,
        decoder,
        board,
        mode=settings.source,
        interval=settings.poll_interval,
        application="brain",
    )
    policy = Policy(
        networks=settings.allowed_networks,
        origins=settings.allowed_origins,
        hosts=settings.allowed_hosts,
        trusted_proxies=settings.trusted_proxies,
        machine=socket.gethostname(),
    )
    limiter = ConnectionLimiter(
        policy,
        max_connections=settings.max_connections,
        max_connections_per_ip=settings.max_connections_per_ip,
    )
    state = ServerState(
        policy, limiter, Connections(hub, loop, settings.ping_timeout), tokens=_tokens(settings)
    )
    parts = Parts(board, hub, follow.state, limiter, decoder, state.rejections.counts, loop.time)
    metrics.read(parts)
    log.info(
        "who may come in",
        **policy.allowed(),
        connections_per_ip=settings.max_connections_per_ip or "any number",
        tokens=str(state.tokens.keys) if state.tokens is not None else "not asked for",
    )
    if state.tokens is not None:
        await state.tokens.keys.begin()
    async with open_repository(url, settings.table, decoder, board) as runs:
        api = create_api(runs, state.tokens, state.rejections, policy.client_address)
        _operations(api, parts, state, metrics)
        server = Server(
            api, state, timeout=settings.ping_timeout, ping_interval=settings.ping_interval
        )
        _on_signal(server.stop)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(
                _pump(follow, board, hub, state.connections), name="follow"
            )
            await _first_look(parts)
            announcing = tasks.create_task(_announce(server, parts, announce), name="announce")
            await server.serve(sockets)
            following.cancel()
            # psycopg asks the server first to cancel its statement, for 10 s if that is silent, unless it is cancelled again.
            loop.call_later(1.0, following.cancel)
            announcing.cancel()


def _tokens(settings: Settings) -> Tokens | None:
    keys: Secret | KeySet
    if settings.jwt_secret is not None:
        keys = Secret(settings.jwt_secret.get_secret_value())
    elif settings.jwt_jwks is not None:
        keys = KeySet(settings.jwt_jwks)
    else:
        return None
    return Tokens(keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer)


async def _pump(follow: Follow, board: Board, hub: Hub, connections: Connections) -> None:
    """From the source over the board to the hub: the one way through.

    What was imported, and later what the first Snapshot made, stays: the collector need not look at it again. Its rounds are
    small, because a connection is ten objects that it tracks and that are never garbage: with 10 000 clients connecting, a round
    of the middle generation took 60 ms for what had gathered at (20 000, 20, 100). A full round, which takes 40 ms with all of
    them there, is due when 15 million more objects have been made than freed.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR)
    async with contextlib.aclosing(follow.events()) as events:
        async for event in events:
            begun = board.begun
            if begun and isinstance(event, Snapshot) and event.new:
                await _begin_anew(connections)
            hub.push(board.apply(event))
            if board.begun and not begun:
                gc.collect()
                gc.freeze()
            while hub.pending_bytes > PENDING:
                await asyncio.sleep(DRAIN)


async def _begin_anew(connections: Connections) -> None:
    """What has ended since the last look is in no Snapshot, and nobody can be told of it: everyone is told to come back."""
    everyone = connections.everyone()
    log.warning("the table begins anew", clients=len(everyone))
    for i, connection in enumerate(everyone):
        connection.end(GAP.code, GAP.reason)
        if i % 100 == 99:
            await asyncio.sleep(0)


async def _first_look(parts: Parts) -> None:
    """Wait until the table was read, or it is known why it cannot be. The sockets listen: who comes early waits in the backlog,
    in place of being told to come back.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_LOOK):
            while not parts.board.begun and parts.state.detail == "connecting":
                await asyncio.sleep(0.01)


async def _announce(server: Server, parts: Parts, announce: Callable[[str | None], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    announce(None if parts.board.begun else parts.state.detail)


def _operations(app: FastAPI, parts: Parts, server: ServerState, metrics: Metrics) -> None:
    """The routes for who runs Brain, and the plain GET of /ws."""

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["operations"], summary="Alive: the process answers")
    async def healthz() -> Response:
        return Response('{"status":"alive"}', media_type="application/json")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["operations"], summary="Ready: the database is being followed")
    async def readyz() -> Response:
        state = parts.state
        ready = parts.board.begun and state.source != "none" and not server.closing
        document = {
            "ready": ready,
            "source": state.source,
            "code": state.code,
            "detail": "the server is going down" if server.closing else state.detail or None,
            "hint": state.hint or None,
            "lag_seconds": round(parts.lag(), 3) if parts.board.begun else None,
            "clients": parts.hub.clients,
            "lagging": parts.hub.lagging,
            "runs": len(parts.board),
        }
        return Response(json.dumps(document), 200 if ready else 503, media_type="application/json")

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", tags=["operations"], summary="For Prometheus")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/ws", include_in_schema=False)
    async def plain_get(_: Request) -> Response:
        headers, body = http_answer(
            426,
            "this is a WebSocket: connect to it with ws://",
            Upgrade="websocket",
            Connection="Upgrade",
        )
        fields = {name.decode(): value.decode() for name, value in headers} | {
            "Sec-WebSocket-Version": "13"
        }
        return Response(body, 426, headers=fields)
