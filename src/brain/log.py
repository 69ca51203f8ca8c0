"""The log: lines in logfmt, which a thread of its own writes to a file descriptor.

A write blocks when a terminal is stopped (Ctrl-S), a pipe is not read or a disk hangs. In the event
loop that would hold up every client for as long as it lasts.
"""

import contextlib
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

MAX_LINES = 10_000
"""Lines waiting to be written. More are dropped, and a line of its own counts them."""

CLOSE_TIMEOUT = 1.0
"""Seconds that the end of the process waits for lines that are not yet written."""


class Log:
    """A text file for structlog.WriteLogger.

    A line that cannot be written (full disk, closed pipe) is lost, without an error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._lost = 0
        # Not sys.stderr: a thread that blocks in its write holds its lock, and Python would abort
        # at exit.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        try:
            if self._lost:
                self._lines.put_nowait(f'level=warning event="log lines lost" lines={self._lost}\n')
                self._lost = 0
            self._lines.put_nowait(text)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Do nothing: the thread writes each line at once."""

    def close(self) -> None:
        """Write what is waiting, for at most CLOSE_TIMEOUT seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            data = line.encode(errors="replace")
            with contextlib.suppress(OSError):
                while data:
                    data = data[os.write(self._descriptor, data) :]


def configure_logging(log: Log, worker: int | None = None) -> None:
    """Send Brain's events and the libraries' warnings to `log`, in one form. Each line of one of
    several workers has its number.
    """
    file = cast("TextIO", log)
    before: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        before.append(lambda _, __, event: {**event, "worker": worker})
    after: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        ),
    ]
    structlog.configure(
        processors=[*before, *after], logger_factory=structlog.WriteLoggerFactory(file)
    )
    libraries = logging.StreamHandler(file)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])


def set_log_level(level: str) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level), cache_logger_on_first_use=True
    )
