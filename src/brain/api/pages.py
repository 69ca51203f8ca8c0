"""Pages of runs: bounded in rows and bytes, each in JSON, with the cursor of the next one."""

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from brain.api.errors import CursorInvalid
from brain.api.overlay import Overlay
from brain.api.queries import ByFields
from brain.contract.messages import (
    AGENT,
    ID,
    MAX_ID_BYTES,
    STATUS,
    TASK_ID,
    Micros,
    Run,
    body,
    iso,
    storable,
)
from brain.postgres.decoder import Decoder
from brain.postgres.snapshots import PgSnapshot

BATCH = 100
"""Rows of one query: a page that ends at MAX_PAGE must not have been in memory whole."""

MAX_PAGE = 1024 * 1024
"""Bytes of a page. A thousand runs with long texts are 8 MB, held for as long as the client
does not read."""

Rows: TypeAlias = list[tuple[str | None, ...]]
"""At least one, each beginning with the snapshot of the query: see queries.select_page."""


@dataclass(frozen=True, slots=True)
class Page:
    runs: list[str]
    """Each in JSON."""
    last: str | None
    """The id after which the next page begins. None on the last page."""
    since: Micros | None
    """The time from which `/ws?since=` brings every change that the page may lack."""

    def json(self) -> str:
        cursor = "null" if self.last is None else f'"{encode_cursor(self.last)}"'
        timestamp = "null" if self.since is None else f'"{iso(self.since)}"'
        runs = ",".join(self.runs)
        return f'{{"runs":[{runs}],"next_cursor":{cursor},"timestamp":{timestamp}}}'


async def read_page(
    query: Callable[[str | None, int], Awaitable[Rows]],
    decoder: Decoder,
    overlay: Overlay,
    *,
    wanted: ByFields,
    after: str | None,
    limit: int,
) -> Page:
    """At most `limit` runs, and MAX_PAGE bytes unless the first run alone is larger.

    `query` returns the rows after an id, up to a number of them.
    """
    position = overlay.position()
    runs: list[str] = []
    since: Micros | None = None
    size, last, left = 0, after, limit
    while left:
        count, asked = min(left, BATCH), overlay.seq
        rows = await query(last, count + 1)
        snapshot = PgSnapshot.parse(str(rows[0][0]))
        if left == limit:  # later queries see all that the first one sees
            since = overlay.since(position, snapshot)
        for _, *fields in rows[:count]:
            run = decoder(fields) if fields[ID] is not None else None
            if run is not None:
                newer = overlay.newer(run, snapshot, asked)
                if newer is not None:
                    run = newer if matches(newer, wanted) else None
            if run is not None:
                text = body(run)
                size += len(text)
                if runs and size > MAX_PAGE:
                    return Page(runs, last, since)
                runs.append(text)
            last = fields[ID]
        left -= count
        if len(rows) <= count:
            return Page(runs, None, since)
    return Page(runs, last, since)


def matches(run: Run | Sequence[str | None], wanted: ByFields) -> bool:
    values = {
        "run_id": run[ID],
        "status": run[STATUS],
        "agent": run[AGENT],
        "task_id": run[TASK_ID],
    }
    return all(not texts or values[name] in texts for name, texts in wanted.items())


def encode_cursor(run_id: str) -> str:
    return base64.urlsafe_b64encode(run_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Raises CursorInvalid."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        after = storable(base64.b64decode(padded, b"-_", validate=True).decode())
    except ValueError:
        raise CursorInvalid(cursor) from None
    if not 1 <= len(after.encode()) <= MAX_ID_BYTES:
        raise CursorInvalid(cursor)
    return after
