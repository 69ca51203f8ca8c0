"""Every interval, deadline and bound of following the table: seconds, unless a field says
otherwise.

They are values that are handed in, so that a test can hand in shorter ones.
"""

from dataclasses import dataclass, field
from typing import Final

from brain.contract.back_off import BackOff


@dataclass(frozen=True, slots=True)
class PollTiming:
    share: float = 20
    """A scan is followed by a pause of this many times its duration: polling takes at most 5 % of a
    core."""
    page: float = 2.8e-6
    """What a scan may cost at most per 8 KiB of the table, whatever the clock says: a scan on a
    busy machine takes longer than it costs. A million rows are read once a second with it, for 7.6
    % of a core (`python -m benchmarks.polling`)."""
    max_pause: float = 60.0
    """The longest pause. A scan of three seconds may take more of a core than `share` grants, in a
    table that large."""
    unseen: float = 1.0
    """How long a query is waited for to see what a stream has delivered."""
    locked: float = 15.0
    """How long a query waits for a lock on the table (ALTER TABLE, VACUUM FULL)."""
    first_scan: float = 600.0
    """How long a first scan may take, on a cold disk."""
    later_scan: float = 60.0
    """How long a later scan may take, in addition to `share` times the last one."""

    def pause(self, last: float, took: float, size: int) -> float:
        """The pause after two scans of these durations, in a table of `size` bytes.

        The shorter of the two counts: one slow scan, as the first is and any may be on a busy
        machine, says nothing of the next. Waiting for a disk, or for a core that others use, is no
        cost either.
        """
        cost = min(last, took, self.page * (size / 8192) or self.max_pause)
        return min(self.max_pause, self.share * cost)

    def deadline(self, last: float, *, first: bool) -> float:
        """How long a scan may take, if the last one took `last` (0: unknown)."""
        return self.first_scan if first or not last else self.later_scan + self.share * last


@dataclass(frozen=True, slots=True)
class StreamTiming:
    gulp: float = 0.005
    """Between two reads under load. It halves the CPU of reading at once, and writers keep 0.88 of
    their rate instead of 0.82."""
    unwatched_gulp: float = 0.025
    """The same while nobody waits for what is read."""
    idle: float = 1.0
    """How long a read waits for something to arrive."""
    status_every: float = 1.0
    """Between two standby status updates."""
    ask_every: float = 2.0
    """Silence after which a status update asks the server for a reply. A silent database shows in
    `source` messages 5 s after it was last heard, so it must be heard more often."""
    dead_after: float = 15.0
    """Silence after which the connection counts as dead."""
    sender_timeout: float = 10.0
    """The walsender's wal_sender_timeout. It writes when half of this has passed, even while it
    decodes a large transaction and replies to nothing; so `dead_after` must be longer."""


@dataclass(frozen=True, slots=True)
class Timing:
    poll: PollTiming = PollTiming()
    stream: StreamTiming = StreamTiming()
    back_off: BackOff = field(default=BackOff(first=0.2, longest=1.5))
    """Between tries to connect. The longest keeps the promise that a database which is back is
    followed within 2 s."""
    steady: float = 5.0
    """A connection that lasted this long was no failure: the back-off starts again."""
    promote_every: float = 10.0
    """Until a stream that was refused is asked for again."""
    rejoin_within: float = 0.5
    """A lost stream is asked for again after a random part of this, so that several Brains do not
    come at once."""
    stream_first: float = 0.5
    """How long the first look of a process waits for a stream, which it would have to join with
    another look. A slot waits for open write transactions, and a client for the first look."""
    slot_timeouts: tuple[float, ...] = (5.0, 30.0, 300.0)
    """How long creating a slot may wait for open write transactions, try by try; the last one
    repeats."""
    check_every: float = 1.0
    """Between two looks at the catalog's fingerprint. A key that is dropped makes the application's
    UPDATEs fail until Brain has withdrawn its publication: within 2 s."""
    watch_every: float = 10.0
    """Between two thorough looks at what a stream depends on; while polling, at the catalog."""
    compare_every: float = 60.0
    """Between two comparisons of the table with the board."""
    max_wal: int = 1024**3
    """Bytes of write-ahead log that our slot may retain before Brain drops it: an open transaction
    anywhere pins them."""


TIMING: Final = Timing()
"""What `brain serve` uses."""
