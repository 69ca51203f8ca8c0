"""The composition root, the only module that wires the others: settings in, a running Brain out."""

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import psycopg
import structlog

from brain.access.limits import ConnectionLimiter
from brain.access.policy import Policy
from brain.api.logged import Logged
from brain.api.repository import open_repository
from brain.api.routes import create_api
from brain.config import Settings, SettingsError
from brain.contract.close_codes import GAP
from brain.contract.events import Changes, Event, Image, Snapshot
from brain.contract.subscription import Form
from brain.database import check_configured, database
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.delivery.log import OVERHEAD
from brain.following import decoder_of, records_folder
from brain.metrics import Metrics, Parts
from brain.page.routes import add_page
from brain.postgres.cancellation import cancel, timeout
from brain.postgres.canonical import Columns
from brain.postgres.connection import redact
from brain.postgres.example import ExampleRun, look
from brain.postgres.follow import Follow
from brain.postgres.identify import identify
from brain.postgres.records import Records
from brain.postgres.source_state import SourceState
from brain.postgres.table import Column, TableError
from brain.server.listener import Server
from brain.server.operations import Operations
from brain.server.sockets import listen
from brain.server.state import ServerState
from brain.server.websocket import Connections
from brain.shared_log import shared_log
from brain.signals import HangUp, end_soon
from brain.started import Started

if TYPE_CHECKING:
    from brain.access.tokens import Tokens
    from brain.nodes.node import Node
    from brain.nodes.origin import Identify
    from brain.workers.worker import Worker

log = structlog.get_logger()

MAX_PENDING = 4 * 1024 * 1024
"""Bytes waiting for the next flush above which the source waits: a transaction of a million rows
must not outrun the board."""

PENDING_CHECK = 0.005
"""Seconds between two looks at the bytes waiting."""

COLLECTOR = (2_000, 2, 2_500)
"""Thresholds of the garbage collector's three generations: see `_deliver`."""

EXAMPLE_TIMEOUT = 3.0
"""Seconds to wait for the example before `brain serve` prints the usual one."""

FIRST_READ = 3.0
"""Seconds to wait for the first read of the table before clients are accepted without it."""


_SHARED = "the log of BRAIN_NATS_URL takes the place of the records"


class Source(Protocol):
    """What follows the table: postgres.follow.Follow, or nodes.node.Node."""

    state: SourceState

    @property
    def columns(self) -> Mapping[str, Column] | None: ...

    def events(self) -> AsyncGenerator[Sequence[Event]]: ...


Announce: TypeAlias = Callable[[str | None, ExampleRun | None], None]
"""Takes why Brain does not follow the table yet, and the example."""


async def serve(
    settings: Settings, announce: Callable[[Started], None], worker: "Worker | None" = None
) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP. `worker`: as one of several.

    `announce` is called once connections are accepted and the table has been read, or cannot be.
    Raises EmbeddedError, ListenError, SettingsError.
    """
    check_configured(settings)
    asyncio.get_running_loop().set_exception_handler(report_lost)
    task = asyncio.current_task()
    assert task is not None
    # A signal before the server starts or after it has stopped cancels this task, which stops an
    # embedded PostgreSQL. Otherwise that child process would outlive us.
    hang_up = HangUp()
    _on_signal(task.cancel, worker, hang_up)
    if worker is None:
        hang_up.listen()
    with contextlib.suppress(asyncio.CancelledError):
        async with contextlib.AsyncExitStack() as closing:
            if worker is None:
                sockets = listen(settings.host, settings.port)
            else:
                sockets = worker.sockets
                await closing.enter_async_context(worker.attached())
            for each in sockets:
                closing.enter_context(each)
            url, embedded_port = await closing.enter_async_context(database(settings))
            port = sockets[0].getsockname()[1]
            started = Started(port, redact(url), embedded_port)
            records = Records(
                records_folder(settings),
                keep=settings.resume,
                max_rows=settings.board_memory // OVERHEAD,
                detail=_SHARED if settings.nats_url else "BRAIN_RESUME is 0",
            )
            closing.callback(records.close)
            await _serve(
                settings,
                url,
                sockets,
                records,
                announce=lambda detail, example: announce(
                    replace(started, detail=detail, example=example)
                ),
                worker=worker,
                hang_up=hang_up,
            )
            _on_signal(task.cancel, worker, hang_up)
    end_soon()
    log.info("stopped")


def report_lost(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that nobody awaits, unless it is that of a connection that was given up.

    uvloop goes on to look up its host. Where no name server answers, that would be an error line
    every 2 s, besides the line that says what is the matter.
    """
    if not isinstance(context.get("exception"), socket.gaierror):
        loop.default_exception_handler(context)


def _on_signal(stop: Callable[[], object], worker: "Worker | None", hang_up: HangUp) -> None:
    hang_up.stop = stop
    if worker is not None:
        worker.stop, stop = stop, worker.request_stop
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _serve(
    settings: Settings,
    url: str,
    sockets: list[socket.socket],
    records: Records,
    *,
    announce: Announce,
    worker: "Worker | None",
    hang_up: HangUp,
) -> None:
    loop = asyncio.get_running_loop()
    decoder = decoder_of(settings)
    board = Board(
        settings.board_memory, push_unchanged=settings.push_unchanged, remember=records.remember
    )
    metrics = Metrics(time.time)
    hub = Hub(
        board,
        interval=settings.flush_interval,
        clock=loop.time,
        call_later=loop.call_later,
        call_soon=loop.call_soon,
        observe=metrics.observe,
        report=lambda: parts.report(),  # noqa: PLW0108 - made below, of the hub
    )
    make_follow = partial(
        Follow,
        url,
        settings.table,
        decoder,
        mode=settings.source,
        interval=settings.poll_interval,
        application="brain",
        foreign=settings.database_url is not None,
    )
    node = None
    if settings.nats_url:
        asked = partial(identify, url, settings.table, decoder, board)
        node = _node(settings, url, board, hub=hub, make_follow=make_follow, identify=asked)
    follow: Source = node or make_follow(board, records=records, watched=lambda: hub.clients > 0)
    form = Columns(lambda: follow.columns)
    state = _server_state(settings, hub, form)
    parts = Parts(
        board,
        hub,
        follow.state,
        records,
        lambda: state.open,
        decoder,
        state.rejections.counts,
        loop.time,
    )
    overlay = None
    if node is not None:
        overlay = Logged(board, node.reached)
        state.is_ahead, state.reached = node.is_behind, node.reached
        parts = replace(parts, node=node.report)
    metrics.read(parts)
    if state.tokens is not None:
        await state.tokens.keys.begin()
    async with open_repository(url, settings.table, decoder, board, overlay) as runs:
        api = create_api(runs, state.tokens, state.rejections, form)
        operations = Operations(parts, state, metrics, worker.collect if worker else None)
        operations.add_to(api)
        add_page(api)
        server = Server(api, state, ping_interval=settings.ping_interval)

        def stop() -> None:
            if node is not None:
                node.retire()
            server.stop()

        _on_signal(stop, worker, hang_up)
        if worker is not None:
            worker.force, worker.report = server.stop, operations.report
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(
                _deliver(follow, board, hub, state.connections), name="follow"
            )
            await _wait_for_first_read(parts)
            announcing = tasks.create_task(
                _announce_start(
                    server, parts, announce, lambda: look(url, settings.table, decoder)
                ),
                name="announce",
            )
            await server.serve(sockets)
            announcing.cancel()
            await cancel(following)


def _node(
    settings: Settings,
    url: str,
    board: Board,
    *,
    hub: Hub,
    make_follow: partial[Follow],
    identify: "Identify",
) -> "Node":
    # The client of NATS is an extra, and a Brain alone does not need it.
    from brain.nodes.connection import CredentialsError  # noqa: PLC0415
    from brain.nodes.node import Node  # noqa: PLC0415
    from brain.nodes.timing import READING, NodeTiming  # noqa: PLC0415

    access, stream = shared_log(settings, url)
    try:
        access.options()
    except CredentialsError as error:
        raise SettingsError(str(error)) from None
    return Node(
        access,
        stream,
        board,
        source=lambda known, progress: make_follow(known, progress=progress, timing=READING),
        empty=lambda: Board(settings.board_memory, push_unchanged=settings.push_unchanged),
        identify=identify,
        replicas=settings.nats_replicas,
        storage=settings.nats_storage,
        port=settings.port,
        clients=lambda: hub.clients,
        timing=NodeTiming.of(settings.nats_takeover),
    )


def _server_state(settings: Settings, hub: Hub, form: Form) -> ServerState:
    """The access rules, and the connections that they permit."""
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
    connections = Connections(hub, asyncio.get_running_loop(), settings.ping_timeout)
    tokens = _tokens(settings, form)
    log.info(
        "access rules",
        **policy.allowed(),
        connections_per_ip=settings.max_connections_per_ip or "unlimited",
        tokens=str(tokens.keys) if tokens is not None else "not required",
    )
    return ServerState(policy, limiter, connections, tokens=tokens, form=form)


def _tokens(settings: Settings, form: Form) -> "Tokens | None":
    if settings.jwt_secret is None and settings.jwt_jwks is None:
        return None
    # The imports take 80 ms of a start of 600.
    from brain.access.jwks import KeySet, Secret  # noqa: PLC0415
    from brain.access.tokens import Tokens  # noqa: PLC0415

    keys: Secret | KeySet
    if settings.jwt_secret is not None:
        keys = Secret(settings.jwt_secret.get_secret_value())
    else:
        assert settings.jwt_jwks is not None
        keys = KeySet(settings.jwt_jwks)
    return Tokens(keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer, form=form)


async def _deliver(follow: Source, board: Board, hub: Hub, connections: Connections) -> None:
    """Take every event from the source over the board to the hub: the only way to the clients.

    Imported modules, and later the objects of the first Snapshot, are frozen: the garbage collector
    need not visit them. Its rounds are small, because a connection is ten objects that it tracks
    and that never become garbage: with 10 000 clients connecting and thresholds of (20 000, 20,
    100), a round of the middle generation took 60 ms. A full round takes 40 ms with all of these
    clients, and runs once 15 million more objects have been created than freed.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR)
    gc.enable()
    async with contextlib.aclosing(follow.events()) as events:
        async for several in events:
            begun = board.begun
            others = [event for event in several if not isinstance(event, Changes)]
            if begun and any(isinstance(event, Snapshot) and event.new for event in others):
                await _reset_clients(connections)
            hub.push(board.apply(*several))
            if begun and any(isinstance(event, Image) and event.new for event in others):
                await _reset_clients(connections)  # nothing of it was pushed
            if board.begun and not begun:
                gc.collect()
                gc.freeze()
            while hub.pending_bytes > MAX_PENDING:
                await asyncio.sleep(PENDING_CHECK)


async def _reset_clients(connections: Connections) -> None:
    """Close every connection with 4410.

    No Snapshot contains the runs that ended since the last read, so no message can report them.
    """
    everyone = connections.everyone()
    log.warning("table replaced: closing all clients", clients=len(everyone))
    for i, connection in enumerate(everyone):
        connection.end(GAP.code, GAP.reason)
        if i % 100 == 99:
            await asyncio.sleep(0)


async def _wait_for_first_read(parts: Parts) -> None:
    """Wait until the table has been read, or the reason is known why it cannot be.

    The sockets already listen. Early clients wait in the backlog instead of being refused.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_READ):
            while not parts.board.begun and parts.state.detail == "connecting":
                await asyncio.sleep(0.01)


async def _announce_start(
    server: Server, parts: Parts, announce: Announce, look: Callable[[], Awaitable[ExampleRun]]
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    detail = None if parts.board.begun else parts.state.detail
    example = None
    if detail is None:
        try:
            async with timeout(EXAMPLE_TIMEOUT):
                example = await look()
        except (TableError, psycopg.Error, OSError, TimeoutError):
            pass  # the usual one is printed
        except Exception:
            # A bug in Brain, or the table was changed between two queries. Brain serves all the
            # same.
            log.exception("no example")
    announce(detail, example)
