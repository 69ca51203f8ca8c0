"""The hub: sends every change to every client, in batches, and catches up the clients that lag.

It never awaits, and has no queue, task or timer per client. Changes gather in `_pending`; a flush
sends them all, when the pace allows it (pace.py) or 128 KiB are pending. It is first planned (which
clients receive which bytes), then swept: one `write` per client and batch.

A client is in one of three states:

    live      seq None    receives every flush
    paused    seq s       its transport is full; it was sent everything up to s, and gets nothing
    ready     seq s       drained, or new with `snapshot` or `since`: the next ticks send it, piece
                          by piece, the current state of what changed after s

    live ── transport full ──► paused ── drained ──► ready ── caught up, nothing pending ──► live
                                  └──── drained before the next flush ────────────────────────┘

The invariant: a client has been sent everything up to its seq (a live one: up to `flushed`), as it
was or superseded by something newer. What is newer than the last flush is pending.

Rules R1 to R6, R12, R14, R16, R17 and I1 (others in pending.py, board.py, log.py, freshness.py).
Below each stands a test that fails without it; a random history then goes wrong, too (mutants.py).

R1   A flush sets `flushed` to the board's seq before its first write, which may fill a transport.
     test_a_client_that_fills_up_and_drains_during_a_sweep_is_live_again
R2   A client that fills up leaves the live set at once. The batch just written counts as sent, a
     later one does not.
     test_a_client_that_fills_up_in_a_batch_was_sent_that_batch
R3   A client that drains before the next flush is live again and has missed nothing. Otherwise it
     is ready, and the tick sends it what it missed: inside `resume_writing` nothing is written,
     because a piece that the kernel takes whole causes no further callback.
     test_a_client_that_drains_before_the_next_flush_has_missed_nothing
R4   A catch-up ends at `flushed`. What is newer is pending.
     test_catch_up_ends_at_flushed_and_a_client_goes_live_only_when_nothing_is_pending
R5   A client that has caught up goes live only while nothing is pending, which is right after a
     flush was planned. Catch-up skips a run that a pending change supersedes; a client with a
     filter would receive it only as that change, never see what it was before, and might show it
     for ever.
     test_catch_up_ends_at_flushed_and_a_client_goes_live_only_when_nothing_is_pending
R6   The receivers of a flush are fixed when it is planned, and no flush starts before the sweep of
     the last one has ended. A write that fails ends that client only.
     test_a_sweep_yields_when_its_budget_is_spent_and_no_flush_starts_before_it_ends
R12  A client is closed with 4410 exactly if the board's `floor` is above its seq, and, if it joined
     with `snapshot`, above `flushed` at that time.
     test_a_lagging_client_beyond_memory_is_closed_with_4410
R14  A client without `since` and `snapshot` is live at once. If changes are pending, one that
     includes `deleted` waits for their flush and is not sent them: they may be of deleted runs.
     test_a_client_without_since_and_snapshot_is_live_at_once,
     test_a_client_that_includes_deletes_is_sent_no_run_that_was_deleted_before_it_joined
R16  A sweep yields when its budget is spent; catch-up stops after half a budget.
     test_catch_up_yields_after_half_a_budget
R17  A batch is cut at 128 KiB.
     test_a_batch_is_cut_at_128_kib
I1   `ready` is sent once, behind all that the client asked for when it joined. Its timestamp is one
     from which nothing is lost to this client.
     test_ready_is_sent_once_behind_what_was_asked_for
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final, TypeAlias

from brain.contract.close_codes import GAP, TRY_AGAIN_LATER
from brain.contract.include import NO_SOURCE, SourceReport, ready_message
from brain.contract.messages import Micros
from brain.contract.subscription import Subscription
from brain.delivery.alarm import Alarm, Timer
from brain.delivery.batches import BATCH, Step, plan
from brain.delivery.board import ENTRY, Board, Push
from brain.delivery.cohorts import Client, Cohort, Cohorts
from brain.delivery.counts import Counts
from brain.delivery.freshness import Freshness
from brain.delivery.log import TIME
from brain.delivery.pace import EARLY, Pace
from brain.delivery.pending import Pending

BUDGET = 0.025
"""Seconds that a sweep may hold the event loop. With 5 ms the latency of everyone doubled."""

STRIDE = 32
"""Clients written to between two looks at the clock."""

Pieces: TypeAlias = dict[tuple[Cohort, int, int], tuple[bytes, int]]

UNREAD: Final = -1
"""`until` of a client that joined with `snapshot` before the first Snapshot."""


class Hub:
    """`interval`: seconds between two flushes at most, by `clock`. `call_soon` calls back in the
    next turn of the event loop. `observe` receives the commit time of the oldest change of each
    flush, when it has been written to all. `report` says how Brain follows the database.
    """

    def __init__(
        self,
        board: Board,
        *,
        interval: float,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        call_soon: Callable[[Callable[[], None]], object],
        observe: Callable[[Micros], object] = lambda _: None,
        report: Callable[[], SourceReport] = lambda: NO_SOURCE,
        max_batch: int = BATCH,
        stride: int = STRIDE,
    ) -> None:
        self.board = board
        self.counts = Counts()
        self.flushed = 0
        """The board's seq when the last flush was planned (R1)."""
        self.flushed_time: Micros = 0
        """A `since` from which nothing is lost to a client that has received that flush."""
        self.clients = 0
        self.lagging = 0
        """Clients whose transport is full."""
        self._clock = clock
        self._call_soon = call_soon
        self._observe = observe
        self._max_batch = max_batch
        self._stride = stride
        self._pace = Pace(interval, clock)
        self._pending = Pending()
        self._first = UNREAD
        """The board's seq after the first Snapshot."""
        self._dead_floor = 0
        """The board's, when clients that include `deleted` were last told to start over."""
        self._cohorts = Cohorts()
        self._freshness = Freshness(self, report, clock=clock, call_later=call_later)
        self._ready: deque[Client] = deque()
        self._late: set[Client] = set()
        """Live clients that filled up while the sweep was suspended."""
        self._sweep: Iterator[None] | None = None
        self._serving: int | None = None
        """While the sweep is inside a client's write: the seq that this batch reaches."""
        self._deadline = 0.0
        self._alarm = Alarm(self.tick, clock=clock, call_later=call_later)

    # Clients

    @property
    def begun(self) -> bool:
        return self.board.begun

    @property
    def pending_bytes(self) -> int:
        return self._pending.bytes

    @property
    def sweeping(self) -> bool:
        return self._sweep is not None

    def join(self, client: Client, wish: Subscription) -> None:
        """Start writing to the client. Ends it at once if its `since` is a gap."""
        client.seq, client.until, client.paused, client.intact = None, 0, False, False
        client.pinged = False
        client.cohort = cohort = self._cohorts.add(wish.filter, wish.include)
        client.goal = self.flushed if cohort.ready else None
        client.joined = self.board.seq
        self.clients += 1
        if cohort.source:
            self._freshness.add(client)
        if wish.since is not None:
            seq = self.board.since(wish.since, deleted=cohort.deleted)
            if seq is None:
                self._refuse(client)
                return
            client.seq = min(seq, self.flushed)
        elif wish.snapshot:
            client.seq, client.until = 0, self.flushed if self.begun else UNREAD
        elif not self.begun:
            # The first Snapshot pushes nothing, but may hold changes made since the client loaded
            # the runs.
            self._refuse(client)
            return
        elif cohort.deleted and self._pending:
            client.seq = self.board.seq  # (R14)
        if client.seq is not None:
            self._ready.append(client)
            self._alarm.set(0)
            if cohort.source and not self.begun:
                self._freshness.greet(client)
            return
        cohort.live.add(client)  # (R14)
        if cohort.ready:
            self._send_ready(client)
        if cohort.source and client.cohort is cohort:
            self._freshness.greet(client)

    def leave(self, client: Client) -> None:
        """Write nothing more to the client: it is closed or closing. May be called twice."""
        cohort = client.cohort
        if cohort is None:
            return
        self.lagging -= client.paused and client.seq is not None
        client.cohort, client.seq = None, 0
        cohort.live.discard(client)
        self._late.discard(client)
        if cohort.source:
            self._freshness.forget_one()
        self._cohorts.remove(cohort)
        self.clients -= 1

    def pause(self, client: Client) -> None:
        """The client's transport is full. uvloop calls this from the write that filled it."""
        client.paused = True
        if client.cohort is None:
            return
        if client.seq is None:
            if self._sweep is not None and self._serving is None:
                # (R6) A ping or pong filled it while a sweep is suspended, which may or may not
                # have written to it. It stays a receiver of this flush (its transport keeps
                # references, not copies) and is cut off after the sweep.
                self._late.add(client)
                return
            reached = self.flushed if self._serving is None else self._serving  # (R2)
            self._cut_off(client, client.cohort, reached)
        else:
            self.lagging += 1

    def _cut_off(self, client: Client, cohort: Cohort, seq: int) -> None:
        client.seq, client.until, client.intact = seq, 0, True
        cohort.live.discard(client)
        self.lagging += 1

    def resume(self, client: Client) -> None:
        """The client's transport has drained. Writes nothing (R3)."""
        client.paused = False
        cohort = client.cohort
        if cohort is None:
            return
        if client.seq is None:
            self._late.discard(client)
            return
        self.lagging -= 1
        over = cohort.deleted and self._dead_floor > max(client.seq, client.joined)  # (T6)
        if client.intact and client.seq == self.flushed and not over:  # (R3)
            client.seq = None
            cohort.live.add(client)
        else:
            self.counts.lags += client.intact
            self._ready.append(client)
            self._alarm.set(0)

    def _refuse(self, client: Client) -> None:
        self.counts.gaps += self.begun
        why = GAP if self.begun else TRY_AGAIN_LATER
        client.end(why.code, why.reason)

    def send(self, client: Client, data: bytes) -> None:
        write = client.write  # as in `_deliver`
        try:
            write(data)
        except Exception as error:  # noqa: BLE001 - one client's failure must not end the caller
            self._failed(client, error)

    def _send_ready(self, client: Client) -> None:
        behind = client.seq is not None and client.seq < self.flushed
        time = self.board.log.time_after(client.seq or 0) if behind else None
        client.goal = None
        self.send(client, ready_message(self.flushed_time if time is None else time))

    def _start_over(self) -> None:
        """End who includes `deleted` (T6, T7): the catch-up does it, within its budget."""
        self._dead_floor = self.board.dead_floor
        for cohort in self._cohorts.told:
            for client in list(cohort.live):
                self._cut_off(client, cohort, self.flushed)
                client.intact = False
                if client.paused:
                    self._late.discard(client)
                else:
                    self.resume(client)

    def _failed(self, client: Client, error: Exception) -> None:
        self.counts.failures += 1
        self.leave(client)
        client.drop(error)

    # Changes

    def push(self, pushes: Collection[Push]) -> None:
        """Take what `Board.apply` returned, right after it was applied."""
        if self.board.dead_floor != self._dead_floor:
            self._start_over()
        added, conflated = self._pending.add(pushes, tombstones=bool(self._cohorts.told))
        self.counts.changes += added
        self.counts.conflated += conflated
        if self._flush_is_due():
            self.tick()
        elif self._pending:
            self._alarm.set(self._wait())
        else:
            # The first Snapshot and deletes move the board's seq without a push. Clients that
            # joined before the first Snapshot are served now.
            if self._first == UNREAD and self.begun:
                self._first = self.board.seq
            self.flushed, self.flushed_time = self.board.seq, self.board.reached
            if self._ready:
                self._alarm.set(0)

    def _flush_is_due(self) -> bool:
        return bool(self._pending) and self._sweep is None and self._wait() <= EARLY  # (R6, P1)

    def _wait(self) -> float:
        """Seconds until what is pending is due."""
        return 0.0 if self._pending.bytes >= self._max_batch else self._pace.wait()

    # The tick: plan a flush, catch up, sweep (R5)

    def tick(self) -> None:
        """One turn of at most one and a half budgets. Arms the timer if there is more to do."""
        self._alarm.clear()
        if self._flush_is_due():
            self._plan()
        behind = self._catch_up(self._clock() + BUDGET / 2) if self._ready else False
        if self._sweep is not None:
            self._deadline = self._clock() + BUDGET
            if next(self._sweep, self) is self:
                self._sweep = None
                self._call_soon(partial(self._written, self._pace.began))
                self._cut_off_late()
                self._freshness.swept()
        if behind or self._sweep is not None:
            self._alarm.set(0)
        elif self._pending:
            self._alarm.set(self._wait())

    def _plan(self) -> None:
        """Fix which clients receive what (R6). From here on these changes count as flushed (R1)."""
        pushes, alive = self._pending.take()
        self.flushed = self.board.seq
        self.flushed_time = self.board.reached
        self._pace.begin()
        self.counts.flushes += 1
        steps = plan(self._cohorts, pushes, alive, self.flushed, self._max_batch)
        oldest = pushes[0][ENTRY][TIME]
        self._sweep = self._deliver(steps, oldest)

    def _written(self, began: float) -> None:
        """The loop has sent what the flush that began then has handed it (P2)."""
        self._pace.ended(began)
        if self._pending and self._sweep is None:
            self._alarm.set(self._wait())

    def _catch_up(self, deadline: float) -> bool:
        """Send each ready client its next piece. True if one of them could continue at once."""
        pieces: Pieces = {}
        behind = False
        for _ in range(len(self._ready)):
            if self._clock() > deadline:  # (R16)
                return True
            client = self._ready.popleft()
            cohort = client.cohort
            if cohort is None or client.seq is None or client.paused:
                continue
            if not self.begun:
                self._ready.append(client)
                continue
            if client.until == UNREAD:
                client.until = client.joined = self._first
                client.goal = self.flushed if cohort.ready else None
            if self.board.floor > max(client.seq, client.until) or (  # (R12)
                cohort.deleted and self._dead_floor > max(client.seq, client.joined)  # (T6)
            ):
                self._refuse(client)
                continue
            if not self._advance(client, cohort, pieces):
                continue
            if client.seq == self.flushed and not self._pending:  # (R5)
                client.seq = None
                cohort.live.add(client)
                if cohort.source:
                    self._freshness.greet(client)
            else:
                behind = behind or client.seq < self.flushed
                self._ready.append(client)
        return behind

    def _advance(self, client: Client, cohort: Cohort, pieces: Pieces) -> bool:
        """Send its next piece, and `ready` behind what it asked for. False if it takes no more."""
        seq = client.seq
        assert seq is not None
        due = client.goal is not None and seq >= client.goal  # (I1) the last piece filled it up
        if seq < self.flushed and not due:  # (R4, R15)
            key = (cohort, seq, client.until if seq < client.until else 0)
            if key not in pieces:
                wanted = cohort.wanted(key[2])
                pieces[key] = self.board.log.piece(seq, self.flushed, wanted, cohort.deleted)
            data, client.seq = pieces[key]
            client.intact = False
            if data:
                self.counts.pieces += 1
                self.send(client, data)
            if client.cohort is None or client.paused:
                return False
        if client.goal is not None and client.seq is not None and client.seq >= client.goal:
            self._send_ready(client)
        return client.cohort is not None and not client.paused

    def _deliver(self, steps: list[Step], oldest: Micros) -> Iterator[None]:
        """The sweep: write the batches. Yields when the budget is spent, until the next tick."""
        turns, stride = 0, self._stride
        for everyone, batches in steps:
            receivers = everyone
            cut_off: set[Client] = set()
            for batch in batches:
                if cut_off:
                    receivers = [client for client in receivers if client not in cut_off]
                # No method call of ours around a write, and one look at the clock for `stride`
                # clients: 45 ns a client instead of 130.
                data = batch.data
                self._serving = batch.end
                served = 0
                for at in range(0, len(receivers), stride):
                    some = receivers[at : at + stride]
                    if turns + len(some) > stride:
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
                        # Read the slot first: CPython cannot specialize a method call on it.
                        write = client.write
                        try:
                            write(data)
                        except Exception as error:  # noqa: BLE001 - must not end the sweep (R6)
                            self._failed(client, error)
                        if client.seq is not None:
                            # Filled up or left in this write. It may have caught up and be live
                            # before the sweep comes to the next batch.
                            cut_off.add(client)
                self.counts.deliveries += served * batch.count
        self._serving = None
        self._observe(oldest)

    def _cut_off_late(self) -> None:
        for client in self._late:
            assert client.cohort is not None, "`leave` removes it from the late ones"
            self._cut_off(client, client.cohort, self.flushed)
        self._late.clear()
