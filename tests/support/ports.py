"""Ports that stay free until somebody listens, and again when they come back."""

import asyncio
import contextlib
import os
import random
import socket

_dice = random.SystemRandom()
_SHARE = 2_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 11
_taken: set[int] = set()
"""Ports that were returned. Their servers may listen only seconds later."""


def accepts(port: int) -> bool:
    """Whether somebody on loopback accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port below the kernel's range for clients.

    A port in that range may be given to a client that connects while the server is down. The client
    is then connected to itself, or holds the port when the server comes back.
    """
    while True:
        # Each worker of a test session has ports of its own.
        port = 10_000 + _worker * _SHARE + _dice.randrange(_SHARE)
        if port in _taken:
            continue
        with (
            contextlib.suppress(OSError),
            socket.socket() as four,
            socket.socket(socket.AF_INET6) as six,
        ):
            four.bind(("0.0.0.0", port))
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            six.bind(("::", port))
            _taken.add(port)
            if len(_taken) > _SHARE // 2:
                _taken.clear()
            return port


async def close(server: asyncio.Server) -> None:
    """Close a server of streams that does not know who may have connected just now.

    asyncio accepts a connection some turns of the loop before it calls the handler. If the server
    is closed in between, asyncio fails, and leaves the connection open.
    """
    loop = asyncio.get_running_loop()
    for each in server.sockets:
        loop.remove_reader(each.fileno())
    for _turn in range(10):
        await asyncio.sleep(0)
    server.close()
