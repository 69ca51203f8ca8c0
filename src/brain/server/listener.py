"""The listener: uvicorn, the rounds of pings and timeouts, and the shutdown."""

import asyncio
import contextlib
import ctypes
import logging
import resource
import socket
import sys
from collections.abc import Generator
from functools import partial
from typing import Any

import structlog
import uvicorn

from brain.contract.close_codes import SERVICE_RESTART
from brain.server.backlog import Backlog
from brain.server.http import HTTPProtocol
from brain.server.sockets import BACKLOG
from brain.server.state import ServerState

log = structlog.get_logger()

CANCEL_TIMEOUT = 0.5
"""Seconds for requests to end after they are cancelled: each cancels its query at the database
first."""

DESCRIPTORS = 65_536
"""File descriptors that Brain requests; the hard limit of the process may be lower."""

RESERVED = 64
"""File descriptors kept free of clients. The connections to the database need some 20 of them:
without this a crowd could keep Brain from reconnecting to it."""

SPREAD, REQUESTS_AFTER, ABORT_AFTER = 1.0, 1.0, 3.0
"""Seconds of a shutdown: the close frames are spread over the first; HTTP requests are aborted
after the second, WebSockets after the third."""

LOOK = 0.02
"""Seconds between two looks at what is left."""


def trim_heap() -> None:
    """Return free heap pages to the OS: after 10 000 closed connections RSS stays up 58 MB without
    it, 24 MB with it. Only glibc needs, and has, this.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


def raise_descriptors() -> int:
    """Raise the limit of file descriptors: each connection needs one, and the usual 1 024 are too
    few.

    Returns the number of connections that there are enough for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - RESERVED, soft // 2)


class Server(uvicorn.Server):
    """uvicorn's server with another shutdown. `stop` ends it; a second `stop` ends it at once."""

    def __init__(self, app: Any, state: ServerState, *, ping_interval: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=self._protocol,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
                backlog=BACKLOG,
            )
        )
        self._state = state
        self._backlog: Backlog | None = None
        state.http = self.server_state.connections  # type: ignore[assignment]
        self._ping_interval = ping_interval

    def _protocol(self, **wiring: Any) -> HTTPProtocol:
        """Make the protocol of a connection that was just accepted, as uvicorn asks for."""
        if self._backlog is not None:
            self._backlog.accepted()
        return HTTPProtocol(self._state, **wiring)

    def stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
            for connection in (
                *self._state.connections.everyone(),
                *self._state.connections.closing,
            ):
                connection.abort("the server was stopped twice")
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Do nothing, the caller handles signals: uvicorn would raise them again after serve(), and
        no code after that would run.
        """
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        limiter = self._state.limiter
        limiter.room = raise_descriptors()
        if limiter.room < limiter.max_connections:
            log.warning(
                "few file descriptors",
                connections=limiter.room,
                hint=f"for the {limiter.max_connections} of BRAIN_MAX_CONNECTIONS raise the limit "
                "of the process: ulimit -n, or LimitNOFILE= of systemd",
            )
        await super().startup(sockets)
        protocol = partial(
            self._protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self._backlog = Backlog(sockets or (), protocol)

    async def main_loop(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            rounds = [
                tasks.create_task(self._ping(), name="pings"),
                tasks.create_task(self._expire(), name="expire"),
                tasks.create_task(self._tidy(), name="tidy"),
            ]
            await super().main_loop()
            for task in rounds:
                task.cancel()

    async def _ping(self) -> None:
        connections, share = self._state.connections, 0
        while True:
            await asyncio.sleep(self._ping_interval / len(connections.shares))
            connections.sweep(share)
            share = (share + 1) % len(connections.shares)
            if not share:
                self._state.drop_unread()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._state.limits.expire_interval)
            self._state.expire()

    async def _tidy(self) -> None:
        peak, fallen = 0, False
        while True:
            await asyncio.sleep(self._state.limits.tidy_interval)
            self._state.tidy()
            now = self._state.open
            peak = max(peak, now)
            was_fallen, fallen = fallen, now + self._state.limits.crowd < peak and now < peak / 2
            if fallen:
                peak = now
            if fallen or was_fallen:
                # Once more a round later: uvloop frees a transport some turns after it is closed,
                # and 3 to 8 MB of 5 000 connections came behind the first time.
                trim_heap()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Steps 1 to 5 of running.md. Nothing is left for uvicorn's own shutdown to wait
        for.
        """
        connections, unupgraded, requests = (
            self._state.connections,
            self.server_state.connections,
            self.server_state.tasks,
        )
        self._state.closing = True
        if self._backlog is not None:
            self._backlog.close()
        for each in self.servers:
            each.close()
        began = connections.loop.time()
        everyone = connections.everyone()
        log.info(
            "stopping",
            clients=len(everyone),
            detail=f"at most {ABORT_AFTER + CANCEL_TIMEOUT:g} s; a second signal ends it at once",
        )
        for protocol in list(unupgraded):
            protocol.shutdown()  # closes an idle connection; a request still gets its answer
        for i, connection in enumerate(everyone):
            connection.end(SERVICE_RESTART.code, SERVICE_RESTART.reason)
            if i % 100 == 99:
                # Spread, so that they do not all reconnect in the same instant.
                await self._pause(began + SPREAD * (i + 1) / len(everyone))
        while (connections.closing or unupgraded or requests) and not self.force_exit:
            now = connections.loop.time() - began
            if now >= REQUESTS_AFTER:
                for protocol in list(unupgraded):
                    protocol.transport.abort()
            if now >= ABORT_AFTER:
                break
            await asyncio.sleep(LOOK)
        if connections.closing:
            log.warning(
                "aborted", clients=len(connections.closing), detail="they did not close in time"
            )
            for connection in list(connections.closing):
                connection.abort("the server stopped")
        if requests:
            log.warning("cancelled", requests=len(requests), detail="they did not end in time")
            # uvicorn would log a traceback for each.
            logging.getLogger("uvicorn.error").disabled = True
            for request in list(requests):
                request.cancel()
            await asyncio.wait(requests, timeout=CANCEL_TIMEOUT)
        await super().shutdown(sockets)

    async def _pause(self, until: float) -> None:
        """Until this time, or a second signal."""
        clock = self._state.connections.loop.time
        await asyncio.sleep(0)
        while not self.force_exit and (left := until - clock()) > 0:
            await asyncio.sleep(min(left, LOOK))
