"""Board and hub with a rule removed: the proof that the random histories detect what they should.

A mutant is a change of the source in its normal form, that of `ast.unparse`: without comments, and
with one line for each simple statement. So neither comments nor line lengths matter to it.
"""

import ast
import inspect
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from brain.delivery import (
    alarm,
    batches,
    board,
    cohorts,
    freshness,
    hub,
    log,
    pace,
    pending,
    tombstones,
)
from tests.unit.delivery.world import Engine


class Mutant(NamedTuple):
    seed: int
    """A history that goes wrong without the rule."""
    module: ModuleType
    changes: tuple[tuple[str, str], ...]
    """What to replace by what, so that the source no longer enforces the rule."""


def variant(module: ModuleType, *changes: tuple[str, str]) -> Any:
    """A copy of the module in which each change is made, at the one place where it fits."""
    source = ast.unparse(ast.parse(inspect.getsource(module)))
    for old, new in changes:
        assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times: {old!r}"
        source = source.replace(old, new)
    copy = ModuleType(module.__name__)
    exec(compile(source, f"<{module.__name__}, changed>", "exec"), copy.__dict__)
    return copy


USES: dict[ModuleType, tuple[ModuleType, tuple[str, ...]]] = {
    alarm: (hub, ("Alarm",)),
    batches: (hub, ("plan",)),
    cohorts: (hub, ("Cohorts",)),
    freshness: (hub, ("Freshness",)),
    log: (board, ("Log",)),
    pace: (hub, ("Pace",)),
    pending: (hub, ("Pending",)),
    tombstones: (board, ("buried", "ended_early", "tombstone")),
}
"""A module of which board or hub uses these names."""


@cache
def engine(mutant: Mutant | None = None) -> Engine:
    """The real classes, or those of a mutant."""
    if mutant is None:
        return Engine(board.Board, hub.Hub)
    changed = variant(mutant.module, *mutant.changes)
    user, names = USES.get(mutant.module, (mutant.module, ()))
    if names:
        using = variant(user)
        for name in names:
            setattr(using, name, getattr(changed, name))
        changed = using
    if user is board:
        return Engine(changed.Board, hub.Hub)
    return Engine(board.Board, changed.Hub)


MUTANTS: dict[str, Mutant] = {
    "R1 flushed is set before the first write": Mutant(
        12,
        hub,
        (
            (
                "self.flushed = self.board.seq\n        self.flushed_time",
                "self._next = self.board.seq\n        self.flushed_time",
            ),
            ("alive, self.flushed, ", "alive, self._next, "),
            (
                "for client in self._late:",
                "self.flushed = self._next\n        for client in self._late:",
            ),
        ),
    ),
    "R2 the batch just written counts as sent": Mutant(
        0, hub, (("is None else self._serving\n", "is None else self._serving - 1\n"),)
    ),
    "R2 a later batch does not": Mutant(
        0, hub, (("self.flushed if self._serving is None else self._serving", "self.flushed"),)
    ),
    "R3 live again only if nothing was flushed": Mutant(
        0,
        hub,
        (("if client.intact and client.seq == self.flushed and (not over):", "if client.intact:"),),
    ),
    "R3 live again only if it was sent nothing but flushes": Mutant(
        0,
        hub,
        (
            (
                "if client.intact and client.seq == self.flushed and (not over):",
                "if client.seq == self.flushed:",
            ),
        ),
    ),
    "R3 the tick continues the catch-up": Mutant(
        2, hub, (("        return behind\n", "        return False\n"),)
    ),
    "R4 a catch-up ends at what was flushed": Mutant(
        12,
        hub,
        (
            (
                "board.log.piece(seq, self.flushed, ",
                "board.log.piece(seq, self.board.seq, ",
            ),
            (
                "client.intact = False\n            if data",
                "client.seq = min(client.seq, self.flushed)\n            if data",
            ),
        ),
    ),
    "R5 live only while nothing is pending": Mutant(
        12,
        hub,
        (
            (
                "if client.seq == self.flushed and (not self._pending):",
                "if client.seq == self.flushed:",
            ),
        ),
    ),
    "R6 no flush starts before the last sweep has ended": Mutant(
        2, hub, (("and self._sweep is None and", "and"),)
    ),
    "R6 a client that is cut off receives nothing more of the sweep": Mutant(
        0, hub, (("cut_off.add(client)", "pass"),)
    ),
    "R6 a write that fails ends that client only": Mutant(
        2,
        hub,
        (
            (
                "write(data)\n                        except Exception as",
                "write(data)\n                        except OSError as",
            ),
        ),
    ),
    "R6 a client filled while the sweep is suspended still receives the flush": Mutant(
        636, hub, (("if self._sweep is not None and self._serving is None:", "if False:"),)
    ),
    "R6 a suspended sweep is inside no client's write": Mutant(
        237, hub, (("self._serving = None\n                            yield", "yield"),)
    ),
    "R6 a client filled while the sweep is suspended is cut off after it": Mutant(
        57,
        hub,
        (
            (
                "self._cut_off(client, client.cohort, self.flushed)\n        self._late",
                "pass\n        self._late",
            ),
        ),
    ),
    "R6 unless it has drained": Mutant(
        47,
        hub,
        (("            self._late.discard(client)\n            return", "            return"),),
    ),
    "R7 conflation appends the newer change": Mutant(
        9,
        pending,
        (
            (
                "                steady_at[run_id] = len(pending)",
                (
                    "                    pending[place] = (entry, merged, steady)\n"
                    "                    continue\n"
                    "                steady_at[run_id] = len(pending)"
                ),
            ),
        ),
    ),
    "R8 a change of status is never conflated": Mutant(
        8, pending, (("if steady:\n                place", "if True:\n                place"),)
    ),
    "R8 a change of status ends the chain": Mutant(
        5, pending, (("steady_at.pop(run_id, None)", "pass"),)
    ),
    "R8 what is merged unites its facets": Mutant(
        12, pending, (("merged = tuple(dict.fromkeys(older_facets + facets))", "pass"),)
    ),
    "R9 time never decreases": Mutant(
        3,
        board,
        (
            (
                "self.time = self._allowed(max(self.time, at, self.floor_time + 1))",
                "self.time = self._allowed(max(at, self.floor_time + 1))",
            ),
        ),
    ),
    "R9 a Snapshot has the time of its query": Mutant(
        2, board, (("self._advance(event.at)\n        if event.new", "if event.new"),)
    ),
    "R9 since includes its own time": Mutant(
        5, log, (("bisect_left(self.times, time)", "bisect_right(self.times, time)"),)
    ),
    "R9 the time of an evicted change is a gap": Mutant(
        2, board, (("time <= floor", "time < floor"),)
    ),
    "R9 a time before the first Snapshot is a gap": Mutant(
        11, board, (("self.floor_time = max(self.floor_time, event.at - 1)", "pass"),)
    ),
    "R9 the time of the first Snapshot is not": Mutant(
        15,
        board,
        (("self.floor_time = max(self.floor_time, event.at - 1)", "self.floor_time = event.at"),),
    ),
    "R10 a push concerns filters for what the run was": Mutant(
        2,
        board,
        (("is_or_was = (now,) if before == now else (before, now)", "is_or_was = (now,)"),),
    ),
    "R10 a catch-up concerns filters for anything it was": Mutant(
        3,
        board,
        (
            (
                "= entry\n        log = self.log",
                "= entry = (*entry[:4], (now,), xid)\n        log = self.log",
            ),
        ),
    ),
    "R10 a run with too many facets was anything": Mutant(
        10, board, (("< self._max_facets else ANYTHING", "< self._max_facets else ever"),)
    ),
    "R10 an unknown run that is updated was anything finished": Mutant(
        2, board, (("() if op == 'insert' else self._unheld", "()"),)
    ),
    "R10 so was an unknown finished run of a Snapshot": Mutant(
        2,
        board,
        (("run[STATUS] in ACTIVE else self._unheld", "run[STATUS] in ACTIVE else ()"),),
    ),
    "R10 an inserted run was nothing": Mutant(
        0, board, (("() if op == 'insert' else self._unheld", "self._unheld"),)
    ),
    "R11 unfinished runs are never evicted": Mutant(
        11,
        board,
        (
            (
                "self._unfinished.add(run_id)\n            self._done.pop(run_id, None)",
                "self._unfinished.add(run_id)\n            self._done[run_id] = None",
            ),
        ),
    ),
    "R12 a gap is refused": Mutant(
        0, hub, (("self.board.floor > max(client.seq, client.until) or", "False or"),)
    ),
    "R12 nothing else is refused": Mutant(
        0,
        hub,
        (("self.board.floor > max(client.seq, client.until)", "self.board.floor > client.seq"),),
    ),
    "R12 an eviction makes a gap": Mutant(
        0, board, (("self.floor = max(self.floor, entry[SEQ])", "pass"),)
    ),
    "R12 a new beginning makes a gap": Mutant(
        24, board, (("self.floor, self.floor_time = (self.seq, self.time)", "pass"),)
    ),
    "R13 a run that is gone is removed": Mutant(
        28,
        board,
        (("pushes += self._bury(run_id, 0, known)", "pass"),),
    ),
    "R13 the first Snapshot pushes nothing": Mutant(
        38, board, (("_time)\n        return []", "_time)\n        return pushes"),)
    ),
    "R13 the first Snapshot counts as flushed": Mutant(
        0,
        hub,
        (
            (
                "self.flushed, self.flushed_time = (self.board.seq, self.board.reached)\n",
                "pass\n",
            ),
        ),
    ),
    "R13 a comparison does not override a newer change": Mutant(
        0, board, (("return news and _up_to(known, unless_after)", "return news"),)
    ),
    "R13 nor a newer truncate": Mutant(
        635, board, (("max(self.floor, self.dead_floor) <= unless_after", "True"),)
    ),
    "R13 nor what was evicted": Mutant(
        2, board, (("max(self.floor, self.dead_floor) <=", "self.dead_floor <="),)
    ),
    "R13 nor is a run gone that has changed since": Mutant(
        49,
        board,
        (
            (
                "if known is not None and _up_to(known, event.unless_after):",
                "if known is not None:",
            ),
        ),
    ),
    "R14 a client without since and snapshot is live at once": Mutant(
        7,
        hub,
        (
            (
                "elif cohort.deleted and self._pending:\n            client.seq = self.board.seq",
                "else:\n            client.seq = self.flushed",
            ),
        ),
    ),
    "R15 a piece is for one filter": Mutant(10, hub, (("key = (cohort, ", "key = (None, "),)),
    "R15 a piece is for one snapshot": Mutant(
        3, hub, (("client.until if seq < client.until else 0)", "0)"),)
    ),
    "R15 a piece ends before the roundest seq": Mutant(
        9, log, (("len(frames), common - 1,", "len(frames), common,"),)
    ),
    "R15 a piece is bounded": Mutant(
        25, log, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
    "R16 a sweep yields": Mutant(10, hub, (("if turns + len(some) > stride:", "if False:"),)),
    "R16 a catch-up stops": Mutant(79, hub, (("if self._clock() > deadline:", "if False:"),)),
    "R17 a batch is cut": Mutant(
        2, batches, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
    "I1 ready comes behind what was asked for": Mutant(
        4, hub, (("client.seq >= client.goal", "client.seq >= 0"),)
    ),
    "I1 ready has a time from which nothing is lost": Mutant(
        6, hub, (("if behind else None", "if False else None"),)
    ),
    "I1 ready is sent": Mutant(1, hub, (("if client.goal is not None and", "if False and"),)),
    "I1 ready is sent once": Mutant(6, hub, (("client.goal = None\n", "pass\n"),)),
    "I2 source has a time from which nothing is lost": Mutant(
        32,
        freshness,
        (
            (
                "source_message(report, self._sender.flushed_time)",
                "source_message(report, self._sender.board.time)",
            ),
        ),
    ),
    "I2 source is not sent while a sweep is under way": Mutant(
        57, freshness, (("elif self._sender.sweeping:", "elif False:"),)
    ),
    "I2 source is sent to live clients only": Mutant(
        56, freshness, (("(client.seq is None or waiting)", "True"),)
    ),
    "I2 a client that has caught up is told of the source": Mutant(
        6,
        hub,
        (
            (
                "cohort.live.add(client)\n                if cohort.source:",
                "cohort.live.add(client)\n                if False:",
            ),
        ),
    ),
    "P1 a flush waits for the gap": Mutant(2, hub, (("self._wait() <= EARLY", "True"),)),
    "P1 unless 128 KiB are pending": Mutant(
        2,
        hub,
        (("0.0 if self._pending.bytes >= self._max_batch else self._pace", "self._pace"),),
    ),
    "P1 the gap is what flushes cost": Mutant(
        0, pace, (("max(LEAST, self._rest * self.cost)", "self._interval"),)
    ),
    "P1 it is at most the interval": Mutant(
        2, pace, (("min(self._interval, max(LEAST", "max(0.0, max(LEAST"),)
    ),
    "P1 it is at least the resolution of a timer": Mutant(
        3, pace, (("max(LEAST, self._rest * self.cost))", "self._rest * self.cost)"),)
    ),
    "P1 a new gap sets the timer": Mutant(
        6, hub, (("if self._pending and self._sweep is None:", "if False:"),)
    ),
    "P2 a flush costs what the turn of the loop takes": Mutant(
        2,
        hub,
        (
            (
                "self._call_soon(partial(self._written, self._pace.began))",
                "self._written(self._pace.began)",
            ),
        ),
    ),
    "P3 the cost is a mean": Mutant(2, pace, (("self.cost += NEWEST *", "self.cost +="),)),
    "P3 one flush counts at most twice what they cost so far": Mutant(
        0,
        pace,
        (("min(self._clock() - began, max(2 * self.cost, LEAST))", "self._clock() - began"),),
    ),
    "T1 a tombstone is evicted": Mutant(
        0,
        board,
        (
            (
                "self._done.move_to_end(run_id)\n        return [] if",
                "self._done.pop(run_id)\n        return [] if",
            ),
        ),
    ),
    "T1 a tombstone is absent": Mutant(
        3, board, (("None if entry is None or is_tombstone(entry) else entry", "entry"),)
    ),
    "T2 a delete concerns filters for what the run was last": Mutant(
        4, tombstones, (("return ((last,), ever)", "return (((DELETED, None, None),), ever)"),)
    ),
    "T2 a catch-up concerns filters for anything it was": Mutant(
        23,
        tombstones,
        (("(*(each for each in ever if each != last), last)", "(last,)"),),
    ),
    "T2 a run that is not held was anything finished": Mutant(
        13,
        board,
        (("ever = is_or_was = self._unheld", "ever = is_or_was = (('deleted', None, None),)"),),
    ),
    "T3 a flush has no tombstones for the others": Mutant(
        3, pending, (("if self._tombstones:", "if False:"),)
    ),
    "T3 nor for the others with a filter": Mutant(
        0, cohorts, (("(alive or cohort.deleted)", "True"),)
    ),
    "T3 nor has a catch-up": Mutant(
        4, log, (("or (run[STATUS] == DELETED and (not deleted))", ""),)
    ),
    "T4 the push of a run that comes back has been what its tombstone was": Mutant(
        23, board, (("is_or_was = ever\n            self.size", "pass\n            self.size"),)
    ),
    "T4 so has its entry": Mutant(
        3,
        board,
        (("self.tombstones -= 1\n", "self.tombstones -= 1\n                ever = (now,)\n"),),
    ),
    "T4 a run that left as running and comes back later was anything": Mutant(
        243, board, (("self._unheld = ANYTHING", "pass"),)
    ),
    "T5 a run that is gone is buried": Mutant(
        75, board, (("pushes += self._bury(run_id, 0, known)", "self._forget(known)"),)
    ),
    "T5 a row that is older than the tombstone is skipped": Mutant(
        25,
        board,
        (
            (
                "news and _up_to(known, unless_after)",
                "news and (is_tombstone(known) or _up_to(known, unless_after))",
            ),
        ),
    ),
    "T5 a row of another Snapshot is alive again": Mutant(
        11,
        board,
        (
            (
                "news and _up_to(known, unless_after)",
                (
                    "news and _up_to(known, unless_after) and "
                    "(unless_after is not None or not is_tombstone(known))"
                ),
            ),
        ),
    ),
    "T6 a truncate is a gap": Mutant(
        4,
        board,
        (
            (
                "self._shown.clear()\n                self._delete_unnamed()",
                "self._shown.clear()\n                self.seq += 1",
            ),
        ),
    ),
    "T6 for the live clients too": Mutant(
        0, hub, (("if self.board.dead_floor != self._dead_floor:", "if False:"),)
    ),
    "T6 for a since": Mutant(
        9,
        board,
        (("max(self.floor_time, self.dead_floor_time) if deleted", "self.floor_time if deleted"),),
    ),
    "T6 for a client that drains before the next flush": Mutant(
        176, hub, (("and (not over):", "and True:"),)
    ),
    "T6 for a client that lags": Mutant(
        3,
        hub,
        (
            (
                "cohort.deleted and self._dead_floor > max(client.seq, client.joined)):",
                "cohort.deleted and client.intact and self._dead_floor > client.joined):",
            ),
        ),
    ),
    "T6 not for one that has joined since": Mutant(
        0,
        hub,
        (
            (
                "self._dead_floor > max(client.seq, client.joined)):",
                "self._dead_floor > client.seq):",
            ),
        ),
    ),
    "T6 time goes on above it": Mutant(
        3, board, (("self.time = self._allowed(self.time + 1)", "pass"),)
    ),
    "T7 so are deletes that may be unknown": Mutant(
        0, board, (("if event.deletes_unknown:", "if False:"),)
    ),
    "T8 deletes before a restart are unknown": Mutant(
        43, board, (("self.dead_floor_time = event.at\n", "pass\n"),)
    ),
    "T8 and time goes on above it": Mutant(
        35, board, (("self._allowed(event.at + 1)", "event.at"),)
    ),
    "T9 a tombstone is conflated with nothing": Mutant(
        1, board, (("(entry, is_or_was, False)]", "(entry, is_or_was, True)]"),)
    ),
    "T9 a run that is buried again is not told again": Mutant(
        2, board, (("return [] if told else", "return"),)
    ),
    "T9 but its tombstone is newer": Mutant(
        1632,
        board,
        (
            (
                "again = told = known is not None and is_tombstone(known)\n",
                (
                    "again = told = known is not None and is_tombstone(known)\n"
                    "        if again:\n            return []\n"
                ),
            ),
        ),
    ),
}
"""By the rule that each lacks. The number is that of the rule in hub.py or board.py."""
