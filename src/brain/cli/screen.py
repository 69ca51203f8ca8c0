"""The terminal while a table is drawn on it: its other screen, its keys, its size, its signals."""

import asyncio
import contextlib
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from rich.console import Console
from rich.segment import Segment

from brain.cli.lines import STDOUT

STDIN: Final = 0

STOP_KEYS = b"qQ\x04"
"""q, and Ctrl-D."""


class Screen:
    """The alternate screen. Whatever ends the block, the terminal is afterwards as it was."""

    def __init__(self, changed: Callable[[], None], stop: Callable[[], object]) -> None:
        """`changed` is called when the screen has to be drawn again, `stop` when a key says so."""
        self._changed = changed
        self._stop = stop
        self.terminated = False
        self._attributes: list[Any] | None = None
        self._keys = -1
        encoding = sys.stdout.encoding or "ascii"
        self.console = Console(
            # A run may contain what the terminal's encoding does not.
            file=open(STDOUT, "w", encoding=encoding, errors="replace", closefd=False),  # noqa: SIM115
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._changed)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM):
            loop.remove_signal_handler(number)
        self._leave()

    def _terminate(self) -> None:
        self.terminated = True
        self._stop()

    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(STDOUT)
            if columns and lines:
                return columns, lines
        return 80, 24

    def draw(self, lines: list[list[Segment]]) -> None:
        """Lines of exactly the size of the screen."""
        self.console.update_screen_lines(lines)

    def _enter(self) -> None:
        self.console.set_alt_screen(True)
        self.console.show_cursor(False)
        with contextlib.suppress(termios.error, OSError):
            # A job in the background may not touch the keys: it would be stopped.
            if os.tcgetpgrp(STDIN) == os.getpgrp():
                self._attributes = termios.tcgetattr(STDIN)
                silent = termios.tcgetattr(STDIN)
                silent[3] &= ~(termios.ECHO | termios.ICANON)
                termios.tcsetattr(STDIN, termios.TCSADRAIN, silent)
                # Opened a second time: the loop makes what it reads non-blocking, and standard
                # input shares that with standard output, and with the shell.
                self._keys = os.open(os.ttyname(STDIN), os.O_RDONLY | os.O_NOCTTY)
                asyncio.get_running_loop().add_reader(self._keys, self._read_key)

    def _leave(self) -> None:
        if self._keys >= 0:
            asyncio.get_running_loop().remove_reader(self._keys)
            os.close(self._keys)
            self._keys = -1
        if self._attributes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(STDIN, termios.TCSADRAIN, self._attributes)
            self._attributes = None
        with contextlib.suppress(OSError):  # the terminal may have been closed
            self.console.show_cursor(True)
            self.console.set_alt_screen(False)

    def _read_key(self) -> None:
        try:
            keys = os.read(self._keys, 64)
        except OSError:
            keys = b""
        if not keys or set(keys) & set(STOP_KEYS):
            self._stop()

    def _suspend(self) -> None:
        """Ctrl-Z: give the terminal back first, and take it again afterwards."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self._changed()


@contextlib.contextmanager
def opened(changed: Callable[[], None], stop: Callable[[], object]) -> Iterator[Screen]:
    screen = Screen(changed, stop)
    with contextlib.closing(screen.console.file), screen:
        yield screen
