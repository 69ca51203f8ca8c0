"""The hub: sends every change to every client, in batches, and catches up the clients that lag.

It never awaits, and has no queue, task or timer per client. Changes gather in `Pending`; when the
pace allows it (pace.py) or 128 KiB are pending, a rotation sends them, one lane after the other, in
as many turns of the loop as it takes (rotation.py, lanes.py, groups.py). What a client missed is
sent by catch_up.py.

A client is in one of three states:

    live      seq None    in a group; receives what its group does
    paused    seq s       its transport is full; it was sent everything up to s, and gets nothing
    ready     seq s       drained, or new with `snapshot` or `since`: the next ticks send it, piece
                          by piece, the current state of what changed after s

    live ── transport full ──► paused ── drained ──► ready ── caught up, and whole ──► live
                                  └──── drained before its group moved on ──────────────┘

The invariant: a client has been sent everything up to its seq (a live one: up to the position of
its group), as it was or superseded by something newer. What is newer is pending in its lane.

Rules R3 and R14. The others are in pending.py (R7, R8, W), lanes.py, groups.py and shared.py (L),
rotation.py (R1, R2, R6, R16), batches.py (R17), catch_up.py (R4, R5, R12, R18, I1),
source_messages.py (I2), pace.py (P), board.py (R9 to R11, R13), log.py (R15) and tombstones.py (T).
Each names a test that fails without it. In addition, tests/unit/delivery/mutants.py removes every
rule, and a random history then goes wrong.

R3   A client that drains is live again, and has missed nothing, if it was sent nothing but batches
     and its group is still where it was. Otherwise it is ready, and the tick sends it what it
     missed: inside `resume_writing` nothing is written, because a piece that the kernel takes whole
     causes no further callback.
     test_a_client_that_drains_before_the_next_flush_has_missed_nothing,
     test_a_client_that_drains_twice_is_ready_once
R14  A client without `since` and `snapshot` is live at once. If its group lacks changes, one that
     includes `deleted` waits for their flush and is not sent them: they may be of deleted runs.
     test_a_client_without_since_and_snapshot_is_live_at_once,
     test_a_client_that_includes_deletes_is_sent_no_run_that_was_deleted_before_it_joined
"""

from collections.abc import Callable, Collection
from functools import partial

from brain.contract.close_codes import GAP, TRY_AGAIN_LATER
from brain.contract.include import NO_SOURCE, SourceReport, ready_message
from brain.contract.messages import Micros
from brain.contract.subscription import Subscription
from brain.delivery.alarm import Alarm, Timer
from brain.delivery.batches import BATCH
from brain.delivery.board import Board, Push
from brain.delivery.catch_up import NOT_BEGUN, CatchUp
from brain.delivery.cohorts import Client, Cohort, Cohorts
from brain.delivery.counts import Counts
from brain.delivery.groups import GROUP, Group
from brain.delivery.lanes import Lanes
from brain.delivery.pace import EARLY, Pace
from brain.delivery.pending import Pending
from brain.delivery.rotation import Rotation
from brain.delivery.shared import COMPARED
from brain.delivery.source_messages import SourceMessages


class Hub:
    """`interval`: seconds between two flushes at most, by `clock`. `call_soon` calls back in the
    next turn of the event loop. `observe` receives the commit time of the oldest change of each
    plan, when all of its groups have been sent it. `report` says how Brain follows the database.
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
        max_group: int = GROUP,
        max_compared: int = COMPARED,
    ) -> None:
        self.board = board
        self.counts = Counts()
        self.clients = 0
        self.lagging = 0
        """Clients whose transport is full."""
        self._call_soon = call_soon
        self._max_batch = max_batch
        self._alarm = Alarm(self.tick, clock=clock, call_later=call_later)
        self._pace = Pace(interval, clock)
        self._pending = Pending()
        self._cohorts = Cohorts()
        self._lanes = Lanes(
            board,
            self._pending,
            self._cohorts,
            max_group=max_group,
            max_batch=max_batch,
            max_compared=max_compared,
        )
        self._rotation = Rotation(
            self._pending,
            self._lanes,
            self.counts,
            max_writes=max_group,
            failed=self.fail,
            observe=observe,
        )
        self._catch_up = CatchUp(
            board,
            self._pending,
            self._lanes,
            self.counts,
            clock=clock,
            send=self.send,
            refuse=self._refuse,
            live=self._live,
            missed_deletes=self._missed_deletes,
        )
        self._source_messages = SourceMessages(self, report, clock=clock, call_later=call_later)
        self._dead_floor = 0
        """The board's, when clients that include `deleted` were last ended to start over."""

    # Clients

    @property
    def begun(self) -> bool:
        return self.board.begun

    @property
    def pending_bytes(self) -> int:
        return self._pending.bytes + self._lanes.shared.size

    @property
    def idle(self) -> bool:
        """Every live client has been sent everything."""
        return not self._pending and not self._rotation.under_way

    def join(self, client: Client, subscription: Subscription) -> None:
        """Start writing to the client. Ends it at once if its `since` is a gap."""
        client.seq, client.until, client.whole = 0, 0, NOT_BEGUN
        client.paused = client.intact = client.waiting = client.pinged = False
        client.group = None
        client.cohort = cohort = self._cohorts.add(subscription.filter, subscription.include)
        client.joined = self.board.seq
        client.since = min(subscription.since or 0, self.board.time)
        client.goal = self.board.seq if cohort.ready else None
        self.clients += 1
        if cohort.source:
            self._source_messages.add(client)
        if subscription.since is not None:
            seq = self.board.since(subscription.since, deleted=cohort.deleted)
            if seq is None:
                self._refuse(client)
                return
            client.seq = seq
        elif subscription.snapshot:
            client.until = self.board.seq if self.begun else NOT_BEGUN
        elif not self.begun:
            # The first Snapshot pushes nothing, but may hold changes made since the client loaded
            # the runs.
            self._refuse(client)
            return
        if subscription.since is not None or subscription.snapshot:
            self._catch_up.add(client)
            self._alarm.set(0)
            if cohort.source and not self.begun:
                self._source_messages.greet(client)
            return
        group = self._lanes.home(cohort)
        if cohort.deleted and group.position < self.board.seq:  # (R14)
            client.seq = self.board.seq
            self._catch_up.add(client)
            self._alarm.set(0)
            return
        if cohort.ready:
            client.goal = None
            self.send(client, ready_message(group.position_time))
        if client.cohort is cohort:
            self._live(client, group)

    def _live(self, client: Client, group: Group) -> None:
        client.seq, client.group, client.intact = None, group, False
        group.live.add(client)
        if client.paused:  # `ready` has filled its transport
            self._cut_off(client, group)
        elif group.cohort.source:
            self._source_messages.greet(client)

    def position_time(self, client: Client) -> Micros:
        """A `since` from which nothing is lost to this live client (I1)."""
        return max(client.since, client.group.position_time) if client.group is not None else 0

    def leave(self, client: Client) -> None:
        """Write nothing more to the client: it is closed or closing. May be called twice."""
        cohort = client.cohort
        if cohort is None:
            return
        self.lagging -= client.paused
        if client.group is not None:
            client.group.live.discard(client)
        client.cohort, client.group, client.seq = None, None, 0
        if cohort.source:
            self._source_messages.forget_one()
        if self._cohorts.remove(cohort):
            for group in list(cohort.groups):
                self._lanes.close(group)
        self.clients -= 1

    def pause(self, client: Client) -> None:
        """The client's transport is full. uvloop calls this from the write that filled it."""
        client.paused = True
        if client.cohort is None:
            return
        self.lagging += 1
        if client.seq is None and client.group is not None:
            self._cut_off(client, client.group)

    def _cut_off(self, client: Client, group: Group) -> None:
        client.seq, client.until, client.intact = group.position, 0, True
        group.live.discard(client)

    def resume(self, client: Client) -> None:
        """The client's transport has drained. Writes nothing (R3)."""
        client.paused = False
        cohort, group = client.cohort, client.group
        if cohort is None or client.seq is None:
            return
        self.lagging -= 1
        self._back(client, cohort, group)

    def _back(self, client: Client, cohort: Cohort, group: Group | None) -> None:
        if (
            client.intact
            and group is not None
            and group.lane is not None
            and client.seq == group.position
            and not self._lanes.full(group)
            and not self._missed_deletes(client, cohort)
        ):  # (R3)
            client.seq = None
            group.live.add(client)
        else:
            self.counts.lags += client.intact
            self._catch_up.add(client)
            self._alarm.set(0)

    def _missed_deletes(self, client: Client, cohort: Cohort) -> bool:
        """Runs were deleted after what the client was sent, and nobody knows which (T6)."""
        return cohort.deleted and self._dead_floor > max(client.seq or 0, client.joined)

    def _refuse(self, client: Client) -> None:
        self.counts.gaps += self.begun
        why = GAP if self.begun else TRY_AGAIN_LATER
        client.end(why.code, why.reason)

    def send(self, client: Client, data: bytes) -> None:
        write = client.write  # as in rotation.py
        try:
            write(data)
        except Exception as error:  # noqa: BLE001 - one client's failure must not end the caller
            self.fail(client, error)

    def _start_over(self) -> None:
        """End the clients that include `deleted` (T6, T7): the catch-up does it, in its budget."""
        self._dead_floor = self.board.dead_floor
        for cohort in self._cohorts.with_deletes:
            for group in cohort.groups:
                for client in list(group.live):
                    self._cut_off(client, group)
                    client.intact = False
                    self._catch_up.add(client)
                    self._alarm.set(0)

    def fail(self, client: Client, error: Exception) -> None:
        """Serving the client has raised this: it is counted, and ended."""
        self.counts.failures += 1
        self.leave(client)
        client.drop(error)

    # Changes

    def push(self, pushes: Collection[Push]) -> None:
        """Take what `Board.apply` returned, right after it was applied."""
        if self.board.dead_floor != self._dead_floor:
            self._start_over()
        if self._catch_up.first == NOT_BEGUN and self.begun:
            self._catch_up.first = self.board.seq
        if pushes and self._lanes.all:
            added, conflated = self._pending.add(
                pushes, sent=self._lanes.furthest, tombstones=bool(self._cohorts.with_deletes)
            )
            self.counts.changes += added
            self.counts.conflated += conflated
            self._lanes.changed()
        else:
            self.counts.changes += len(pushes)
        if self._is_due():
            self.tick()
            return
        self._lanes.match()
        if self._lanes.shared.behind:
            self._alarm.set(0)
        elif self._pending and not self._rotation.under_way:
            self._alarm.set(self._wait())
        elif self._catch_up:
            # Clients that joined before the first Snapshot are served now.
            self._alarm.set(0)

    def _is_due(self) -> bool:
        """Whether a rotation begins (P1, R16)."""
        return bool(self._pending) and not self._rotation.under_way and self._wait() <= EARLY

    def _wait(self) -> float:
        """Seconds until what is pending is due."""
        return 0.0 if self._pending.bytes >= self._max_batch else self._pace.wait()

    def tick(self) -> None:
        """One turn of the rotation, then catch-up: no change comes in between (R5)."""
        self._alarm.clear()
        self._lanes.match()
        if self._is_due() and self._lanes.ready:
            self._pace.begin()
            self.counts.flushes += 1
            self._rotation.begin()
        if self._rotation.under_way and self._rotation.turn():
            self._call_soon(partial(self._written, self._pace.began))
        behind = self._catch_up.turn() if self._catch_up else False
        if behind or self._rotation.under_way or self._lanes.shared.behind:
            self._alarm.set(0)
        elif self._pending:
            self._alarm.set(self._wait())

    def _written(self, began: float) -> None:
        """The loop has sent what the rotation that began then has handed it (P2)."""
        self._pace.ended(began)
        if self._pending and not self._rotation.under_way:
            self._alarm.set(self._wait())
