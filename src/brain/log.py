"""The log, and what else Brain says while it serves: to a file descriptor, written by a thread of its own.

A terminal that somebody has stopped (Ctrl-S), a pipe that nobody reads or a disk that hangs takes a line and does not return. In the
event loop that would hold up every client, for as long as it lasts.
"""

import contextlib
import os
import queue
import threading

MAX_REQUESTS = 10_000
"""Lines that wait to be written. Beyond it new ones are lost, and counted in a line of their own."""

LAST = 1.0
"""Seconds that the end of the process waits for what is not written yet."""


class Log:
    """A text file for structlog.WriteLogger. What cannot be written (a full disk, a closed pipe) is lost, and nothing else is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_REQUESTS)
        self._lost = 0
        # Not sys.stderr: a thread that hangs in its write holds its lock, and Python aborts when it ends.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        try:
            if self._lost:
                self._lines.put_nowait(
                    f'level=warning event="lines of the log were lost" lines={self._lost}\n'
                )
                self._lost = 0
            self._lines.put_nowait(text)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Nothing: it is the thread's to write, and at once."""

    def close(self) -> None:
        """Write what waits, for LAST seconds at the most."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(LAST)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            data = line.encode(errors="replace")
            with contextlib.suppress(OSError):
                while data:
                    data = data[os.write(self._descriptor, data) :]
