"""The API's few connections to the database, shared out by address: no address can take them all.

Without it, 95 connections of one address that asked for long pages made every other request wait
1.5 s, and eight requests that waited for a locked row made every other one fail.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from brain.access.rejections import Rejection, RejectionCounter, RequestLine
from brain.api.errors import TooManyRequests
from brain.api.pool import CONNECTIONS

MAX_REQUESTS = CONNECTIONS // 2
"""Requests of an address that may be at the database at a time."""

MAX_WAIT = 5.0
"""Seconds that a request waits for others of its own address."""


@dataclass(slots=True)
class _Address:
    places: asyncio.Semaphore
    requests: int = 0
    """At the database, or waiting."""


class ConcurrencyLimiter:
    def __init__(
        self,
        rejections: RejectionCounter,
        *,
        max_requests: int = MAX_REQUESTS,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self._rejections = rejections
        self._max_requests = max_requests
        self._max_wait = max_wait
        self.addresses: dict[Hashable, _Address] = {}
        """Those that have requests now."""

    @asynccontextmanager
    async def take(
        self, address: Hashable, request: RequestLine | None = None
    ) -> AsyncIterator[None]:
        """Hold one of the address's places for the block. Raises TooManyRequests."""
        own = self.addresses.setdefault(address, _Address(asyncio.Semaphore(self._max_requests)))
        own.requests += 1
        try:
            try:
                async with asyncio.timeout(self._max_wait):
                    await own.places.acquire()
            except TimeoutError:
                error = TooManyRequests(address, self._max_requests, self._max_wait)
                self._rejections.note(
                    Rejection("turns", str(error)), peer=str(address), request=request
                )
                raise error from None
            try:
                yield
            finally:
                own.places.release()
        finally:
            own.requests -= 1
            if not own.requests:
                del self.addresses[address]
