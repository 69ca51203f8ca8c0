"""Pages of runs: bounded in rows and bytes, each in JSON, with the cursor of the next one."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from brain.api.errors import CursorInvalid
from brain.api.logged import PATIENCE
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
from brain.postgres.connection import Row
from brain.postgres.decoder import Decoder
from brain.postgres.snapshots import PgSnapshot

BATCH = 100
"""Rows of one query: a page that ends at MAX_PAGE must not have been in memory whole."""

MAX_PAGE = 1024 * 1024
"""Bytes of a page. A thousand runs with long texts are 8 MB, held for as long as the client
does not read."""

Rows: TypeAlias = list[Row]
"""At least one, each beginning with the snapshot of the query: see queries.select_page."""


class Cursor(NamedTuple):
    """Where a page begins."""

    after: str
    """The id before it."""
    seen: Micros | None = None
    """Of several nodes: what the one that has sent the first page had read."""


@dataclass(frozen=True, slots=True)
class Page:
    runs: list[str]
    """Each in JSON."""
    last: str | None
    """The id after which the next page begins. None on the last page."""
    since: Micros | None
    """The time from which `/ws?since=` brings every change that the page may lack."""
    seen: Micros | None = None

    def json(self) -> str:
        last = None if self.last is None else Cursor(self.last, self.seen)
        cursor = "null" if last is None else f'"{encode_cursor(last)}"'
        timestamp = "null" if self.since is None else f'"{iso(self.since)}"'
        runs = ",".join(self.runs)
        return f'{{"runs":[{runs}],"next_cursor":{cursor},"timestamp":{timestamp}}}'


async def read_page(
    query: Callable[[str | None, int], Awaitable[Rows]],
    decoder: Decoder,
    overlay: Overlay,
    *,
    wanted: ByFields,
    after: Cursor | None,
    limit: int,
) -> Page:
    """At most `limit` runs, and MAX_PAGE bytes unless the first run alone is larger.

    `query` returns the rows after an id, up to a number of them.
    """
    position = overlay.position()
    runs: list[str] = []
    since: Micros | None = None
    seen = None if after is None else after.seen
    until = asyncio.get_running_loop().time() + PATIENCE
    size, last, left = 0, None if after is None else after.after, limit
    while left:
        count, asked = min(left, BATCH), overlay.seq
        rows = await query(last, count + 1)
        snapshot = PgSnapshot.parse(str(rows[0][0]))
        if left == limit:  # later queries see all that the first one sees
            since = overlay.since(position, snapshot)
            seen = seen or (since if overlay.several else None)
        decoded = [
            (fields[ID], decoder(fields) if fields[ID] is not None else None)
            for _, *fields in rows[:count]
        ]
        found = [run for _, run in decoded if run is not None]
        await overlay.settle(found, snapshot, asked, until)
        for run_id, run in decoded:
            shown = None if run is None else overlay.shown(run, snapshot, asked)
            if shown is not None and (shown is run or matches(shown, wanted)):
                text = body(shown)
                size += len(text)
                if runs and size > MAX_PAGE:
                    return Page(runs, last, since, seen)
                runs.append(text)
            last = run_id
        left -= count
        if len(rows) <= count:
            return Page(runs, None, since, seen)
    return Page(runs, last, since, seen)


def matches(run: Run | Sequence[str | None], wanted: ByFields) -> bool:
    values = {
        "run_id": run[ID],
        "status": run[STATUS],
        "agent": run[AGENT],
        "task_id": run[TASK_ID],
    }
    return all(not texts or values[name] in texts for name, texts in wanted.items())


def encode_cursor(cursor: Cursor) -> str:
    """No id contains NUL, behind which `seen` stands."""
    text = cursor.after if cursor.seen is None else f"{cursor.after}\0{cursor.seen}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Cursor:
    """Raises CursorInvalid."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, b"-_", validate=True).decode()
        after, nul, seen = text.partition("\0")
        storable(after)
    except ValueError:
        raise CursorInvalid(cursor) from None
    if not 1 <= len(after.encode()) <= MAX_ID_BYTES:
        raise CursorInvalid(cursor)
    if nul and not re.fullmatch("[0-9]{1,17}", seen, re.ASCII):
        raise CursorInvalid(cursor)
    return Cursor(after, int(seen) if nul else None)
