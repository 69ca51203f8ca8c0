"""What becomes of a request that writes a run. Its route and the handler of errors fill it in, and
the log has a line of it.
"""

from dataclasses import dataclass

from fastapi import Request

WRITE = "brain.write"
"""Where the ASGI scope of a request holds its Write."""


@dataclass(slots=True)
class Write:
    run: str = ""
    """The id; "" if there is none yet."""
    was: str = ""
    """The status that clients saw before; "" if there was no run, or Brain does not hold it."""
    now: str = ""
    """The status after it; "" if nothing was written."""
    detail: str = ""
    """Why the database did not write; "" if it was not the database."""


def write(request: Request) -> Write:
    found: Write = request.scope.get(WRITE) or Write()
    return found
