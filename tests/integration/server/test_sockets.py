"""Sockets that keep a port for several processes."""

import socket
import sys
from collections.abc import Callable, Sequence

import pytest

from brain.server.sockets import ListenError, hold, listen, share

LOOPBACK = ("127.0.0.1",)

spreads = pytest.mark.skipif(sys.platform != "linux", reason="one socket for all, as it listens")


def close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


def accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1


def test_the_connections_to_a_held_port_are_shared() -> None:
    held = hold(LOOPBACK, 0)
    address = held[0].getsockname()
    workers = [share(held)[0] for _ in range(2)]
    for each in workers:
        each.listen(200)
    clients = [socket.create_connection(address) for _ in range(100)]
    shares = [accepted(each) for each in workers]
    close(*clients, *workers, *held)
    assert sum(shares) == 100
    if sys.platform == "linux":
        assert min(shares) > 0


@spreads
def test_a_held_port_accepts_nothing_by_itself() -> None:
    held = hold(LOOPBACK, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(held[0].getsockname())
    close(*held)


@pytest.mark.parametrize("listening", [False, True], ids=["nobody listens", "a worker listens"])
@pytest.mark.parametrize("other", [listen, hold])
def test_nobody_else_gets_a_held_port(
    listening: bool, other: Callable[[Sequence[str], int], list[socket.socket]]
) -> None:
    held = hold(LOOPBACK, 0)
    workers = share(held)
    for each in workers if listening else ():
        each.listen()
    with pytest.raises(ListenError, match="Address already in use"):
        other(LOOPBACK, held[0].getsockname()[1])
    port = held[0].getsockname()[1]
    close(*workers, *held)
    close(*other(LOOPBACK, port))


def test_a_port_with_connections_that_are_still_closing_can_be_held() -> None:
    (listener,) = listen(LOOPBACK, 0)
    address = listener.getsockname()
    listener.setblocking(True)
    client = socket.create_connection(address)
    connection, _ = listener.accept()
    connection.close()  # first: it stays behind in TIME_WAIT
    close(client, listener)
    held = hold(LOOPBACK, address[1])
    close(*share(held), *held)


def test_both_families_are_held_on_one_port() -> None:
    held = hold((), 0)
    assert len({each.getsockname()[1] for each in held}) == 1
    shared = share(held)
    assert [each.getsockname() for each in shared] == [each.getsockname() for each in held]
    close(*shared, *held)
