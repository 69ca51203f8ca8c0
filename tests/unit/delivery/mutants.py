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
    catch_up,
    cohorts,
    groups,
    hub,
    index,
    lanes,
    log,
    pace,
    pending,
    rotation,
    shared,
    source_messages,
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


USES: dict[ModuleType, tuple[tuple[ModuleType, tuple[str, ...]], ...]] = {
    board: ((log, ("Log",)), (tombstones, ("buried", "tombstone", "was_unfinished"))),
    cohorts: ((index, ("Index",)),),
    shared: ((batches, ("Batches", "cut")), (groups, ("Group",)), (index, ("concerned",))),
    lanes: (
        (batches, ("Batches",)),
        (groups, ("Group", "Lane")),
        (index, ("concerned",)),
        (shared, ("SharedLane",)),
    ),
    hub: (
        (alarm, ("Alarm",)),
        (catch_up, ("CatchUp",)),
        (cohorts, ("Cohorts",)),
        (source_messages, ("SourceMessages",)),
        (lanes, ("Lanes",)),
        (pace, ("Pace",)),
        (pending, ("Pending",)),
        (rotation, ("Rotation",)),
    ),
}
"""A module, and the names that it uses of others. Those that it uses come before it."""


@cache
def engine(mutant: Mutant | None = None) -> Engine:
    """The real classes, or those of a mutant: its module, and copies of all that use it."""
    changed = dict[ModuleType, Any]()
    if mutant is not None:
        changed[mutant.module] = variant(mutant.module, *mutant.changes)
    for user, used in USES.items():
        for module, names in used:
            if module in changed:
                copy = changed[user] = changed.get(user) or variant(user)
                for name in names:
                    setattr(copy, name, getattr(changed[module], name))
    return Engine(changed.get(board, board).Board, changed.get(hub, hub).Hub)


MUTANTS: dict[str, Mutant] = {
    "R1 the position moves before the first write": Mutant(
        4,
        rotation,
        (
            ("group.seq, group.time = (batch.end, batch.time)\n", "pass\n"),
            (
                "self._counts.deliveries +=",
                (
                    "group.seq, group.time = (batch.end, batch.time)\n"
                    "        self._counts.deliveries +="
                ),
            ),
        ),
    ),
    "R2 a client that fills up leaves its group": Mutant(
        0, hub, (("0, True)\n        group.live.discard(client)", "0, True)"),)
    ),
    "R3 live again only where its group still is": Mutant(
        0, hub, (("and (client.seq == group.position) and", "and"),)
    ),
    "R3 live again only if it was sent nothing but batches": Mutant(
        397, hub, (("if client.intact and group is not None", "if group is not None"),)
    ),
    "R3 live again only if its group exists": Mutant(
        27, hub, (("(group.lane is not None) and ", ""),)
    ),
    "R3 ready once": Mutant(49, catch_up, (("if not client.waiting:", "if True:"),)),
    "R3 the tick continues the catch-up": Mutant(
        0, catch_up, (("        return behind\n", "        return False\n"),)
    ),
    "R4 a catch-up ends at the seq of the lane": Mutant(
        4,
        catch_up,
        (
            ("board.log.piece(seq, end, ", "board.log.piece(seq, self._board.seq, "),
            (
                "client.intact = False\n            if data",
                "client.seq = min(client.seq, end)\n            if data",
            ),
        ),
    ),
    "R5 live only if it is whole": Mutant(
        8,
        catch_up,
        (("client.seq == client.whole == home.position", "client.seq == home.position"),),
    ),
    "R5 live only where its group is": Mutant(
        8,
        catch_up,
        (("client.seq == client.whole == home.position", "client.seq == client.whole"),),
    ),
    "R6 a write that fails ends that client only": Mutant(
        3,
        rotation,
        (
            (
                "write(data)\n            except Exception as",
                "write(data)\n            except OSError as",
            ),
        ),
    ),
    "W1 what a lane lacks is kept": Mutant(
        0, lanes, (("min((lane.at for lane in self.all)", "max((lane.at for lane in self.all)"),)
    ),
    "W2 conflated counts what nobody was sent": Mutant(
        8, pending, (("conflated += place >= sent", "conflated += 1"),)
    ),
    "L1 a group that is full is followed by another": Mutant(
        7, lanes, (("len(group.live) >= self._max_group", "False"),)
    ),
    "L1 nor do clients that drain fill it more": Mutant(
        909, hub, (("and (not self._lanes.full(group)) and", "and"),)
    ),
    "L1 a new lane stands at the end of what is pending": Mutant(
        6,
        lanes,
        (
            (
                "lane = Lane(end, self._board.seq,",
                "lane = Lane(self._pending.base, self._board.seq,",
            ),
        ),
    ),
    "L1 a new filter is sent nothing from before": Mutant(
        16,
        shared,
        (("place >= group.opened and ", ""),),
    ),
    "L1 nor what may have been anything": Mutant(
        7, shared, (("if unsure[0] < group.opened:", "if False:"),)
    ),
    "L2 a plan covers all that its lane lacks": Mutant(
        0,
        lanes,
        (
            (
                "Batches(list(entries), self._max_batch)",
                "Batches(list(entries)[:1], self._max_batch)",
            ),
        ),
    ),
    "L3 a group with batches left has not reached the plan": Mutant(
        0, groups, (("return self.seq if self.left else self.lane.seq", "return self.lane.seq"),)
    ),
    "L3 a group without has": Mutant(
        1, groups, (("return self.seq if self.left else self.lane.seq", "return self.seq"),)
    ),
    "L4 a lane at the end has everything up to the seq of the board": Mutant(
        0, lanes, (("if lane.at == self._pending.end:", "if False:"),)
    ),
    "L4 no other lane has": Mutant(104, lanes, (("if lane.at == self._pending.end:", "if True:"),)),
    "L5 also what nobody in the group is live for is matched": Mutant(
        7,
        shared,
        (("if group is not None and place", "if group is not None and group.live and place"),),
    ),
    "L5 the lane is planned when all changes are matched": Mutant(
        7,
        rotation,
        (("if lane is self._lanes.shared and self._lanes.shared.behind:", "if False:"),),
    ),
    "L5 the next turns go on": Mutant(12, hub, ((" or self._lanes.shared.behind:", ":"),)),
    "L6 lanes at one place share their batches": Mutant(
        7,
        lanes,
        (
            (
                "key = (cohort.deleted if everything else cohort, at,",
                "key = (cohort.deleted if everything else cohort, 0,",
            ),
        ),
    ),
    "L6 only those with one filter": Mutant(
        224, lanes, (("cohort.deleted if everything else cohort", "cohort.deleted"),)
    ),
    "L7 all cohorts of a kind are sent what may have been anything": Mutant(
        0, shared, (("for kind in unsure:\n", "for kind in ():\n"),)
    ),
    "L7 of those statuses": Mutant(
        10,
        index,
        (("(not statuses or not statuses.isdisjoint(unsure))", "not statuses"),),
    ),
    "L7 those that lack more share no batches": Mutant(0, shared, (("elif not places:", "else:"),)),
    "L8 a batch that is not made is left": Mutant(
        78, groups, (("if batch is None or batch.last:", "if True:"),)
    ),
    "L8 it is made of the changes as they were planned": Mutant(
        0,
        shared,
        (
            ("Plan(self._pending.window(self.at), self.at,", "Plan(self._pending, self.at,"),
            (
                "(changes[place - at] for place in places)",
                "(changes.window(place)[0] for place in places if place >= changes.base)",
            ),
        ),
    ),
    "R7 conflation appends the newer change": Mutant(
        1,
        pending,
        (
            (
                "items.append((entry, facets, parts))",
                (
                    "if steady and place >= base:\n"
                    "                items[place - base] = (entry, facets, parts)\n"
                    "            else:\n"
                    "                items.append((entry, facets, parts))"
                ),
            ),
            (
                "steady_at[run_id] = base + len(items)",
                "steady_at[run_id] = place if place >= base else base + len(items)",
            ),
        ),
    ),
    "R8 a change of status is never conflated": Mutant(
        8, pending, (("if steady:\n                place", "if True:\n                place"),)
    ),
    "R8 a change of status ends the chain": Mutant(
        4, pending, (("steady_at.pop(run_id, None)", "pass"),)
    ),
    "R8 what is merged unites its facets": Mutant(
        4, pending, (("parts = (*kept, (place, older_facets))", "pass"),)
    ),
    "R8 also those of what it has replaced before": Mutant(
        70,
        pending,
        (("parts = (*kept, (place, older_facets))", "parts = ((place, older_facets),)"),),
    ),
    "R8 but only of what the lane lacks": Mutant(57, pending, (("if place >= at for", "for"),)),
    "R9 time never decreases": Mutant(
        3, board, (("max(self.time, at, self.floor_time + 1)", "max(at, self.floor_time + 1)"),)
    ),
    "R9 a Snapshot has the time of its query": Mutant(
        2, board, (("self._advance(event.at)\n        if event.new", "if event.new"),)
    ),
    "R9 since includes its own time": Mutant(
        3, log, (("bisect_left(self.times, time)", "bisect_right(self.times, time)"),)
    ),
    "R9 the time of an evicted change is a gap": Mutant(
        2, board, (("time <= floor", "time < floor"),)
    ),
    "R9 a time before the first Snapshot is a gap": Mutant(
        4, board, (("self.floor_time = max(self.floor_time, event.at - 1)", "pass"),)
    ),
    "R9 the time of the first Snapshot is not": Mutant(
        12,
        board,
        (("self.floor_time = max(self.floor_time, event.at - 1)", "self.floor_time = event.at"),),
    ),
    "R10 a push concerns filters for what the run was": Mutant(
        0,
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
        5, board, (("< self._max_facets else ANYTHING", "< self._max_facets else ever"),)
    ),
    "R10 an unknown run that is updated was anything finished": Mutant(
        2, board, (("() if op == 'insert' else self._unheld", "()"),)
    ),
    "R10 so was an unknown finished run of a Snapshot": Mutant(
        0,
        board,
        (("run[STATUS] in ACTIVE else self._unheld", "run[STATUS] in ACTIVE else ()"),),
    ),
    "R10 an inserted run was nothing": Mutant(
        0, board, (("() if op == 'insert' else self._unheld", "self._unheld"),)
    ),
    "R11 unfinished runs are never evicted": Mutant(
        0,
        board,
        (
            (
                "self._unfinished.add(run_id)\n            self._done.pop(run_id, None)",
                "self._unfinished.add(run_id)\n            self._done[run_id] = None",
            ),
        ),
    ),
    "R12 a gap is refused": Mutant(
        0, catch_up, (("self._board.floor > max(client.seq, client.until) or", "False or"),)
    ),
    "R12 nothing else is refused": Mutant(
        0,
        catch_up,
        (("self._board.floor > max(client.seq, client.until)", "self._board.floor > client.seq"),),
    ),
    "R12 an eviction makes a gap": Mutant(
        0, board, (("self.floor = max(self.floor, entry[SEQ])", "pass"),)
    ),
    "R12 a new beginning makes a gap": Mutant(
        5, board, (("self.floor, self.floor_time = (self.seq, self.time)", "pass"),)
    ),
    "R13 a run that is gone is removed": Mutant(
        141,
        board,
        (("pushes += self._bury(run_id, 0, known)", "pass"),),
    ),
    "R13 the first Snapshot pushes nothing": Mutant(
        38, board, (("_time)\n        return []", "_time)\n        return pushes"),)
    ),
    "R13 nobody is sent the runs that had finished before the first Snapshot": Mutant(
        1, hub, (("self._catch_up.first = self.board.seq", "self._catch_up.first = 0"),)
    ),
    "R13 a comparison does not override a newer change": Mutant(
        1, board, (("return news and _up_to(known, unless_after)", "return news"),)
    ),
    "R13 nor a newer truncate": Mutant(
        6, board, (("max(self.floor, self.dead_floor) <= unless_after", "True"),)
    ),
    "R13 nor what was evicted": Mutant(
        6, board, (("max(self.floor, self.dead_floor) <=", "self.dead_floor <="),)
    ),
    "R13 nor is a run gone that has changed since": Mutant(
        11,
        board,
        (
            (
                "if known is not None and _up_to(known, event.unless_after):",
                "if known is not None:",
            ),
        ),
    ),
    "R14 a client without since and snapshot is live at once": Mutant(
        14, hub, (("if cohort.deleted and group.position < self.board.seq:", "if True:"),)
    ),
    "R14 but not one that includes deletes while changes are pending": Mutant(
        3448, hub, (("if cohort.deleted and group.position < self.board.seq:", "if False:"),)
    ),
    "R18 a piece is for one filter": Mutant(0, catch_up, (("key = (cohort, ", "key = (None, "),)),
    "R18 a piece is for one snapshot": Mutant(
        3, catch_up, (("client.until if seq < client.until else 0)", "0)"),)
    ),
    "R15 a piece ends before the roundest seq": Mutant(
        0, log, (("len(frames), common - 1,", "len(frames), common,"),)
    ),
    "R15 a piece is bounded": Mutant(
        25, log, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
    "R16 a turn writes to a group": Mutant(
        0, rotation, (("if work and work + writes > self._max_writes:", "if False:"),)
    ),
    "R16 no rotation begins before the last has ended": Mutant(
        2, hub, (("and (not self._rotation.under_way) and (self", "and (self"),)
    ),
    "R18 a catch-up stops": Mutant(69, catch_up, (("if self._clock() > deadline:", "if False:"),)),
    "R17 a batch is cut": Mutant(
        2, batches, (("if frames and size + len(frame) > limit:", "if False:"),)
    ),
    "I1 ready comes behind what was asked for": Mutant(
        1,
        catch_up,
        (("client.seq is not None and (client.seq >= client.goal)", "client.seq is not None"),),
    ),
    "I1 ready has a time from which nothing is lost": Mutant(
        111, catch_up, (("self._board.reached if time is None else time", "self._board.reached"),)
    ),
    "I1 ready is sent": Mutant(
        1,
        catch_up,
        (("if client.goal is not None and client.seq", "if False and client.seq"),),
    ),
    "I1 ready is sent once": Mutant(1, catch_up, (("client.goal = None\n", "pass\n"),)),
    "I2 source has a time from which nothing is lost": Mutant(
        17, hub, (("max(client.since, client.group.position_time)", "self.board.reached"),)
    ),
    "I2 source has the time of the last batch while others are left": Mutant(
        78,
        groups,
        (("return self.time if self.left else self.lane.time", "return self.lane.time"),),
    ),
    "I2 source is sent to live clients only": Mutant(
        899, source_messages, (("(client.seq is None or waiting)", "True"),)
    ),
    "I2 a client that has caught up is told of the source": Mutant(
        1, hub, (("elif group.cohort.source:", "elif False:"),)
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
        4, pace, (("min(self._interval, max(LEAST", "max(0.0, max(LEAST"),)
    ),
    "P1 it is at least the resolution of a timer": Mutant(
        3, pace, (("max(LEAST, self._rest * self.cost))", "self._rest * self.cost)"),)
    ),
    "P1 a new gap sets the timer": Mutant(
        4,
        hub,
        (
            (
                "(began)\n        if self._pending and (not self._rotation.under_way):",
                "(began)\n        if False:",
            ),
        ),
    ),
    "P2 a flush costs what the turn of the loop takes": Mutant(
        4,
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
        30,
        tombstones,
        (("(*(each for each in ever if each != last), last)", "(last,)"),),
    ),
    "T2 a run that is not held was anything finished": Mutant(
        48,
        board,
        (
            (
                "ever = is_or_was = was or self._unheld",
                "ever = is_or_was = (('deleted', None, None),)",
            ),
        ),
    ),
    "T3 a flush has no tombstones for the others": Mutant(
        3, lanes, (("cohort.deleted or not is_tombstone(each)", "True"),)
    ),
    "T3 nor for the others with a filter": Mutant(
        0,
        shared,
        (("and concerned(cohort, run, facets):", "and cohort.filter.matches(run[0], facets):"),),
    ),
    "T3 nor for the others of a kind": Mutant(
        7, index, (("(alive or self.deleted) and", "True and"),)
    ),
    "T3 nor has a catch-up": Mutant(
        4, log, (("or (run[STATUS] == DELETED and (not deleted))", ""),)
    ),
    "T4 the push of a run that comes back has been what its tombstone was": Mutant(
        30, board, (("is_or_was = ever\n            self.size", "pass\n            self.size"),)
    ),
    "T4 so has its entry": Mutant(
        3,
        board,
        (("self.tombstones -= 1\n", "self.tombstones -= 1\n                ever = (now,)\n"),),
    ),
    "T4 a run that left as running and comes back later was anything": Mutant(
        131, board, (("self._unheld = ANYTHING", "pass"),)
    ),
    "T5 a run that is gone is buried": Mutant(
        52, board, (("pushes += self._bury(run_id, 0, known)", "self._forget(known)"),)
    ),
    "T5 a row that is older than the tombstone is skipped": Mutant(
        11,
        board,
        (
            (
                "news and _up_to(known, unless_after)",
                "news and (is_tombstone(known) or _up_to(known, unless_after))",
            ),
        ),
    ),
    "T5 a row of another Snapshot is alive again": Mutant(
        42,
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
        5,
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
        3,
        board,
        (("max(self.floor_time, self.dead_floor_time) if deleted", "self.floor_time if deleted"),),
    ),
    "T6 for a client that drains before the next flush": Mutant(
        423, hub, (("and (not self._missed_deletes(client, cohort)):", "and True:"),)
    ),
    "T6 for a client that lags": Mutant(
        0,
        catch_up,
        (
            (
                "or self._missed_deletes(client, cohort):",
                "or (client.intact and self._missed_deletes(client, cohort)):",
            ),
        ),
    ),
    "T6 not for one that has joined since": Mutant(
        0,
        hub,
        (("max(client.seq or 0, client.joined)", "(client.seq or 0)"),),
    ),
    "T6 time goes on above it": Mutant(
        5, board, (("self.time = self._allowed(self.time + 1)", "pass"),)
    ),
    "T7 so are deletes that may be unknown": Mutant(
        0, board, (("if event.deletes_unknown:", "if False:"),)
    ),
    "T8 deletes before a restart are unknown": Mutant(
        20, board, (("self.dead_floor_time = event.at\n", "pass\n"),)
    ),
    "T8 and time goes on above it": Mutant(
        9, board, (("self._allowed(event.at + 1)", "event.at"),)
    ),
    "T9 a tombstone is conflated with nothing": Mutant(
        4, board, (("(entry, is_or_was, False)]", "(entry, is_or_was, True)]"),)
    ),
    "T9 a run that is buried again is not pushed again": Mutant(
        3, board, (("return [] if pushed else", "return"),)
    ),
    "T9 but its tombstone is newer": Mutant(
        2169,
        board,
        (
            (
                "again = pushed = known is not None and is_tombstone(known)\n",
                (
                    "again = pushed = known is not None and is_tombstone(known)\n"
                    "        if again:\n            return []\n"
                ),
            ),
        ),
    ),
}
"""By the rule that each lacks. The number is that of the rule in hub.py or board.py."""
