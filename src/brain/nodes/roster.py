"""What nodes ask each other besides the log: who is there, and a new image of the board."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from nats.aio.msg import Msg

from brain import __version__
from brain.nodes.connection import Connection, NATSError

BOARD = b"board"
"""Asks the leader for an image of its board. What asks for the list is empty."""

KEYS = frozenset(
    ("name", "role", "ready", "epoch", "position", "lag", "clients", "port", "version")
)
"""What each node says of itself, at least."""

AGAIN = 0.5
"""Seconds between two looks whether the connection is another one."""


class Roster:
    """Not a part of the stream: nobody keeps what is said here."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        report: Callable[[], dict[str, Any]],
        wanted: Callable[[], object],
    ) -> None:
        """`wanted` is called when a node asks for an image of the board."""
        self._connection = connection
        self._subject = subject(stream)
        self._report = report
        self._wanted = wanted

    async def answer(self) -> None:
        """For ever."""
        generation = 0
        client = None
        while True:
            # The client library subscribes again by itself, unless it is another client.
            if self._connection.generation != generation and self._connection.is_open:
                with contextlib.suppress(NATSError):
                    generation = self._connection.generation
                    if self._connection.client is not client:
                        client = self._connection.client
                        await self._connection.subscribe(self._subject, self._say)
            await asyncio.sleep(AGAIN)

    async def _say(self, message: Msg) -> None:
        if message.data == BOARD:
            self._wanted()
            return
        document = {"version": __version__, **self._report()}
        with contextlib.suppress(NATSError):
            await self._connection.publish(message.reply, json.dumps(document).encode())


async def ask_for_board(connection: Connection, stream: str) -> None:
    """Nobody answers: the image comes over the log."""
    with contextlib.suppress(NATSError):
        await connection.publish(subject(stream), BOARD)


def subject(stream: str) -> str:
    return f"{stream}.nodes"


async def ask(connection: Connection, stream: str, seconds: float) -> list[dict[str, Any]]:
    """What each node says within this time, by name. Raises NATSError."""
    found: list[dict[str, Any]] = []

    async def take(message: Msg) -> None:
        with contextlib.suppress(ValueError):  # somebody else has answered
            document = json.loads(message.data)
            if isinstance(document, dict) and document.keys() >= KEYS:
                found.append(document)

    inbox = connection.client.new_inbox()
    subscription = await connection.subscribe(inbox, take)
    await connection.publish(subject(stream), reply=inbox)
    await asyncio.sleep(seconds)
    await connection.unsubscribe(subscription)
    return sorted(found, key=lambda each: str(each["name"]))
