"""The API's few connections to the database, shared out by address: none can have them all.

Without it, 95 connections of one address that asked for long pages made everybody's request wait for 1.5 s, and eight requests that
waited for a locked row made everybody's fail.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from brain.access.rejections import Rejection, RejectionCounter
from brain.api.problems import Problem
from brain.api.repository import CONNECTIONS

MAX_REQUESTS = CONNECTIONS // 2
"""Requests of an address that may be at the database at a time."""

MAX_WAIT = 5.0
"""Seconds that a request waits for those of its own address."""


@dataclass(slots=True)
class _Address:
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_REQUESTS))
    requests: int = 0
    """At the database, or waiting."""


class ConcurrencyLimiter:
    def __init__(self, rejections: RejectionCounter) -> None:
        self._rejections = rejections
        self.addresses: dict[Hashable, _Address] = {}
        """Those who ask just now."""

    @asynccontextmanager
    async def take(self, address: Hashable) -> AsyncIterator[None]:
        """Raises Problem, 429, when the turn does not come within MAX_WAIT."""
        mine = self.addresses.setdefault(address, _Address())
        mine.requests += 1
        try:
            try:
                async with asyncio.timeout(MAX_WAIT):
                    await mine.places.acquire()
            except TimeoutError:
                detail = (
                    f"{MAX_REQUESTS} requests of {address} are at the database, and this one has waited for {MAX_WAIT:.0f} s: "
                    "send fewer at a time"
                )
                self._rejections.note(Rejection("turns", detail), peer=str(address))
                raise Problem(429, detail) from None
            try:
                yield
            finally:
                mine.places.release()
        finally:
            mine.requests -= 1
            if not mine.requests:
                del self.addresses[address]
