"""python -m brain, and the script `brain`."""

import contextlib
import os
import signal
import sys


def main() -> None:
    for _ in range(3):
        # Who is started without standard input, output or error would have a socket in its place, and log into that.
        with contextlib.suppress(OSError):
            if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
                os.close(descriptor)
                break
    if sys.argv[1:2] == ["serve"]:
        # What is imported below takes more than half a second. Who is told to stop meanwhile has nothing to clean up.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
    from brain.cli import commands as cli  # noqa: PLC0415 - behind the signals

    cli.main()


if __name__ == "__main__":
    main()
