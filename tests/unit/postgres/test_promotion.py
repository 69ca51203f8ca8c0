"""The end of a try to open a stream (postgres/promotion.py)."""

import asyncio
import contextlib
from typing import Any, cast

from brain.postgres.decoder import Decoder
from brain.postgres.promotion import Promoted, Promotion
from brain.postgres.source_state import SourceState
from brain.postgres.table import Table
from brain.postgres.timing import TIMING


class Opened:
    closed = False

    async def close(self) -> None:
        self.closed = True


async def test_a_stream_that_opens_while_everybody_is_cancelled_is_closed() -> None:
    """Nobody would read it, and its slot would hold back the server."""
    opened = Opened()

    async def promote() -> Promoted:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return Promoted(cast("Any", opened), cast("Any", None))

    promotion = Promotion(
        "postgresql://h/d",
        Table("public", "runs"),
        Decoder({}, 1),
        SourceState(),
        application="brain",
        timing=TIMING,
    )
    promotion._task = asyncio.create_task(promote())
    await asyncio.sleep(0)
    cancelling = asyncio.create_task(promotion.cancel())
    await asyncio.sleep(0)
    cancelling.cancel()
    await asyncio.wait([cancelling])
    assert cancelling.cancelled()
    assert opened.closed
