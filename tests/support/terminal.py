"""A command on a pseudo-terminal, and what its screen shows."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from tests.support.patience import PATIENCE, wait_until
from tests.support.prefork import take_terminal
from tests.support.served import BRAIN

_SEQUENCE = re.compile(
    r"\x1b\[(?P<private>\??)(?P<numbers>[0-9;]*)(?P<final>[A-Za-z])|(?P<c>[\r\n])"
    r"|(?P<text>[^\x1b\r\n]+)",
    re.DOTALL,
)


class Screen:
    """Interprets the few sequences that Brain sends. Any other fails the test."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.alternate = False
        self.cursor = True
        self.left: list[str] = [""]
        """What stands on the ordinary screen, line by line."""
        self.rows: dict[int, str] = {}
        """What stands on the alternate screen."""
        self.faults: list[str] = []
        self._row = self._column = 0

    def feed(self, data: str) -> None:
        position = 0
        while match := _SEQUENCE.match(data, position):
            position = match.end()
            if match["final"]:
                self._obey(match["private"], match["numbers"], match["final"])
            elif match["c"]:
                self._move(match["c"])
            elif match["text"]:
                self._print(match["text"])
        if position < len(data):
            self.faults.append(f"unknown: {data[position : position + 20]!r}")

    def _obey(self, private: str, numbers: str, final: str) -> None:
        match private + numbers, final:
            case "?1049", "h" | "l":
                self.alternate = final == "h"
                self.rows, self._row, self._column = {}, 0, 0
            case "?25", "h" | "l":
                self.cursor = final == "h"
            case position, "H":
                row, _, column = position.partition(";")
                self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
            case _, "m":
                pass
            case _:
                self.faults.append(f"unknown: {private}{numbers}{final}")

    def _move(self, character: str) -> None:
        if not self.alternate:
            self.left += [""] if character == "\n" else []
        else:
            self.faults.append("a line break on the alternate screen")

    def _print(self, text: str) -> None:
        if not self.alternate:
            self.left[-1] += text
            return
        row = self.rows.get(self._row, "") if self._column else ""
        if cell_len(row) != self._column:
            self.faults.append(f"a jump to {self._row};{self._column}")
        self.rows[self._row] = row + text
        self._column = cell_len(self.rows[self._row])
        if self._column > self.columns or self._row >= self.lines:
            self.faults.append(f"beyond {self.columns} by {self.lines}: {self.rows[self._row]!r}")

    def text(self) -> str:
        """What a person sees now."""
        return "\n".join(self.rows.get(row, "").rstrip() for row in range(self.lines))


class Terminal:
    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        program: str = "",
        **environment: str,
    ) -> None:
        """`program` is run instead of `python -m brain`."""
        self.screen = Screen(columns, lines)
        self.raw = b""
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        ignored = ("BRAIN_", "CI", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")
        kept = {name: v for name, v in os.environ.items() if not name.startswith(ignored)}
        self.attributes = (termios.tcgetattr(slave), True)
        self.process = subprocess.Popen(
            [*([sys.executable, "-c", program] if program else BRAIN), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment,
            preexec_fn=take_terminal,  # noqa: PLW1509 - it makes one system call
            start_new_session=True,
        )
        self.slave = slave
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        pending = b""
        with suppress(OSError):
            while data := os.read(self._master, 65536):
                self.raw += data
                # A sequence or a character may be cut in two: the last one waits.
                text = (pending + data).decode(errors="surrogateescape")
                cut = max(text.rfind("\x1b"), 0) if "\x1b" in text[-12:] else len(text)
                while cut and "\udc80" <= text[cut - 1] <= "\udcff":
                    cut -= 1
                pending = text[cut:].encode(errors="surrogateescape")
                if _SEQUENCE.fullmatch(text, cut):
                    pending, cut = b"", len(text)
                self.screen.feed(text[:cut])

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        self.screen.columns, self.screen.lines = columns, lines
        self.screen.rows.clear()
        self._size(columns, lines)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def shows(self, *parts: str) -> None:
        wait_until(
            lambda: all(part in self.screen.text() for part in parts),
            lambda: f"{parts} not in\n{self.screen.text()}\n{self.screen.left}",
        )

    def state(self) -> str:
        """Of the process, as ps shows it: T is stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def attributes_now(self) -> tuple[object, bool]:
        """Of the terminal, and of the file that the shell shares with its commands."""
        return termios.tcgetattr(self.slave), os.get_blocking(self.slave)

    def ends(self) -> int:
        status = self.process.wait(PATIENCE)
        os.close(self.slave)
        self.slave = -1
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.slave >= 0:
            os.close(self.slave)
        self._reader.join(PATIENCE)
        os.close(self._master)


@contextmanager
def terminal(*arguments: str, **options: Any) -> Iterator[Terminal]:
    it = Terminal(*arguments, **options)
    try:
        yield it
        assert not it.screen.faults, it.screen.faults[:3]
    finally:
        it.close()
