"""Board and hub with a rule removed: the proof that the random histories detect what they should.

A mutant is a change of the source in its normal form, that of `ast.unparse`: without comments, and
with one line for each simple statement. So neither comments nor line lengths matter to it.
"""

import ast
import inspect
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from brain.delivery import batches, board, hub
from tests.unit.delivery.world import Engine


class Mutant(NamedTuple):
    seed: int
    """A history that goes wrong without the rule."""
    module: ModuleType
    changes: tuple[tuple[str, str], ...]
    """What to replace by what, so that the source no longer enforces the rule."""


@cache
def variant(module: ModuleType, *changes: tuple[str, str]) -> Any:
    """A copy of the module in which each change is made, at the one place where it fits."""
    source = ast.unparse(ast.parse(inspect.getsource(module)))
    for old, new in changes:
        assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times: {old!r}"
        source = source.replace(old, new)
    copy = ModuleType(module.__name__)
    exec(compile(source, f"<{module.__name__}, changed>", "exec"), copy.__dict__)
    return copy


@cache
def engine(mutant: Mutant | None = None) -> Engine:
    """The real classes, or those of a mutant."""
    if mutant is None:
        return Engine(board.Board, hub.Hub)
    changed = variant(mutant.module, *mutant.changes)
    if mutant.module is board:
        return Engine(changed.Board, hub.Hub)
    if mutant.module is hub:
        return Engine(board.Board, changed.Hub)
    with_changed_batches = variant(hub)
    with_changed_batches.cut = changed.cut
    return Engine(board.Board, with_changed_batches.Hub)


MUTANTS: dict[str, Mutant] = {
    "R1 flushed is set before the first write": Mutant(
        12,
        hub,
        (
            (
                "self.flushed = self.board.seq\n        self._last",
                "self._next = self.board.seq\n        self._last",
            ),
            ("cut(pushes, self.flushed, ", "cut(pushes, self._next, "),
            ("cut(some, self.flushed, ", "cut(some, self._next, "),
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
        55, hub, (("self.flushed if self._serving is None else self._serving", "self.flushed"),)
    ),
    "R3 live again only if nothing was flushed": Mutant(
        0, hub, (("if client.intact and client.seq == self.flushed:", "if client.intact:"),)
    ),
    "R3 live again only if it was sent nothing but flushes": Mutant(
        59,
        hub,
        (("if client.intact and client.seq == self.flushed:", "if client.seq == self.flushed:"),),
    ),
    "R3 the tick continues the catch-up": Mutant(
        15, hub, (("        return behind\n", "        return False\n"),)
    ),
    "R4 a catch-up ends at what was flushed": Mutant(
        12,
        hub,
        (
            (
                "board.piece(client.seq, flushed, _wanted",
                "board.piece(client.seq, board.seq, _wanted",
            ),
            (
                "client.intact = False",
                "client.seq = min(client.seq, flushed)\n                client.intact = False",
            ),
        ),
    ),
    "R5 live only while nothing is pending": Mutant(
        175,
        hub,
        (("if client.seq == flushed and (not self._pending):", "if client.seq == flushed:"),),
    ),
    "R6 no flush starts before the last sweep has ended": Mutant(
        2, hub, (("if not self._pending or self._sweep is not None:", "if not self._pending:"),)
    ),
    "R6 a client that is cut off receives nothing more of the sweep": Mutant(
        23, hub, (("cut_off.add(client)", "pass"),)
    ),
    "R6 a write that fails ends that client only": Mutant(
        10,
        hub,
        (
            (
                "write(data)\n                        except Exception as",
                "write(data)\n                        except OSError as",
            ),
        ),
    ),
    "R6 a client filled while the sweep is suspended still receives the flush": Mutant(
        575, hub, (("if self._sweep is not None and self._serving is None:", "if False:"),)
    ),
    "R6 a suspended sweep is inside no client's write": Mutant(
        680, hub, (("self._serving = None\n                            yield", "yield"),)
    ),
    "R6 a client filled while the sweep is suspended is cut off after it": Mutant(
        85,
        hub,
        (
            (
                "self._cut_off(client, client.cohort, self.flushed)\n        self._late",
                "pass\n        self._late",
            ),
        ),
    ),
    "R6 unless it has drained": Mutant(
        306,
        hub,
        (("            self._late.discard(client)\n            return", "            return"),),
    ),
    "R7 conflation appends the newer change": Mutant(
        9,
        hub,
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
        8, hub, (("if steady:\n                place", "if True:\n                place"),)
    ),
    "R8 a change of status ends the chain": Mutant(
        14, hub, (("steady_at.pop(run_id, None)", "pass"),)
    ),
    "R8 what is merged unites its facets": Mutant(
        8, hub, (("merged = tuple(dict.fromkeys(older_facets + facets))", "pass"),)
    ),
    "R9 time never decreases": Mutant(
        3,
        board,
        (
            (
                "self.time = max(self.time, at, self.floor_time + 1)",
                "self.time = max(at, self.floor_time + 1)",
            ),
        ),
    ),
    "R9 a Snapshot has the time of its query": Mutant(
        2, board, (("self._advance(event.at)\n        if event.new", "if event.new"),)
    ),
    "R9 since includes its own time": Mutant(
        3, board, (("bisect_left(self._times, time)", "bisect_right(self._times, time)"),)
    ),
    "R9 the time of an evicted change is a gap": Mutant(
        1, board, (("time <= self.floor_time", "time < self.floor_time"),)
    ),
    "R9 a time before the first Snapshot is a gap": Mutant(
        4, board, (("self.floor_time = max(self.floor_time, event.at - 1)", "pass"),)
    ),
    "R9 the time of the first Snapshot is not": Mutant(
        16,
        board,
        (("self.floor_time = max(self.floor_time, event.at - 1)", "self.floor_time = event.at"),),
    ),
    "R10 a push concerns filters for what the run was": Mutant(
        2,
        board,
        (("is_or_was = (now,) if before == now else (before, now)", "is_or_was = (now,)"),),
    ),
    "R10 a catch-up concerns filters for anything it was": Mutant(
        8, board, (("run, frame, ever, xid)", "run, frame, (now,), xid)"),)
    ),
    "R10 a run with too many facets was anything": Mutant(
        12, board, (("< self._max_facets else ANYTHING", "< self._max_facets else ever"),)
    ),
    "R10 an unknown run that is updated was anything finished": Mutant(
        26, board, (("() if op == 'insert' else FINISHED", "()"),)
    ),
    "R10 so was an unknown finished run of a Snapshot": Mutant(
        11,
        board,
        (("run[STATUS] in ACTIVE else FINISHED", "run[STATUS] in ACTIVE else ()"),),
    ),
    "R10 an inserted run was nothing": Mutant(
        9, board, (("() if op == 'insert' else FINISHED", "FINISHED"),)
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
        26, hub, (("if board.floor > max(client.seq, client.until):", "if False:"),)
    ),
    "R12 nothing else is refused": Mutant(
        0,
        hub,
        (("if board.floor > max(client.seq, client.until):", "if board.floor > client.seq:"),),
    ),
    "R12 an eviction makes a gap": Mutant(
        5, board, (("self.floor = max(self.floor, entry[SEQ])", "pass"),)
    ),
    "R12 a new beginning makes a gap": Mutant(
        1, board, (("self.floor, self.floor_time = (self.seq, self.time)", "pass"),)
    ),
    "R13 a run that is gone is removed": Mutant(
        58,
        board,
        (
            (
                "_up_to(known, event.unless_after):\n                self._forget(known)",
                "_up_to(known, event.unless_after):\n                pass",
            ),
        ),
    ),
    "R13 the first Snapshot pushes nothing": Mutant(
        29, board, (("            pushes = []\n", ""),)
    ),
    "R13 the first Snapshot counts as flushed": Mutant(
        16, hub, (("self.flushed = self.board.seq\n            if self._ready", "if self._ready"),)
    ),
    "R13 a comparison does not override a newer change": Mutant(
        0, board, (("return news and _up_to(known, unless_after)", "return news"),)
    ),
    "R13 nor a newer delete": Mutant(43, board, (("self._deleted[run[ID]] = self.seq", "pass"),)),
    "R13 nor a newer truncate": Mutant(
        635,
        board,
        (
            (
                "self._deleted.clear()\n                self._deleted_floor = self.seq",
                "self._deleted.clear()",
            ),
        ),
    ),
    "R13 nor deletes that are too many to remember": Mutant(
        63,
        board,
        (("            self._deleted_floor = self.seq\n        return", "        return"),),
    ),
    "R13 nor what was evicted": Mutant(
        1,
        board,
        (
            (
                "max(self.floor, self._deleted.get(run[ID], self._deleted_floor))",
                "self._deleted.get(run[ID], self._deleted_floor)",
            ),
        ),
    ),
    "R13 nor is a run gone that has changed since": Mutant(
        8502,
        board,
        (
            (
                "if known is not None and _up_to(known, event.unless_after):",
                "if known is not None:",
            ),
        ),
    ),
    "R14 a client without since and snapshot is live at once": Mutant(
        0, hub, (("cohort.live.add(client)\n            return", "client.seq = self.flushed"),)
    ),
    "R15 a piece is for one filter": Mutant(40, hub, (("key = (cohort.filter, ", "key = (ALL, "),)),
    "R15 a piece is for one snapshot": Mutant(
        14, hub, (("client.until if client.seq < client.until else 0)", "0)"),)
    ),
    "R15 a piece ends before the roundest seq": Mutant(
        26, board, (("len(frames), common - 1,", "len(frames), common,"),)
    ),
    "R15 a piece is bounded": Mutant(
        25, board, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
    "R16 a sweep yields": Mutant(10, hub, (("if turns + len(some) > stride:", "if False:"),)),
    "R16 a catch-up stops": Mutant(16, hub, (("if self._clock() > deadline:", "if False:"),)),
    "R17 a batch is cut": Mutant(
        2, batches, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
}
"""By the rule that each lacks. The number is that of the rule in hub.py or board.py."""
