"""An HTTP connection after it was refused: what arrives is discarded until the client closes.

Unread bytes would cause a reset, which may overtake the answer.
"""

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from brain.server.http import HTTPProtocol

TIMEOUT: Final = 1.0
"""Seconds for the client to read the answer and to close. Then the connection is aborted."""


class Refused(asyncio.Protocol):
    def __init__(self, http: "HTTPProtocol", max_discarded: int) -> None:
        self._http = http
        self._deadline = http.loop.call_later(TIMEOUT, http.transport.abort)
        self._room = max_discarded

    def data_received(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0 and not self._http.transport.is_closing():
            self._http.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._http.connection_lost(exc)
