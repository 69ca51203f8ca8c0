"""Brain's server in this process, on real sockets, without a database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from brain.access.limits import ConnectionLimiter
from brain.access.policy import Policy
from brain.contract.events import Changes, Snapshot
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.server.limits import Limits
from brain.server.listener import Server
from brain.server.sockets import listen
from brain.server.state import ServerState
from brain.server.websocket import Connection, Connections


class InProcessServer:
    """What it pushes comes from `change`."""

    def __init__(
        self, app: Any, timeout: float, ping_interval: float, limits: Limits | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.board = Board(1 << 24)
        self.hub = Hub(
            self.board,
            interval=0.005,
            clock=loop.time,
            call_later=loop.call_later,
            call_soon=loop.call_soon,
        )
        policy = Policy()
        self.limiter = ConnectionLimiter(policy, max_connections=0, max_connections_per_ip=0)
        connections = Connections(self.hub, loop, timeout, limits or Limits())
        self.state = ServerState(policy, self.limiter, connections)
        self.sockets = listen(["127.0.0.1"], 0)
        self.port: int = self.sockets[0].getsockname()[1]
        self.server = Server(app, self.state, ping_interval=ping_interval)
        self.seen = 0
        self.hub.push(self.board.apply(Snapshot([], 1)))

    @property
    def connections(self) -> list[Connection]:
        return self.state.connections.everyone()

    def change(self, run_id: str, status: str = "running", error: str | None = None) -> None:
        self.seen += 1
        row = (run_id, status, None, None, None, None, None, error)
        self.hub.push(self.board.apply(Changes([("update", row)], self.seen, self.seen)))


async def _app(scope: Any, receive: Any, send: Any) -> None:
    del receive
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def in_process_server(
    *,
    app: Any = _app,
    patience: float = 60,
    ping_interval: float = 60,
    limits: Limits | None = None,
) -> AsyncIterator[InProcessServer]:
    it = InProcessServer(app, patience, ping_interval, limits)
    serving = asyncio.create_task(it.server.serve(it.sockets))
    while not it.server.started:
        await asyncio.sleep(0.001)
    try:
        yield it
        assert not serving.done(), "a client has ended the server"
    finally:
        it.server.stop()
        try:
            await serving
        finally:  # without this, the loop cannot be closed
            for listener in it.server.servers:
                listener.close()
            for each in it.sockets:
                each.close()
            for connection in it.connections:
                connection._transport.abort()
    assert it.hub.clients == it.hub.lagging == 0
    assert not it.limiter.connections
    assert not it.connections
    assert not it.state.connections.closing
    assert not it.state.waiting
