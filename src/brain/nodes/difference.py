"""What a board lacks of the log's, after the log was loaded again. Pure.

The log's board is the truth: it comes from the database by way of all nodes. Its entries keep their
times, so that a client may resume from any of them on any node. An entry of which time and run are
equal is the same change.
"""

from collections.abc import Sequence
from dataclasses import replace

from brain.contract.events import Held, Image
from brain.contract.messages import ID
from brain.contract.subscription import Facet
from brain.delivery.board import MAX_FACETS, Board
from brain.delivery.log import FACETS, RUN, TIME, XID, Entry
from brain.delivery.tombstones import ANYTHING, tombstone

PIECE = 1000
"""Entries of an Image that is applied at a time, so that the loop turns in between."""


def image(board: Board) -> Image:
    """Its entries are immutable: a consistent copy costs a list."""
    return Image(
        [_held(entry) for entry in board.log.current()],
        time=board.time,
        last_time=board.last_time,
        floor_time=board.floor_time,
        dead_floor_time=board.dead_floor_time,
        ended_early=board.ended_early,
        refused=board.refused,
    )


def pieces(whole: Image) -> list[Image]:
    """The same in pieces, to be applied one after the other."""
    entries = whole.entries
    cut = [entries[at : at + PIECE] for at in range(0, len(entries), PIECE)] or [[]]
    return [
        replace(whole, entries=some, time=whole.time if some is cut[-1] else some[-1][0])
        for some in cut
    ]


def seq_at(board: Board, time: int) -> int:
    """What this board had seen at a time of the log, which is all that a comparison says."""
    found = board.log.before(time + 1)
    seq = board.seq if found is None else found
    if board.floor_time > time:
        seq = min(seq, board.floor - 1)
    if board.dead_floor_time > time:
        seq = min(seq, board.dead_floor - 1)
    return seq


def difference(live: Board, loaded: Board) -> list[Image]:
    """What makes the live board the loaded one. A new beginning, if clients cannot be told of all:
    it ends them, and they start over.
    """
    before = {entry[RUN][ID]: entry for entry in live.log.current()}
    missing: list[Held] = []
    for entry in loaded.log.current():
        known = before.pop(entry[RUN][ID], None)
        if known is None:
            missing.append(_held(entry))
        elif (known[TIME], known[RUN]) != (entry[TIME], entry[RUN]):
            missing.append(_held(entry, known[FACETS]))
    # At the time of the newest entry, if clients receive it so: then this board's newest entry
    # has the time that it has on every other node.
    at = loaded.last_time if loaded.last_time > live.time else loaded.time
    # The table has no such row. Or the run has finished, and was evicted, before the time from
    # which on the loaded board knows all of them.
    gone = [
        _buried(known, at)
        for known in before.values()
        if known[RUN][ID] in live and _is_gone(known, live, loaded)
    ]
    if loaded.floor_time > live.time or any(held[0] <= live.time for held in (*missing, *gone)):
        return [replace(image(loaded), new=True)]
    return pieces(replace(image(loaded), entries=[*missing, *gone]))


def _held(entry: Entry, before: Sequence[Facet] = ()) -> Held:
    """`before`: what the run has been on the live board, too."""
    facets = entry[FACETS]
    if before:
        facets = (*(each for each in before if each not in facets), *facets)
        facets = facets if len(facets) <= MAX_FACETS else ANYTHING
    return (entry[TIME], entry[RUN], facets, entry[XID])


def _is_gone(known: Entry, live: Board, loaded: Board) -> bool:
    return known[RUN][ID] in live.unfinished() or known[TIME] > loaded.floor_time


def _buried(known: Entry, time: int) -> Held:
    return (time, tombstone(known[RUN][ID], known), known[FACETS], 0)
