"""The identity of the table, read over a connection of its own."""

import psycopg

from brain.contract.errors import BrainError
from brain.contract.events import Known
from brain.postgres.cancellation import timeout
from brain.postgres.checkpoints import Identity
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.table import Table

DEADLINE = 5.0
"""Seconds."""


async def identify(url: str, table: Table, decoder: Decoder, known: Known) -> Identity | None:
    """None if the database cannot be asked now, or has no such table."""
    try:
        async with timeout(DEADLINE), await connect(url, "brain") as conn:
            poll = Poll(conn, table, decoder, known, Progress())
            await poll.read_catalog()
            return poll.identity
    except (BrainError, psycopg.Error, OSError, TimeoutError):
        return None
