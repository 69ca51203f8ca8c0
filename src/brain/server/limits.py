"""What a connection, and all together, may take of the server. Reasons: limits.md."""

from dataclasses import dataclass

from brain.access.limits import MAX_BEHIND_HEAD
from brain.access.rate_limit import RateLimit

_FRAMES = RateLimit(burst=100, rate=20)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes, times are seconds."""

    # A request.
    max_head: int = 16 * 1024
    max_url: int = 8 * 1024
    max_behind_head: int = MAX_BEHIND_HEAD
    """A body with its chunk headers and trailers. The API counts the body alone."""
    max_pipelined: int = 32
    """Unanswered requests of a connection (20 000 in one go blocked the event loop for 2 s)."""
    request_deadline: float = 5.0
    """From accept, or from a request's first byte, until the request is complete."""

    # A WebSocket.
    max_message: int = 4096
    frames: RateLimit = _FRAMES
    """Frames of a client; a frame above 1 KiB counts as one for each KiB."""
    token_deadline: float = 5.0
    """Until the first message is a token, where the upgrade had none."""
    close_timeout: float = 3.0
    """For a closing connection to flush and to answer the close frame."""
    max_discarded: int = 64 * 1024
    """Read, and discarded, of a client that is closing: its close frame, and what was in flight.
    Without this bound ten flooding clients made Brain read 10 GB in 8 s, and new clients waited 0.1
    s."""
    discard_timeout: float = 0.25
    """For such a client to read why it was closed: a reset may overtake the close frame."""

    # All connections.
    max_unupgraded: int = 16_384
    """Connections that are not WebSockets; beyond it the one that is idle longest is closed. Each
    costs 6 KB. More than BRAIN_MAX_CONNECTIONS, so that all clients can reconnect at once."""
    max_unsent: int = 256 * 1024 * 1024
    """Bytes queued for clients that do not read; beyond it those that are silent longest are
    closed. A buffer that several clients wait for counts once for each, though it is stored
    once."""
    max_expired: int = 200
    """Connections closed at their deadline in one round. Clients that connected together expire
    together: closing 3 000 in one go blocked the event loop for 0.3 s."""

    # The rounds of the server.
    expire_interval: float = 0.05
    """Between two rounds over the request deadlines."""
    tidy_interval: float = 0.5
    """Between two rounds over the unsent bytes, the suppressed log lines and the heap."""
    crowd: int = 1000
    """Connections that must have closed before the heap is trimmed."""
