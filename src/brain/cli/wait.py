"""`brain wait`: block until runs end, and say how by the exit status."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Final, assert_never

from brain.cli.lines import Closed, printable, readable, say, write_line
from brain.cli.target import Target
from brain.client.events import Away, Connected
from brain.client.wait import Absent, Ended, Event, Gone, Hidden, Silent, outcomes
from brain.client.watch import TIMING, Timing
from brain.contract.messages import MAX_ID_BYTES, RunData, Status, storable

MAX_RUNS: Final = 1000
"""Runs of one command. Brain lets an address open 100 connections, each for 100 runs."""


class Exit(IntEnum):
    """The exit statuses. 130 is Ctrl-C."""

    COMPLETED = 0
    FAILED = 1
    REFUSED = 2
    GONE = 3
    TIMEOUT = 124
    """The same as that of timeout(1)."""


def check_runs(run_ids: Sequence[str]) -> Sequence[str]:
    """Raises ValueError with a sentence that names the run and the rule."""
    if len(run_ids) > MAX_RUNS:
        raise ValueError(f"{len(run_ids)} runs are too many: at most {MAX_RUNS}")
    for run_id in run_ids:
        if not run_id or len(run_id.encode(errors="replace")) > MAX_ID_BYTES:
            raise ValueError(f"run {run_id[:40]!r}: an id has 1 to {MAX_ID_BYTES} bytes")
        try:
            storable(run_id)
        except ValueError as error:
            raise ValueError(f"run {run_id[:40]!a} {error}") from None
    return run_ids


def is_success(run: RunData, statuses: Collection[Status]) -> bool:
    """Whether the run came to what was waited for.

    A completed run has been queued and running, though nobody may have seen it. A failed one may
    have failed before that.
    """
    if run.status in statuses:
        return True
    return run.status == "completed" and set(statuses) != {"failed"}


class Waiting:
    """The outcomes so far, and the exit status that follows from them."""

    def __init__(self, run_ids: Sequence[str], statuses: Collection[Status]) -> None:
        self.missing = dict.fromkeys(run_ids)
        self._statuses = statuses
        self._failed = self._gone = False

    def take(self, outcome: Ended | Gone) -> None:
        self.missing.pop(outcome.run_id, None)
        if isinstance(outcome, Gone):
            self._gone = True
        elif not is_success(outcome.run, self._statuses):
            self._failed = True

    def status(self) -> Exit:
        if self.missing:
            return Exit.TIMEOUT
        return Exit.GONE if self._gone else Exit.FAILED if self._failed else Exit.COMPLETED


async def wait_for(
    target: Target,
    run_ids: Sequence[str],
    statuses: Collection[Status],
    *,
    timeout: float | None,  # noqa: ASYNC109 - asyncio.timeout() is what it becomes
    must_exist: bool,
    as_json: bool,
    timing: Timing = TIMING,
) -> Exit:
    """Print a line for each run as it ends. Raises WatchError."""
    waiting = Waiting(run_ids, statuses)
    reporter = _Reporter(target.url, as_json=as_json)
    events = outcomes(
        target.url,
        run_ids,
        until=statuses,
        must_exist=must_exist,
        token=target.token,
        additional_headers=target.headers,
        timing=timing,
    )
    try:
        async with asyncio.timeout(timeout), contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Ended | Gone):
                    waiting.take(event)
                reporter.report(event)
    except TimeoutError:
        names = ", ".join(f"{run_id!r}" for run_id in list(waiting.missing)[:10])
        more = f" and {len(waiting.missing) - 10} more" if len(waiting.missing) > 10 else ""
        say(f"gave up after {timeout:g} s: still waiting for {names}{more}")
    return waiting.status()


class _Reporter:
    """Outcomes on standard output, the rest on standard error."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self._url = url
        self._as_json = as_json
        self._away = False

    def report(self, event: Event) -> None:
        match event:
            case Ended(run=run):
                # The exit status is the answer: it does not matter whether anybody reads this.
                with contextlib.suppress(Closed):
                    write_line(self._line(run))
            case Gone():
                say(str(event))
            case Connected():
                if self._away:
                    say(f"connected again to {self._url}")
                self._away = False
            case Away(reason=reason):
                say(f"no connection to {self._url} ({reason}); trying again")
                self._away = True
            case Silent(reason=reason):
                say(f"connected, but the API does not answer ({reason}); trying again")
            case Hidden(run_id=run_id, detail=detail):
                say(f"run {run_id!r} is not shown: {detail}; still waiting")
            case Absent(run_id=run_id):
                say(f"run {run_id!r} does not exist yet; waiting for it")
            case _:
                assert_never(event)

    def _line(self, run: RunData) -> str:
        if self._as_json:
            return readable(run.model_dump_json(exclude_none=True))
        error = f": {printable(run.error)}" if run.status == "failed" and run.error else ""
        return f"{printable(run.id)} {run.status}{error}"
