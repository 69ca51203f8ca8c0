"""Whether a client takes what waits for it.

A client that reads slowly is alive, even if its pongs come late: the pings wait behind its
messages. Only the kernel knows what it took. TCP_USER_TIMEOUT would let the kernel decide alone,
and cuts a client that answers all the time but reads less than the kernel wants to see.
"""

import asyncio
import socket
import struct
import sys
from typing import Protocol

_ACKED, _UNSENT = 120, 144
"""Offsets in `struct tcp_info` of Linux (linux/tcp.h): tcpi_bytes_acked and tcpi_notsent_bytes."""
_SIZE = 148


class Silent(Protocol):
    """A client from which nothing arrives."""

    heard: float
    """When it last sent or took something, by the loop's clock."""
    taken: int | None
    """Its uptake at the last look."""


def is_stalled(client: Silent, transport: asyncio.Transport, now: float) -> bool:
    """Whether it has taken nothing since the last look. Updates both of its attributes.

    At the first look at which something waits there is nothing to compare with: the next one tells.
    """
    before, client.taken = client.taken, uptake(transport)
    if before is None:
        return client.taken is None
    if client.taken is None or client.taken > before:
        client.heard = now
        return False
    return True


def uptake(transport: asyncio.Transport) -> int | None:
    """A number that grows when the client takes some of what waits for it. None if nothing waits.

    What the client's kernel took while nothing had to wait does not count: it also takes pings for
    a process that hangs.
    """
    unsent = transport.get_write_buffer_size()
    if sys.platform == "linux":
        try:
            sock = transport.get_extra_info("socket")
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        except (OSError, AttributeError):
            info = b""
        if len(info) == _SIZE and (acked := struct.unpack_from("=Q", info, _ACKED)[0]):
            waiting = unsent + struct.unpack_from("=I", info, _UNSENT)[0]
            return int(acked) if waiting else None
    return -unsent if unsent else None
