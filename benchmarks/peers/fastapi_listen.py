"""FastAPI WebSocket endpoint + LISTEN, with uvicorn, uvloop and `websockets`, without deflate.

The connection manager is that of FastAPI's documentation ("WebSockets", "Handling disconnections
and multiple clients"). Pings are off, which favours it: clients that only count bytes could not
answer them, and it would close those clients.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        for connection in self.active_connections:
            await connection.send_text(message)


manager = ConnectionManager()


async def follow(url: str) -> None:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute("LISTEN runs")
    print("ready", flush=True)
    async for notification in connection.notifies():
        await manager.broadcast(notification.payload)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(follow(os.environ["DATABASE_URL"]))
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws")
async def endpoint(websocket: WebSocket) -> None:
    await manager.connect(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(websocket)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="websockets",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        backlog=4096,
        log_level="warning",
    )
