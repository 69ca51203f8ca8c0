"""A server that does nothing but what `source` needs of the kernel: one frame to each client every
5 s, spread as Brain spreads it. It is the floor of `benchmarks.freshness`.

`python -m benchmarks.spread_writes BYTES` listens on a free port, which it prints. With 0 bytes it
writes nothing.
"""

import asyncio
import sys
from typing import Final, cast

import uvloop

from brain.delivery.source_messages import EVERY, TICK

UPGRADED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
"""The answer to load.KEY (RFC 6455, section 1.3)."""

transports: list[asyncio.Transport] = []


class Peer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self.transport.write(UPGRADED)
            transports.append(self.transport)


async def serve(size: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Peer, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    frame = b"\x81\x7e" + (size - 4).to_bytes(2, "big") + bytes(size - 4) if size else b""
    place, due = 0, 0.0
    while True:
        await asyncio.sleep(TICK)
        due += len(transports) * TICK / EVERY
        count, due = int(due), due % 1
        for at in range(place, place + count if frame else place):
            transports[at % len(transports)].write(frame)
        place += count


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
