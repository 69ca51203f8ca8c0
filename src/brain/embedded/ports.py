"""Ports of the embedded PostgreSQL: which to try, whether one is free, and how to claim one."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
WILDCARD = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - only probed

PROBED = LOOPBACK if sys.platform == "linux" else LOOPBACK + WILDCARD
"""Linux refuses 127.0.0.1 while another program listens on 0.0.0.0. macOS allows it with
SO_REUSEADDR, which PostgreSQL sets: it would take over the connections of, say, a port that Docker
publishes."""

CLAIMS = Path("/tmp")  # noqa: S108 - one folder for all users of the machine, unlike TMPDIR
"""Where `claim_file` keeps its lock files."""


def candidates(cluster: Path) -> Iterator[int]:
    """The port last used, because other programs' settings name it; 5432 to 5463; any free port."""
    with contextlib.suppress(FileNotFoundError):
        if last := re.search(r'"port=(\d+)"', (cluster / "postmaster.opts").read_text()):
            yield int(last[1])
    yield from range(5432, 5464)
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield probe.getsockname()[1]


def is_free(port: int, addresses: tuple[tuple[socket.AddressFamily, str], ...] = PROBED) -> bool:
    """Free on every address.

    Otherwise `localhost` could be Brain by IPv4 and another program by IPv6.
    """
    for family, address in addresses:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    # Otherwise `::` includes the addresses of IPv4.
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            # No IPv6 here, or no permission for this port: PostgreSQL reports that better.
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def claim(port: int, stack: contextlib.ExitStack) -> bool:
    """Keep other Brains away from a free port until `stack` closes. False if the port is taken.

    PostgreSQL starts if it gets one of its two addresses. Without the claim, two that start at the
    same moment could get one address each.
    """
    claimed = claim_name if sys.platform == "linux" else claim_file
    return claimed(port, stack) and is_free(port)


def claim_name(port: int, stack: contextlib.ExitStack) -> bool:
    # An abstract name (Linux only) goes with its socket, and is as local as a port: to the network
    # namespace.
    name = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0brain postgres {port}")
    except OSError:
        return False
    return True


def claim_file(port: int, stack: contextlib.ExitStack, folder: Path = CLAIMS) -> bool:
    # The file stays: if a Brain deleted it, two others could lock two files of the same name. It is
    # opened for reading, because another user may own it; flock needs no more.
    path = folder / f"brain-postgres-{port}.lock"
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError:
        return False
    stack.callback(os.close, lock)
    with contextlib.suppress(PermissionError):  # another user's
        os.fchmod(lock, 0o644)  # despite the umask: other users must be able to open it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
