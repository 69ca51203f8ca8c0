"""`brain watch`: a table on a terminal, otherwise one message a line."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Final, assert_never

from brain import Away, Connected, Deleted, Message, Ready, Source
from brain import watch as watch_events
from brain.cli.lines import Closed, readable, say, until_closed, write_line
from brain.cli.target import Target
from brain.client.events import Event
from brain.client.watch import Timing
from brain.contract.messages import Status

DEADLINE: Final = 10.0
"""Seconds of silence after which a table no longer says that it is live."""


@dataclass(frozen=True, slots=True)
class Options:
    snapshot: bool | None = None
    """First the queued and running runs. None: if it is a table."""
    statuses: tuple[Status, ...] = ()
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    quiet: float = 300.0
    """Seconds after which a running run that does not change is marked."""
    as_json: bool = False


def draws_table(options: Options) -> bool:
    """Not for a file, a pipe, a job of CI, or a terminal that cannot move its cursor."""
    return (
        not options.as_json
        and sys.stdout.isatty()
        and os.environ.get("CI", "").lower() in ("", "0", "false")
        and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    )


async def show(target: Target, options: Options) -> None:
    """Until interrupted, or until nobody reads any more. Raises WatchError."""
    if not draws_table(options):
        events = _events(target, options, snapshot=bool(options.snapshot), deadline=40.0)
        await _while_read(_print_messages(events, target.url))
        return
    # Only here: importing rich takes as long as everything else.
    from brain.cli.table import show_table  # noqa: PLC0415

    snapshot = options.snapshot is not False
    events = _events(target, options, snapshot=snapshot, deadline=DEADLINE)
    await show_table(events, target, statuses=options.statuses, quiet=options.quiet)


def _events(
    target: Target, options: Options, *, snapshot: bool, deadline: float
) -> AsyncGenerator[Event]:
    return watch_events(
        target.url,
        snapshot=snapshot,
        status=options.statuses,
        agent=options.agents,
        task_id=options.tasks,
        token=target.token,
        deadline=deadline,
        additional_headers=target.headers,
        timing=Timing(),
    )


async def _while_read(work: Coroutine[None, None, None]) -> None:
    """Run `work` until it ends, or until nobody reads standard output: `brain watch | head`."""
    task, closed = asyncio.ensure_future(work), asyncio.ensure_future(until_closed())
    try:
        await asyncio.wait({task, closed}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            with contextlib.suppress(Closed):
                task.result()
    finally:
        for each in (task, closed):
            each.cancel()
        await asyncio.gather(task, closed, return_exceptions=True)


async def _print_messages(events: AsyncGenerator[Event], url: str) -> None:
    """Messages on standard output, the connection on standard error. Raises Closed, WatchError."""
    connected_before = False
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case Message(text=text) | Deleted(text=text) | Ready(text=text) | Source(text=text):
                    write_line(readable(text))
                case Connected(reset=reset):
                    say(f"connected {'again ' if connected_before else ''}to {url}")
                    if reset and connected_before:
                        say(
                            "it is not known what changed during the outage; "
                            "the queued and running runs follow"
                        )
                    connected_before = True
                case Away(reason=reason):
                    say(f"no connection to {url} ({reason}); trying again")
                case _:
                    assert_never(event)
