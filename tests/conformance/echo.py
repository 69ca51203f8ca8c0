"""An echo server for the Autobahn test suite: Brain's listener, HTTP protocol and connection.

Brain answers only `ping`, and bounds the size and rate of a client's messages. This server echoes
each message, within the bounds that the suite needs. It sets them in this process, because Brain
has no setting for them.

    python -m tests.conformance.echo      prints the port, and serves until it is killed
"""

import asyncio

import structlog
import uvloop
from websockets.frames import Frame, Opcode

from brain.access.rate_limit import RateLimit
from brain.server.limits import Limits
from brain.server.websocket import Connection, IncomingMessage
from tests.support.in_process_server import in_process_server


def echo(connection: Connection, message: IncomingMessage) -> None:
    opcode = Opcode.TEXT if message.text else Opcode.BINARY
    connection.write(Frame(opcode, message.data).serialize(mask=False))


async def serve() -> None:
    limits = Limits(max_message=1 << 24, frames=RateLimit(burst=1 << 40, rate=20))
    async with in_process_server(ping_interval=3600, patience=7200, limits=limits) as it:
        print(it.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    Connection.received = echo  # type: ignore[assignment, method-assign]
    uvloop.run(serve())
