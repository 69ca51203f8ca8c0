"""Sockets that listen, and those that keep a port for several processes."""

import errno
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from brain.contract.errors import BrainError

SEND_BUFFER = 128 * 1024
"""SO_SNDBUF, in bytes. A stalled client costs 333 KB of kernel memory with it, 4 MB by default."""

BACKLOG = 4096
"""Connections that wait to be accepted when a crowd reconnects at once (the kernel may allow
fewer)."""

ALL = ("0.0.0.0", "::")  # noqa: S104 - the access rules decide which clients may connect

_NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


SPREADS = sys.platform == "linux"
"""Whether the kernel spreads connections over the sockets that listen on one port (SO_REUSEPORT).
macOS gives them all to one of them. There the processes accept from one socket, which they share.
"""


class ListenError(BrainError, OSError):
    """The address cannot be listened on. The text says what to do."""


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Sockets on these addresses, or on all interfaces (IPv4 and IPv6) without any.

    Port 0 takes a free port, the same for all. Raises ListenError.
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
                    else "set BRAIN_HOST to an address of this machine, "
                    "or BRAIN_PORT to a permitted port"
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


def hold(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Sockets that keep the port for other processes, which `share` it. Raises ListenError.

    They do not listen: the kernel would give them a part of the connections. No other program gets
    the port as long as they are open, even while nobody listens.
    """
    listeners = listen(hosts, port)
    if not SPREADS:
        return listeners
    held = []
    for listener in listeners:
        # The listener, which shares with nobody, has proved that the port is free. It shares it
        # with our own socket before it is closed, so there is no moment at which another could get
        # it, in particular not a second supervisor, whose sockets the kernel would take for ours.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.append(_sharing(listener))
        listener.close()
        # It has bound a port on which connections of before are still closing (TIME_WAIT). From
        # now on a listener that shares with nobody finds the port in use.
        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return held


def share(held: Iterable[socket.socket]) -> list[socket.socket]:
    """Sockets of the same addresses for one process, which listens on them when it is ready."""
    with ExitStack() as on_error:
        made = []
        for each in held:
            made.append(_sharing(each) if SPREADS else each.dup())
            on_error.callback(made[-1].close)
        on_error.pop_all()
    return made


def _sharing(other: socket.socket) -> socket.socket:
    """A socket on the address of another that allows it (SO_REUSEPORT). It does not listen yet."""
    made = _socket(other.family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(other.getsockname())
    except BaseException:
        made.close()
        raise
    return made


def _listener(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = _socket(family)
    try:
        listener.bind(address)
        # Not later: SO_REUSEADDR lets two processes bind one port as long as neither listens.
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _socket(family: int) -> socket.socket:
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
