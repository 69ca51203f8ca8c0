"""The listener: sockets, uvicorn, the rounds of pings and deadlines, and the shutdown."""

import asyncio
import contextlib
import ctypes
import errno
import logging
import resource
import socket
import sys
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import structlog
import uvicorn
from websockets.frames import CloseCode

from brain.server.http import HTTPProtocol, ServerState

log = structlog.get_logger()

SEND_BUFFER = 128 * 1024
"""SO_SNDBUF. By default a stalled client costs 4 MB of the kernel's memory; so, 333 KB."""

BACKLOG = 4096
"""Connections that wait to be accepted, at the most: a crowd that comes back at once (the kernel may allow fewer)."""

CANCEL_WITHIN = 0.5
"""Seconds for requests that are given up: their queries are cancelled at the database first."""

DESCRIPTORS = 65_536
"""File descriptors that are asked for; the hard limit of the process may be lower."""

RESERVED = 64
"""File descriptors that no client gets: the database's, some 20. A crowd that had them all would keep Brain from coming back to it."""

SPREAD, REQUESTS_AFTER, ABORT_AFTER = 1.0, 1.0, 3.0
"""Seconds of the shutdown: over which the close frames are sent, and after which HTTP requests and WebSockets are cut off."""


class ListenError(OSError):
    """The address cannot be listened on. The text says what to do."""


EXPIRE, TIDY = 0.05, 0.5
"""Seconds between two looks at who owes a request, and at what is left to clear away."""

CROWD = 1000
"""Connections that have to leave before memory is given back for it."""

ALL = ("0.0.0.0", "::")  # noqa: S104 - the guard decides who may come in


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Sockets on these addresses, or on all interfaces, by IPv4 and IPv6, if none is given. Port 0 takes a free one, for all.

    Raises ListenError.
    """
    sockets: list[socket.socket] = []
    try:
        for name in hosts or ALL:
            try:
                sockets.append(_listener(name, port))
            except OSError as error:
                if name == "::" and not hosts and error.errno in _NO_IPV6:
                    continue
                hint = (
                    "stop what uses it, or set BRAIN_PORT to another (0 takes a free one)"
                    if error.errno == errno.EADDRINUSE
                    else "set BRAIN_HOST to an address of this machine, or BRAIN_PORT to a port that is permitted"
                )
                raise ListenError(
                    f"port {port} of {name} cannot be listened on ({error.strerror}): {hint}"
                ) from error
            port = sockets[-1].getsockname()[1]
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


_NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _listener(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        # At once: SO_REUSEADDR lets two processes bind, as long as neither listens. Who comes early waits in the backlog.
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def trim_heap() -> None:
    """What a crowd took and left goes back to the system. glibc keeps it otherwise, for ever, wherever something small lies above: of
    the 58 MB of 10 000 connections all, with this 24.
    """
    with contextlib.suppress(OSError, AttributeError):  # there is another libc
        ctypes.CDLL(None).malloc_trim(0)


def raise_descriptors() -> int:
    """Each connection is a file descriptor, and 1 024, nearly everywhere what a process gets if it does not ask, are soon gone.
    Returns for how many connections there are enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - RESERVED, soft // 2)


class Server(uvicorn.Server):
    """uvicorn's server with a shutdown of its own. `stop` ends it; a second `stop` hurries."""

    def __init__(
        self, app: Any, state: ServerState, *, timeout: float, ping_interval: float
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(HTTPProtocol, state),  # type: ignore[arg-type]
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
        state.http = self.server_state.connections  # type: ignore[assignment]
        self._timeout = timeout
        self._ping_interval = ping_interval

    def stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
            for connection in (
                *self._state.connections.everyone(),
                *self._state.connections.closing,
            ):
                connection.abort("the server was told twice to stop")
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the caller's: uvicorn raises them again behind serve(), and nothing after it would run."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.limiter.room = room = raise_descriptors()
        if room < (self._state.limiter.most or room):
            log.warning(
                "few file descriptors",
                connections=room,
                hint=f"for the {self._state.limiter.most} of BRAIN_MAX_CONNECTIONS raise the limit of the process: ulimit -n, or LimitNOFILE= of systemd",
            )
        for each in sockets or []:
            # Accepted connections inherit it: a client that takes nothing in for so long is gone, acknowledged or not.
            each.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._timeout * 1000)
            )
        await super().startup(sockets)

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

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE)
            self._state.expire()

    async def _tidy(self) -> None:
        most = 0
        while True:
            await asyncio.sleep(TIDY)
            self._state.tidy()
            now = len(self._state.http) + self._state.limiter.websockets
            most = max(most, now)
            if now + CROWD < most and now < most / 2:
                most = now
                trim_heap()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """docs/operations.md lists the steps: this is 1 to 5, and nothing is left for uvicorn's own to wait for."""
        connections, unupgraded, requests = (
            self._state.connections,
            self.server_state.connections,
            self.server_state.tasks,
        )
        self._state.closing = True
        for each in self.servers:
            each.close()
        began = connections.loop.time()
        everyone = connections.everyone()
        log.info("stopping", clients=len(everyone))
        for protocol in list(unupgraded):
            protocol.shutdown()  # closes what is idle; what is under way ends with its answer
        for i, connection in enumerate(everyone):
            connection.end(CloseCode.SERVICE_RESTART, "the server is going down: come back")
            if i % 100 == 99:
                # Spread, so that they do not all come back in the same instant.
                await asyncio.sleep(
                    began + SPREAD * (i + 1) / len(everyone) - connections.loop.time()
                )
        while (connections.closing or unupgraded or requests) and not self.force_exit:
            now = connections.loop.time() - began
            if now >= REQUESTS_AFTER:
                for protocol in list(unupgraded):
                    protocol.transport.abort()
            if now >= ABORT_AFTER:
                break
            await asyncio.sleep(0.02)
        if connections.closing:
            log.warning(
                "cut off", clients=len(connections.closing), detail="they did not close in time"
            )
            for connection in list(connections.closing):
                connection.abort("the server went down")
        if requests:
            log.warning("given up", requests=len(requests), detail="they did not end in time")
            # uvicorn would print a traceback for each.
            logging.getLogger("uvicorn.error").disabled = True
            for request in list(requests):
                request.cancel()
            await asyncio.wait(requests, timeout=CANCEL_WITHIN)
        await super().shutdown(sockets)
