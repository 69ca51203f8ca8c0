"""`python -m brain`, and the script `brain`."""

import contextlib
import os
import signal
import sys


def main() -> None:
    for _ in range(3):
        # Open descriptors 0, 1 and 2 where they are closed. A socket would get the free number, and
        # what is printed or logged would be sent to its peer.
        with contextlib.suppress(OSError):
            if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
                os.close(descriptor)
                break
    if sys.argv[1:2] == ["serve"]:
        # The imports below take more than half a second, in which there is nothing to clean up.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
    from brain.cli import commands  # noqa: PLC0415 - after the signal handlers

    commands.main()


if __name__ == "__main__":
    main()
