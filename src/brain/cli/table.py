"""The table of `brain watch`: what it looks like, and when it is drawn again."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from brain.cli.lines import printable, write_line
from brain.cli.runs import Overview, Row, fitting, gist, height
from brain.cli.screen import Screen, opened
from brain.cli.target import Target
from brain.client.api import API
from brain.client.clock import DatabaseClock, duration
from brain.client.events import Away, Connected, Deleted, Event, Message, Ready, Source
from brain.client.freshness import Evidence
from brain.contract.messages import STATUSES

INTERVAL: Final = 0.25
"""Seconds between two drawings, at least."""

SHARE: Final = 10
"""A drawing takes at most one part in so many of the time: with 100 000 runs it takes 0.3 s."""

TICK: Final = 1.0
"""Seconds until elapsed times are drawn again, when nothing else changes."""

GLYPHS: Final = {"queued": "○", "running": "▶", "completed": "✔", "failed": "✖", "quiet": "‖"}
PLAIN: Final = {"queued": "o", "running": ">", "completed": "+", "failed": "x", "quiet": "="}
"""Where the terminal's encoding has no others."""
STYLES: Final = {
    "queued": "dim",
    "running": "cyan",
    "completed": "green",
    "failed": "bold red",
    "quiet": "yellow",
}
COLUMNS: Final[dict[str, dict[str, Any]]] = {
    "RUN": {"ratio": 3},
    "STATUS": {"min_width": 11},
    "DONE": {"min_width": 5, "justify": "right"},
    "TASK": {"ratio": 2},
    "AGENT": {"ratio": 2},
    "ELAPSED": {"min_width": 9, "justify": "right"},
    "CHANGED": {"min_width": 11, "justify": "right"},
}
ROOM: Final = {"STATUS": 24, "DONE": 30, "ELAPSED": 40, "CHANGED": 52, "AGENT": 60, "TASK": 60}
"""Columns that the terminal needs for each of these to be shown, beside the run's id."""


@dataclass
class View:
    """All that is drawn. `render` is a function of it, of the time and of the size."""

    url: str
    runs: Overview
    clock: DatabaseClock
    evidence: Evidence
    quiet: float
    since: float
    """When the present state of the connection began, by time.monotonic()."""
    away: str | None = None
    """Why there is no connection."""
    was_connected: bool = False
    """There has been a connection."""
    glyphs: dict[str, str] = field(default_factory=lambda: GLYPHS)

    def behind(self, monotonic: float) -> str:
        """Why what is shown may be out of date, or ""."""
        fresh, source = self.evidence.freshness, self.evidence.source
        if fresh.is_current:
            return ""
        if self.away is not None:
            age = duration(monotonic - self.since)
            return f"disconnected for {age} ({printable(self.away)}); trying again"
        if source is None or fresh.state != "behind":
            return f"connecting for {duration(monotonic - self.since)}"
        if source.source == "none":
            return f"Brain cannot read the database ({printable(source.detail or '')})"
        if source.lag_seconds is None:
            return "Brain has not read the table yet"
        return f"behind the database by {duration(fresh.age)}"

    @property
    def known(self) -> float:
        """Until when the runs are known, by the database's clock: nothing elapses after that."""
        fresh = self.evidence.freshness
        if fresh.is_current or fresh.at is None:
            return self.clock.now()
        return fresh.at.timestamp()

    def freshness(self, monotonic: float) -> Text:
        fresh = self.evidence.freshness
        if behind := self.behind(monotonic):
            sign, style = behind, "yellow" if self.away is None else "red"
        else:
            sign, style = "live, polled" if fresh.state == "polled" else "live", "green"
        return Text.assemble((sign, f"bold {style}"), "  ", (printable(self.url), "dim"))

    def counts(self) -> Text:
        if not self.was_connected:
            return Text("")  # nobody knows
        counts = self.runs.counts()
        parts = [
            Text(f"{self.glyphs[status]} {counts[status]} {status}", STYLES[status])
            for status in STATUSES
        ]
        return Text("   ").join(parts)

    def render(self, console: Console, columns: int, lines: int) -> list[list[Segment]]:
        """Exactly `lines` lines of exactly `columns` cells."""
        head = [self.freshness(time.monotonic()), self.counts()][: max(1, lines - 3)]
        room = max(0, lines - len(head) - 2)  # the names of the columns, and the last line
        now = self.known
        urgent, others = self.runs.ordered(now, self.quiet)
        shown = fitting(urgent, others, room)
        found = _lines(console, head, columns)
        if shown and room:
            found += self._table(console, shown, now, columns)
        found = found[: lines - 1]
        found += _lines(console, [Text("")] * (lines - 1 - len(found)), columns)
        hidden = len(self.runs) - len(shown)
        found += _lines(console, [self._last_line(hidden)], columns)
        return found[:lines]

    def _last_line(self, hidden: int) -> Text:
        if hidden:
            return Text(f"and {hidden} more that this window has no room for", "dim")
        if len(self.runs) or not self.evidence.is_ready:
            return Text("q or Ctrl-C ends", "dim")
        return Text("no runs yet: changes appear here; q or Ctrl-C ends", "dim")

    def _table(
        self, console: Console, rows: list[Row], now: float, columns: int
    ) -> list[list[Segment]]:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
        names = [name for name in COLUMNS if columns >= ROOM.get(name, 0)]
        for name, present in (
            ("TASK", any(row.run.task_id for row in rows)),
            ("AGENT", any(row.run.agent for row in rows)),
        ):
            if name in names and not present:
                names.remove(name)
        for name in names:
            table.add_column(name, no_wrap=True, **COLUMNS[name])
        for row in rows:
            cells = self._cells(row, now)
            table.add_row(*(cells[name] for name in names))
        options = console.options.update(width=columns, height=None)
        lines = console.render_lines(table, options, pad=True)
        found = lines[:1]
        for line, row in zip(lines[1:], rows, strict=True):
            found.append(line)
            if height(row) == 2:
                error = Text(f"  {printable(gist(row.run.error or ''))}", "red")
                found += _lines(console, [error], columns)
        return found

    def _cells(self, row: Row, now: float) -> dict[str, Text]:
        run = row.run
        word = "quiet" if row.is_quiet(now, self.quiet) else run.status
        return {
            "RUN": Text(printable(run.id)),
            "STATUS": Text(f"{self.glyphs[word]} {run.status}", STYLES[word]),
            "DONE": Text("" if run.progress is None else f"{run.progress:.0f} %"),
            "TASK": Text(printable(run.task_id or "")),
            "AGENT": Text(printable(run.agent or "")),
            "ELAPSED": Text(self._elapsed(row, now)),
            "CHANGED": Text(self._changed(row, now, word), STYLES[word]),
        }

    def _elapsed(self, row: Row, now: float) -> str:
        run = row.run
        if run.started_at is None or run.status == "queued":
            return ""
        if run.status != "running":
            end = run.completed_at.timestamp() if run.completed_at else None
            return "" if end is None else duration(end - run.started_at.timestamp())
        sign = "≥ " if self.glyphs is GLYPHS else "> "
        at_least = "" if self.evidence.freshness.is_current else sign
        return at_least + duration(now - run.started_at.timestamp())

    def _changed(self, row: Row, now: float, word: str) -> str:
        age = duration(now - row.changed)
        return f"quiet {age}" if word == "quiet" else f"{age} ago"

    def summary(self) -> list[str]:
        """The lines that stay in the terminal after the table is closed."""
        counts = self.runs.counts()
        ended = self.runs.ended
        lines = [
            f"{self.url}: seen {ended['completed']} completed and {ended['failed']} failed; "
            f"{counts['running']} running and {counts['queued']} queued"
            + ("" if self.away is None else f" when the connection was lost ({self.away})")
        ]
        lines += [
            f"  failed: {run.id}" + (f": {gist(run.error)}" if run.error else "")
            for run in self.runs.failures.values()
        ]
        if (more := ended["failed"] - len(self.runs.failures)) > 0:
            lines.append(f"  and {more} that failed before these")
        return [printable(line) for line in lines]


def _lines(console: Console, texts: list[Text], columns: int) -> list[list[Segment]]:
    """Each text on one line: cut or padded to exactly `columns` cells."""
    found = []
    for text in texts:
        text.truncate(columns, overflow="ellipsis")
        line = list(text.render(console, end=""))
        found.append(Segment.adjust_line_length(line, columns))
    return found


async def show_table(
    events: AsyncGenerator[Event], target: Target, *, statuses: Collection[str], quiet: float
) -> None:
    """Until a key or a signal ends it. Raises WatchError."""
    clock = DatabaseClock()
    view = View(
        target.url, Overview(statuses), clock, Evidence(clock), quiet, since=time.monotonic()
    )
    api = API(
        target.url,
        token=target.token,
        additional_headers=target.headers,
        options={},
        clock=clock,
    )
    dirty, ended = asyncio.Event(), asyncio.Event()
    try:
        with opened(dirty.set, ended.set) as screen:
            if not screen.console.encoding.startswith("utf"):
                view.glyphs = PLAIN
            work = [
                asyncio.create_task(_follow(events, view, dirty, api)),
                asyncio.create_task(_draw(view, dirty, screen)),
                asyncio.create_task(_until(ended)),
            ]
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
            finally:
                for each in work:
                    each.cancel()
                await asyncio.gather(*work, return_exceptions=True)
    finally:
        if view.was_connected:
            for line in view.summary():
                write_line(line)
    if screen.terminated:
        raise SystemExit(128 + signal.SIGTERM)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _follow(
    events: AsyncGenerator[Event], view: View, dirty: asyncio.Event, api: API
) -> None:
    """Bring the view up to date. Raises WatchError."""
    asking: set[asyncio.Task[None]] = set()
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Message(timestamp=timestamp):
                        view.clock.hear(timestamp, pushed=view.evidence.is_ready)
                        view.runs.take(event)
                    case Deleted(id=run_id):
                        view.runs.remove(run_id)
                    case Ready():
                        view.evidence.ready()
                    case Source():
                        view.evidence.report(event)
                    case Connected(reset=reset):
                        if reset:
                            view.runs.clear()
                        view.evidence.leave()
                        view.away, view.since = None, time.monotonic()
                        view.was_connected = True
                        task = asyncio.create_task(_ask_time(api, dirty))
                        asking.add(task)
                        task.add_done_callback(asking.discard)
                    case Away(reason=reason):
                        view.evidence.leave(reason)
                        view.away, view.since = reason, time.monotonic()
                    case _:
                        assert_never(event)
                dirty.set()
    finally:
        for task in asking:
            task.cancel()


async def _ask_time(api: API, dirty: asyncio.Event) -> None:
    await api.ask_time()
    dirty.set()


async def _draw(view: View, dirty: asyncio.Event, screen: Screen) -> None:
    """At most four times a second, and at most a tenth of the time. Raises OSError."""
    while True:
        began = time.monotonic()
        dirty.clear()
        columns, lines = screen.size()
        screen.draw(view.render(screen.console, columns, lines))
        spent = time.monotonic() - began
        pause = max(INTERVAL, SHARE * spent)
        await asyncio.sleep(pause)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, TICK - pause)):
                await dirty.wait()
