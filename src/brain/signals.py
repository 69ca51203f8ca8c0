"""The signals that end Brain.

SIGHUP has two meanings: the terminal in which Brain runs was closed, or somebody asks for other
workers. Which one it is, Brain knows only after the imports: `__main__` blocks it during them.
"""

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TERMINAL: Final = Path("/dev/tty")
"""The terminal of this process. It cannot be opened if there is none."""

ENDINGS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


END: Final = 2.0
"""Seconds for the loop and the interpreter to end, which takes 0.2."""


def end_soon(status: int = 0) -> None:
    """Everything has ended that must end in order. What is left cannot change the exit status.

    A second signal would kill this process. And the loop waits for each look-up of a host name that
    is under way: 15 s where no name server answers, in which a service manager kills it.
    """
    for number in ENDINGS:
        # Closing the loop would bring back the default action.
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    late = threading.Timer(END, os._exit, (status,))
    late.daemon = True
    late.start()


class HangUp:
    """Made before the loop has a handler for SIGHUP. `stop` is called once; `replace` is None where
    there is nothing to replace.

    If the terminal is closed, the signal comes once or more, from the kernel and from the shell. A
    second SIGTERM means haste, and a second SIGHUP does not.
    """

    def __init__(self) -> None:
        self.stop: Callable[[], object] = _nothing
        self.replace: Callable[[], object] | None = None
        self._ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        """Started by nohup: the end of its terminal is not to end it."""
        self._had_terminal = _has_terminal()
        self._stopped = False

    def listen(self) -> None:
        if not self._ignored or self.replace is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._came)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def _came(self) -> None:
        was_closed = self._had_terminal and not _has_terminal()
        if self.replace is not None and not was_closed:
            self.replace()
        elif self._ignored:
            self._had_terminal = False  # the next one is meant
        elif not self._stopped:
            self._stopped = True
            self.stop()


def _has_terminal() -> bool:
    try:
        os.close(os.open(TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _nothing() -> None:
    pass
