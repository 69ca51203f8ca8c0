"""First look: what Brain reads when it starts, and clients resume over the restart.

`python -m benchmarks.first_look [--rows 1000000] [--changed 10000]`.

The table has 1 000 000 rows, of which 10 000 changed since the oldest record. Measured is the time
from the first query to the board that answers `since`.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

from brain.contract.events import Resumed
from brain.delivery.board import Board
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.records import Records
from brain.postgres.table import Table
from tests.support.postgres import execute, running
from tests.support.template import ROLE, TEMPLATE, with_template

FILL = """
INSERT INTO runs (id, status, progress, task_id, agent, started_at)
SELECT 'run-' || lpad(n::text, 8, '0'), 'completed', 42, 'task-' || n, 'benchmark', now()
FROM generate_series(1, %s) n
"""


async def look(url: str, folder: Path) -> tuple[float, float, int]:
    """Seconds in all, CPU seconds of Brain, and how many rows came. As a start of Brain does."""
    with closing(Records(folder)) as records:
        board = Board(1 << 30, remember=records.remember)
        async with await connect(url, "brain") as conn:
            table, decoder = Table("public", "runs"), Decoder({}, 8192)
            poll = Poll(conn, table, decoder, board, Progress(records=records))
            began, spent, rows = time.perf_counter(), time.process_time(), 0
            await poll.read_catalog()
            async for piece in poll.read():
                board.apply(piece)
                rows += len(piece.changed) if isinstance(piece, Resumed) else len(piece.rows)
            return time.perf_counter() - began, time.process_time() - spent, rows


async def measure(url: str, changed: int, runs: int) -> None:
    folder = Path(tempfile.mkdtemp())
    await look(url, folder)  # makes the first record
    execute(
        url,
        "UPDATE runs SET progress = 43"
        " WHERE id IN (SELECT id FROM runs ORDER BY random() LIMIT %s)",
        changed,
    )
    found = [await look(url, folder) for _ in range(runs)]
    total, own, rows = zip(*found, strict=True)
    print(
        f"{rows[-1]} rows: {median(total) * 1000:.0f} ms"
        f" ({min(total) * 1000:.0f} to {max(total) * 1000:.0f}), {median(own) * 1000:.0f} ms of"
        " Brain's CPU"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changed", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args(arguments)
    with running(18, shared_buffers="512MB") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(url, FILL, asked.rows)
        execute(url, "VACUUM ANALYZE runs")
        asyncio.run(measure(url, asked.changed, asked.runs))


if __name__ == "__main__":
    main()
