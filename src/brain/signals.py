"""The signals that end Brain.

SIGHUP has two meanings: the terminal in which Brain runs was closed, or somebody asks for other
workers. `__main__` blocks it during the imports, for which one it is is known only after them.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TERMINAL: Final = Path("/dev/tty")
"""The terminal of this process. It cannot be opened if there is none."""


ENDINGS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ignore_signals() -> None:
    """Everything has ended. The loop and the interpreter take 0.2 s more, in which a second signal
    would kill this process, and its exit status would not be 0.
    """
    for number in ENDINGS:
        # Closing the loop would bring back the default action.
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


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
