"""Ports that stay free until somebody listens, and again when they come back."""

import contextlib
import random
import socket

_dice = random.SystemRandom()  # workers of a test session must not all throw the same


def free_port() -> int:
    """One below those that the kernel gives to clients. Of the others, a client that knocks while the server is away may be
    given the very one, and is then connected to itself; or anybody's client has it when the server comes back.
    """
    while True:
        port = _dice.randrange(10_000, 32_000)
        with (
            contextlib.suppress(OSError),
            socket.socket() as four,
            socket.socket(socket.AF_INET6) as six,
        ):
            four.bind(("0.0.0.0", port))
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            six.bind(("::", port))
            return port
