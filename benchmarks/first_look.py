"""First look: what Brain reads when it starts, and clients resume over the restart.

`python -m benchmarks.first_look [--quick]`.

The table has 1 000 000 rows, of which 10 000 changed since the oldest record. Measured is the time
from the first query to the board that answers `since`, and the part of it that is Brain's CPU.
"""

import asyncio
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks import machine
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

MAX_MS = 400.0

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


async def measure(url: str, changed: int, runs: int) -> list[dict[str, float]]:
    folder = Path(tempfile.mkdtemp())
    await look(url, folder)  # makes the first record
    execute(
        url,
        "UPDATE runs SET progress = 43"
        " WHERE id IN (SELECT id FROM runs ORDER BY random() LIMIT %s)",
        changed,
    )
    found = [await look(url, folder) for _ in range(runs)]
    return [
        {"ms": total * 1000, "own_cpu_ms": own * 1000, "rows": float(rows)}
        for total, own, rows in found
    ]


def main() -> None:
    options = machine.options(__doc__, runs=7)
    rows, changed = (50_000, 1_000) if options.quick else (1_000_000, 10_000)
    with running(18, shared_buffers="512MB") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(url, FILL, rows)
        execute(url, "VACUUM ANALYZE runs")
        found = asyncio.run(measure(url, changed, options.runs))
    figures = machine.spreads(found)
    job = f"{rows} rows, {changed} changed"
    document = {
        "jobs": {job: {"runs": found, "figures": figures}},
        "targets": [machine.target("first look, ms", figures["ms"]["median"], most=MAX_MS)],
    }
    machine.write("first_look", document, quick=options.quick)


if __name__ == "__main__":
    main()
