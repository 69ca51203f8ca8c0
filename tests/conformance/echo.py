"""An echo server for the Autobahn test suite: Brain's own listener, seam and connection, and what a message does is the one difference.

Brain listens to nothing but `ping`, and bounds what a client may say in size and rate. Here a message comes back, and the bounds
are those that the suite needs: set in this process alone, for no setting of Brain's reaches them.

    python -m tests.conformance.echo      prints the port, and serves until it is ended
"""

import asyncio

import structlog
import uvloop
from websockets.frames import Frame, Opcode

from brain.server import websocket
from brain.server.websocket import Connection, Message
from tests.support.in_process_server import in_process_server


def echo(connection: Connection, message: Message) -> None:
    opcode = Opcode.TEXT if message.text else Opcode.BINARY
    connection.write(Frame(opcode, message.data).serialize(mask=False))


async def serve() -> None:
    async with in_process_server(ping_interval=3600, patience=7200) as it:
        print(it.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    websocket.MAX_BYTES = 1 << 24
    websocket.BURST = 1 << 40
    Connection.received = echo  # type: ignore[assignment, method-assign]
    uvloop.run(serve())
