"""Catch-up: what a client missed is sent to it piece by piece, as the runs are now.

Rules R4, R5, R12, R18 and I1 (how a piece is cut is R15, in log.py). Each names a test that fails
without it. In addition, tests/unit/delivery/mutants.py removes every rule, and a random history
then goes wrong.

R4   A catch-up ends at the seq of the lane in which the client is to be live. What is newer is
     pending there.
     test_catch_up_ends_at_the_lane_and_a_client_goes_live_only_when_it_is_whole
R5   A client is whole up to where its catch-up ended while its lane lacked nothing. It goes live
     only where the position of its group is just that. Catch-up skips a run that a pending change
     supersedes; a client with a filter would receive it only as that change, never see what it was
     before, and might show it for ever.
     test_catch_up_ends_at_the_lane_and_a_client_goes_live_only_when_it_is_whole,
     test_a_whole_client_goes_live_when_its_group_has_been_written_its_last_batch
R12  A client is closed with 4410 exactly if the board's `floor` is above its seq, and, if it joined
     with `snapshot`, above the board's seq at that time.
     test_a_lagging_client_beyond_memory_is_closed_with_4410
R18  A piece is made once per tick for all clients with the same filter and seq, and a catch-up
     stops after half a budget.
     test_a_piece_is_made_once_per_filter_and_seq, test_catch_up_yields_after_half_a_budget
I1   `ready` is sent once, behind all that the client asked for when it joined. Its timestamp is one
     from which nothing is lost to this client, and not earlier than its `since`: what it was sent
     elsewhere, or with a list, may be later than the newest entry of this board.
     test_ready_is_sent_once_behind_what_was_asked_for, test_ready_is_not_earlier_than_since
"""

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from brain.contract.include import ready_message
from brain.delivery.board import Board
from brain.delivery.cohorts import Client, Cohort
from brain.delivery.counts import Counts
from brain.delivery.groups import Group
from brain.delivery.lanes import Lanes
from brain.delivery.pending import Pending

BUDGET = 0.025
"""Seconds, of which a catch-up may hold the event loop for half."""

NOT_BEGUN: Final = -1
"""`until` of a client that joined with `snapshot` before the first Snapshot."""

Pieces: TypeAlias = dict[tuple[Cohort, int, int, int], tuple[bytes, int]]


class CatchUp:
    """`send` writes to a client; `refuse` ends one with 4410; `live` makes one live in a group;
    `missed_deletes` tells whether deletes that nobody can name came after what the client was sent.
    """

    def __init__(
        self,
        board: Board,
        pending: Pending,
        lanes: Lanes,
        counts: Counts,
        *,
        clock: Callable[[], float],
        send: Callable[[Client, bytes], None],
        refuse: Callable[[Client], None],
        live: Callable[[Client, Group], None],
        missed_deletes: Callable[[Client, Cohort], bool],
    ) -> None:
        self._board = board
        self._pending = pending
        self._lanes = lanes
        self._counts = counts
        self._clock = clock
        self._send = send
        self._refuse = refuse
        self._live = live
        self._missed_deletes = missed_deletes
        self._ready: deque[Client] = deque()
        self.first = NOT_BEGUN
        """The board's seq after the first Snapshot."""

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, client: Client) -> None:
        """The client is to be caught up. Once is enough (R3)."""
        if not client.waiting:
            client.waiting = True
            self._ready.append(client)

    def turn(self) -> bool:
        """Send each client its next piece. True if one of them could continue at once."""
        pieces: Pieces = {}
        behind = False
        deadline = self._clock() + BUDGET / 2
        for _ in range(len(self._ready)):
            if self._clock() > deadline:  # (R18)
                return True
            client = self._ready.popleft()
            client.waiting = False
            cohort = client.cohort
            if cohort is None or client.seq is None or client.paused:
                continue
            if not self._board.begun:
                self.add(client)
                continue
            if client.until == NOT_BEGUN:
                client.until = client.joined = self.first
                client.goal = self.first if cohort.ready else None
            if self._board.floor > max(client.seq, client.until) or self._missed_deletes(
                client, cohort
            ):  # (R12, T6)
                self._refuse(client)
                continue
            home = self._lanes.home(cohort)
            assert home.lane is not None
            if not self._advance(client, cohort, home.lane.seq, pieces):
                continue
            if client.seq >= home.lane.seq and home.lane.at == self._pending.end:
                client.whole = client.seq
            if client.seq == client.whole == home.position:  # (R5)
                self._live(client, home)
            else:
                behind = behind or client.seq < home.lane.seq
                self.add(client)
        return behind

    def _advance(self, client: Client, cohort: Cohort, end: int, pieces: Pieces) -> bool:
        """Send its next piece, and `ready` behind what it asked for. False if it takes no more."""
        seq = client.seq
        assert seq is not None
        due = client.goal is not None and seq >= client.goal  # (I1) the last piece filled it up
        if seq < end and not due:  # (R4, R18)
            key = (cohort, seq, end, client.until if seq < client.until else 0)
            if key not in pieces:
                wanted = cohort.wanted(key[3])
                pieces[key] = self._board.log.piece(seq, end, wanted, cohort.deleted)
            data, client.seq = pieces[key]
            client.intact = False
            if data:
                self._counts.pieces += 1
                self._send(client, data)
            if client.cohort is None or client.paused:
                return False
        if client.goal is not None and client.seq is not None and client.seq >= client.goal:
            client.goal = None
            time = self._board.log.time_after(client.seq)
            time = max(client.since, self._board.reached if time is None else time)
            self._send(client, ready_message(time))
        return client.cohort is not None and not client.paused
