"""The output of commands that run for long: whole lines in UTF-8, and whether anybody reads them.

Not print(): its buffer would be flushed once more at exit, into a pipe that is closed.
"""

import asyncio
import contextlib
import json
import os
import re
import select
from typing import Final

STDOUT: Final = 1
STDERR: Final = 2

READER_CHECK: Final = 0.25
"""Seconds between two checks whether anybody still reads."""

_UNSAFE: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What JSON may contain as it is, but a terminal obeys or UTF-8 cannot express."""


class Closed(Exception):  # noqa: N818 - the normal end of `brain watch | head`
    """Nobody reads standard output any more."""


def write_line(text: str) -> None:
    """Raises Closed, and OSError (a full disk)."""
    data = f"{text}\n".encode()
    while data:
        try:
            data = data[os.write(STDOUT, data) :]
        except BlockingIOError:  # another program has made the pipe non-blocking
            select.select([], [STDOUT], [])
        except BrokenPipeError:
            raise Closed from None


def say(text: str) -> None:
    """A line on standard error. Where nobody reads it, nobody misses it."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"brain: {printable(text)}\n".encode())


async def until_closed() -> None:
    """Return when nobody reads standard output any more, though nothing is written to it."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    while not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        await asyncio.sleep(READER_CHECK)


def readable(message: str) -> str:
    """A message in UTF-8 as it is, on one line; the wire has it in ASCII."""
    text = json.dumps(json.loads(message), ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(text: str) -> str:
    """What somebody wrote into the table, on one line, and without what a terminal obeys."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
