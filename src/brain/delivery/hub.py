"""The hub: hands every change to every client, in batches, and brings those up to date who could not keep up.

It never awaits, and has no queue, task or timer per client. Changes gather in `pending` and are flushed together: at once
when the last flush is older than the interval, else when the interval is over or 128 KiB are pending. A flush is planned
(who is to receive which bytes), then swept: one `write` per client and batch.

A client is in one of three states:

    live      seq None       receives every flush
    paused    seq s          its transport is full; all up to s was handed to it, and it is sent nothing more
    ready     seq s          drained, or new with `snapshot` or `since`: the next ticks send the current state of what
                             changed after s, a piece at a time

    live ── the transport pauses in a write ──► paused ── it has drained ──► ready ── caught up, nothing pending ──► live
                                                   └──── drained before the next flush ────────────────────────────┘

The invariant behind it: everything up to a client's seq (for a live one, up to what has been flushed) was handed to it, as
it was or superseded by something newer; what is newer than the last flush is pending. tests/test_hub_histories.py takes
each of the rules marked (R…) away in turn, and sees a client end up wrong.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeAlias

import structlog

from brain.contract.close_codes import GAP, TRY_AGAIN_LATER
from brain.contract.messages import ACTIVE, Micros
from brain.contract.subscription import ALL, ANY, FIELDS, Facet, Filter, Subscription
from brain.delivery.board import Board, Entry, Push

log = structlog.get_logger()

BATCH = 128 * 1024
"""Bytes of a batch, at the most: no more than a socket takes at once (SO_SNDBUF), or healthy clients pause too (with
1 MB, 200 of them paused 2 815 times; with 128 KiB never, at the same throughput)."""

BUDGET = 0.025
"""Seconds that a sweep or a round of catching up may hold the event loop (5 ms doubled the latency of everyone)."""

STRIDE = 32
"""Clients served between two looks at the clock."""


class Client:
    """What the hub knows of a connection, which extends it: an integer where it lags."""

    __slots__ = ("cohort", "intact", "paused", "seq", "until", "write")

    write: Callable[[bytes], object]
    """Hands bytes to the transport. Looked up at each call: a connection that closes replaces it by a no-op."""
    cohort: "Cohort | None"
    seq: int | None
    until: int
    """Finished runs up to here do not concern a client that joined with `snapshot`."""
    paused: bool
    intact: bool
    """Nothing but flushes was handed to it since it was live: it has skipped no run that a pending change supersedes."""

    def end(self, code: int, reason: str) -> None:
        """Close the connection with a close frame (RFC 6455, section 7.4)."""
        raise NotImplementedError

    def drop(self, error: Exception) -> None:
        """Serving this client has failed: end it, and nobody else."""
        raise NotImplementedError


class Cohort:
    """The clients with one filter: what one of them receives, all receive, made once."""

    __slots__ = ("field", "filter", "live", "members")

    def __init__(self, filter_: Filter) -> None:
        self.filter = filter_
        self.live: set[Client] = set()
        self.members = 0
        # The most selective field that the filter has: the cohort is indexed there, under each of its values.
        self.field = next((name for name in FIELDS if getattr(filter_, name)), None)


@dataclass(slots=True)
class Counts:
    """Totals since the start."""

    changes: int = 0
    conflated: int = 0
    flushes: int = 0
    deliveries: int = 0
    """Messages handed to clients' transports by flushes."""
    pieces: int = 0
    """Writes that brought a client up to date."""
    lags: int = 0
    """Episodes in which a client missed a flush."""
    gaps: int = 0
    """Clients closed because the board's memory did not reach back to where they were."""
    failures: int = 0


class Timer(Protocol):
    def cancel(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes for one write, the seq that they reach, and how many messages they are."""

    data: bytes
    end: int
    count: int


Step: TypeAlias = tuple[list[Client], list[Batch]]
"""Who is to receive which batches."""


class Hub:
    """`interval` is the flush interval, in seconds by `clock`. When a flush has been handed over, `observe` is told the
    commit time of its oldest change.
    """

    def __init__(
        self,
        board: Board,
        *,
        interval: float,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        observe: Callable[[Micros], object] = lambda _: None,
    ) -> None:
        self.board = board
        self.counts = Counts()
        self.flushed = 0
        """The board's seq at the last flush that was planned."""
        self.pending_bytes = 0
        self.clients = 0
        self.lagging = 0
        """Clients whose transport is full now."""
        self._interval = interval
        self._clock = clock
        self._call_later = call_later
        self._observe = observe
        self._pending: list[Push | None] = []
        self._steady: dict[str, int] = {}
        """Run id → the place of its last pending change, if that one left the status as it was."""
        self._cohorts: dict[Filter, Cohort] = {}
        self._index: dict[str, dict[str, set[Cohort]]] = {name: {} for name in FIELDS}
        self._ready: deque[Client] = deque()
        self._late: set[Client] = set()
        self._sweep: Iterator[None] | None = None
        self._serving: int | None = None
        """While the sweep is inside a client's write: the seq that this batch reaches."""
        self._deadline = 0.0
        self._last_flush = float("-inf")
        self._timer: Timer | None = None
        self._due = float("inf")

    # Clients come and go.

    def join(self, client: Client, wish: Subscription) -> None:
        """From now on the hub writes to the client. Ends it at once if its `since` cannot be answered."""
        client.seq, client.until, client.paused, client.intact = None, 0, False, False
        cohort = self._cohorts.get(wish.filter)
        if cohort is None:
            cohort = self._cohorts[wish.filter] = Cohort(wish.filter)
            if cohort.field is not None:
                for value in getattr(wish.filter, cohort.field):
                    self._index[cohort.field].setdefault(value, set()).add(cohort)
        client.cohort = cohort
        cohort.members += 1
        self.clients += 1
        if wish.since is not None:
            seq = self.board.since(wish.since)
            if seq is None:
                self._refuse(client)
                return
            client.seq = min(seq, self.flushed)
        elif wish.snapshot:
            client.seq, client.until = 0, self.flushed
        elif self.board.begun:
            cohort.live.add(client)  # (R14)
            return
        else:
            # What has changed since it loaded the runs may be in the first Snapshot, which pushes nothing.
            self._refuse(client)
            return
        self._ready.append(client)
        self._arm(0)

    def leave(self, client: Client) -> None:
        """The connection is gone or closing: nothing more is written to it. May be called twice."""
        cohort = client.cohort
        if cohort is None:
            return
        if client.paused and client.seq is not None:
            self.lagging -= 1
        client.cohort, client.seq = None, 0
        cohort.live.discard(client)
        self._late.discard(client)
        self.clients -= 1
        cohort.members -= 1
        if not cohort.members:
            del self._cohorts[cohort.filter]
            if cohort.field is not None:
                for value in getattr(cohort.filter, cohort.field):
                    cohorts = self._index[cohort.field][value]
                    cohorts.discard(cohort)
                    if not cohorts:
                        del self._index[cohort.field][value]

    def pause(self, client: Client) -> None:
        """The client's transport is full. uvloop says so from inside the `write` that filled it, and nowhere else."""
        client.paused = True
        if client.cohort is None:
            return
        if client.seq is None:
            if self._sweep is not None and self._serving is None:
                # Filled by a ping or pong while a sweep is suspended, which may have been at it or not. It stays a receiver of
                # this flush (its transport keeps references, not copies), and is taken out behind it.
                self._late.add(client)
                return
            # (R2) The batch just handed over counts as sent.
            self._cut_off(
                client, client.cohort, self.flushed if self._serving is None else self._serving
            )
        else:
            self.lagging += 1

    def _cut_off(self, client: Client, cohort: Cohort, seq: int) -> None:
        client.seq, client.until, client.intact = seq, 0, True
        cohort.live.discard(client)
        self.lagging += 1

    def resume(self, client: Client) -> None:
        """The client's transport has drained. Writes nothing: a piece that the kernel takes whole causes no further call."""
        client.paused = False
        cohort = client.cohort
        if cohort is None:
            return
        if client.seq is None:
            self._late.discard(client)
            return
        self.lagging -= 1
        if client.intact and client.seq == self.flushed:
            # (R3) Nothing was flushed meanwhile, so nothing was missed.
            client.seq = None
            cohort.live.add(client)
        else:
            self.counts.lags += client.intact
            self._ready.append(client)
            self._arm(0)

    def _refuse(self, client: Client) -> None:
        """(R12) A gap is said, never papered over."""
        if self.board.begun:
            self.counts.gaps += 1
            client.end(GAP.code, GAP.reason)
        else:
            client.end(TRY_AGAIN_LATER.code, TRY_AGAIN_LATER.reason)

    def _write(self, client: Client, data: bytes) -> None:
        try:
            client.write(data)
        except Exception as error:  # noqa: BLE001 - one client's failure must never end a round
            self._failed(client, error)

    def _failed(self, client: Client, error: Exception) -> None:
        self.counts.failures += 1
        self.leave(client)
        client.drop(error)

    # Changes come in.

    def push(self, pushes: Collection[Push]) -> None:
        """Take what the board found to be new, in the order of seq, as soon as it has been applied."""
        pending, steady_at = self._pending, self._steady
        for entry, facets, steady in pushes:
            run_id = entry[2][0]
            merged = facets
            if steady:
                # (R7, R8) The older of two changes that left the status alone goes, the newer stands at the end: in the older's
                # place, times would go back, and a client cut in the middle would resume past the rest.
                place = steady_at.get(run_id)
                if place is not None and (older := pending[place]) is not None:
                    pending[place] = None
                    self.pending_bytes -= len(older[0][3])
                    self.counts.conflated += 1
                    merged = (
                        facets if older[1] == facets else tuple(dict.fromkeys(older[1] + facets))
                    )
                steady_at[run_id] = len(pending)
            else:
                steady_at.pop(run_id, None)
            pending.append((entry, merged, steady))
            self.pending_bytes += len(entry[3])
        self.counts.changes += len(pushes)
        if self._flush_is_due():
            self.tick()
        elif pending:
            self._arm(self._last_flush + self._interval - self._clock())
        else:
            # Nothing to push, though a first Snapshot and a delete move the board's seq. Who waits for the first is served now.
            self.flushed = self.board.seq
            if self._ready:
                self._arm(0)

    def _flush_is_due(self) -> bool:
        """(R6) No flush begins before the last one's sweep has ended."""
        if not self._pending or self._sweep is not None:
            return False
        # A timer may come a hair early by this clock: half a millisecond is not worth another turn of the loop.
        return (
            self.pending_bytes >= BATCH
            or self._clock() - self._last_flush >= self._interval - 0.0005
        )

    # The tick: plan a flush, catch up, sweep (R5).

    def tick(self) -> None:
        """One turn, of at most one and a half budgets; it arms the timer if there is more to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due = None, float("inf")
        if self._flush_is_due():
            self._plan()
        behind = self._catch_up(self._clock() + BUDGET / 2) if self._ready else False
        if self._sweep is not None:
            self._deadline = self._clock() + BUDGET
            if next(self._sweep, self) is self:
                self._sweep = None
                self._settle()
        if behind or self._sweep is not None:
            self._arm(0)
        elif self._pending:
            self._arm(self._last_flush + self._interval - self._clock())

    def _arm(self, delay: float) -> None:
        delay = max(delay, 0.0) if self.pending_bytes < BATCH else 0.0
        due = self._clock() + delay
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._call_later(delay, self.tick)

    def _plan(self) -> None:
        """Fix who receives what. From here on these changes count as flushed (R1): before the first write, which may pause."""
        pushes = [push for push in self._pending if push is not None]
        self._pending.clear()
        self._steady.clear()
        self.pending_bytes = 0
        self.flushed = self.board.seq
        self._last_flush = self._clock()
        self.counts.flushes += 1
        steps: list[Step] = []
        everyone = self._cohorts.get(ALL)
        if everyone is not None and everyone.live:
            steps.append((list(everyone.live), _batches(pushes, self.flushed)))
        concerned: dict[Cohort, list[Push]] = {}
        for push in pushes if any(self._index.values()) else ():
            run_id = push[0][2][0]
            for cohort in self._candidates(run_id, push[1]):
                filter_ = cohort.filter
                if cohort.live and filter_.matches(run_id, push[1]) and filter_.permits(push[0][2]):
                    concerned.setdefault(cohort, []).append(push)
        steps.extend(
            (list(cohort.live), _batches(mine, self.flushed)) for cohort, mine in concerned.items()
        )
        self._sweep = self._sweeping(steps, pushes[0][0][1])

    def _candidates(self, run_id: str, facets: Collection[Facet]) -> set[Cohort]:
        """The cohorts that may want a change: those indexed under one of its values, and no look at the others."""
        index = self._index
        found = set(index["run_id"].get(run_id, ()))
        for status, agent, task_id in facets:
            found.update(index["status"].get(status, ()))
            for by_value, value in ((index["agent"], agent), (index["task_id"], task_id)):
                if value == ANY:
                    found.update(chain.from_iterable(by_value.values()))
                elif value is not None and by_value:
                    found.update(by_value.get(value, ()))
        return found

    def _catch_up(self, deadline: float) -> bool:
        """Send each ready client its next piece. True if some could go on at once."""
        flushed, board = self.flushed, self.board
        pieces: dict[tuple[Filter, int, int], tuple[bytes, int]] = {}
        behind = False
        for _ in range(len(self._ready)):
            if self._clock() > deadline:
                return True
            client = self._ready.popleft()
            cohort = client.cohort
            if cohort is None or client.seq is None or client.paused:
                continue
            if not board.begun:
                self._ready.append(client)
                continue
            if board.floor > max(client.seq, client.until):
                self._refuse(client)
                continue
            if client.seq < flushed:
                # (R4) Never beyond what has been flushed: what is newer is pending, and will come.
                key = (cohort.filter, client.seq, client.until if client.seq < client.until else 0)
                if key not in pieces:
                    pieces[key] = board.piece(client.seq, flushed, _wanted(cohort.filter, key[2]))
                data, client.seq = pieces[key]
                client.intact = False
                if data:
                    self.counts.pieces += 1
                    self._write(client, data)
                if client.cohort is None or client.paused:
                    continue
            if client.seq == flushed and not self._pending:
                # (R5) Were something pending, a run that was skipped because that supersedes it would reach a client with a
                # filter only as that change, whose "was" it never saw; it might stay in the client's view for ever.
                client.seq = None
                cohort.live.add(client)
            else:
                behind = behind or client.seq < flushed
                self._ready.append(client)
        return behind

    def _sweeping(self, steps: list[Step], oldest: Micros) -> Iterator[None]:
        """Hand over the batches; yields when the budget is spent, and is resumed by the next tick."""
        turns = 0
        for everyone, batches in steps:
            receivers = everyone
            cut_off: set[Client] = set()
            for batch in batches:
                if cut_off:
                    receivers = [client for client in receivers if client not in cut_off]
                # Without a call of ours around each write, and with one look at the clock for many: 130 ns a client, and so 45.
                data = batch.data
                self._serving = batch.end
                served = 0
                for at in range(0, len(receivers), STRIDE):
                    some = receivers[at : at + STRIDE]
                    if turns + len(some) > STRIDE:
                        turns = 0
                        if self._clock() > self._deadline:
                            self._serving = None
                            yield
                            self._serving = batch.end
                    turns += len(some)
                    for client in some:
                        if client.cohort is None:
                            continue
                        served += 1
                        # A slot: as a method call, CPython would look it up the slow way.
                        write = client.write
                        try:
                            write(data)
                        except Exception as error:  # noqa: BLE001 - one client's failure must never end a sweep
                            self._failed(client, error)
                        if client.seq is not None:
                            # In this write. It may have caught up, and be live, before the next batch of this sweep.
                            cut_off.add(client)
                self.counts.deliveries += served * batch.count
        self._serving = None
        self._observe(oldest)

    def _settle(self) -> None:
        """Behind a sweep: take out who filled up while it was suspended."""
        for client in self._late:
            assert client.cohort is not None, "who leaves is taken out of the late ones"
            self._cut_off(client, client.cohort, self.flushed)
        self._late.clear()


def _wanted(filter_: Filter, until: int) -> Callable[[Entry], bool] | None:
    """(R10) In catching up, what matters is anything that the run has been since the board knows it."""
    if filter_ == ALL and not until:
        return None
    return lambda entry: (
        (entry[0] > until or entry[2][1] in ACTIVE)
        and filter_.matches(entry[2][0], entry[4])
        and filter_.permits(entry[2])
    )


def _batches(pushes: Collection[Push], flushed: int) -> list[Batch]:
    batches: list[Batch] = []
    frames: list[bytes] = []
    size = end = 0
    for (seq, _, _, frame, _, _), _, _ in pushes:
        if frames and size + len(frame) > BATCH:
            batches.append(Batch(b"".join(frames), end, len(frames)))
            frames, size = [], 0
        frames.append(frame)
        size += len(frame)
        end = seq
    batches.append(Batch(b"".join(frames), flushed, len(frames)))
    return batches
