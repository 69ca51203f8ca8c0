"""`websockets.asyncio.server` + `broadcast` + LISTEN, on uvloop, without deflate.

Pings are off, which favours it: clients that only count bytes could not answer them, and it would
close those clients.
"""

import asyncio
import logging
import os
import sys

import psycopg
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve


async def wait(connection: ServerConnection) -> None:
    await connection.wait_closed()


async def main(port: int) -> None:
    logging.getLogger("websockets").addHandler(logging.NullHandler())
    async with serve(
        wait, "127.0.0.1", port, compression=None, ping_interval=None, backlog=4096
    ) as server:
        listener = await psycopg.AsyncConnection.connect(
            os.environ["DATABASE_URL"], autocommit=True
        )
        await listener.execute("LISTEN runs")
        print("ready", flush=True)
        async for notification in listener.notifies():
            broadcast(server.connections, notification.payload)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
