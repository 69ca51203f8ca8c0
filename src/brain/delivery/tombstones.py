"""Deleted runs: what the board remembers of them for the clients that include `deleted`.

Each rule names a test that fails without it. In addition, tests/unit/delivery/mutants.py removes
every rule, and a random history then goes wrong.

T1   A delete leaves a tombstone: an entry under the run's id, with a status that no filter has,
     among the finished runs. It is evicted in their order and raises the floor as they do. To
     everything that asks for a run, it is absent.
     test_a_tombstone_is_absent_and_is_evicted_among_the_finished
T2   A delete concerns a filter that matches what the run was last; in a catch-up, anything that it
     has been. A run that the board does not hold may have been anything finished. The bounds of a
     token test the agent and the task that the run had last; unknown ones are in no bounds.
     test_a_delete_concerns_clients_that_may_show_the_run,
     test_a_token_receives_deletes_within_its_bounds
T3   Only cohorts that include `deleted` are sent tombstones.
     test_only_clients_that_include_deletes_receive_them
T4   A run that comes back under the id of a tombstone has been all that the tombstone has, in its
     push as well: clients that did not receive the delete drop what they show. That covers a run
     that leaves the contract as running and comes back finished. Once a tombstone of an unfinished
     run has been evicted, an updated run that is not held may have been anything. Over a restart,
     so may a run whose row is outside of the contract, and has changed since the floor.
     test_a_run_that_comes_back_was_all_that_its_tombstone_was,
     test_a_run_that_left_as_running_and_comes_back_later_than_memory_was_anything,
     test_a_run_that_was_outside_of_the_contract_at_a_restart_was_anything
T5   A run that a Snapshot reports as gone is buried like a deleted one. A row of a Snapshot that is
     older than the tombstone is skipped; one without `unless_after` is alive again.
     test_a_run_that_is_gone_is_buried, test_a_comparison_does_not_bring_back_a_run_deleted_since
T6   TRUNCATE names no run and leaves no tombstones: `dead_floor` and `dead_floor_time` are its seq
     and its time. For clients that include `deleted`, what lies before is a gap. The board's time
     continues above it, or a client that loads the table would get a `since` that is a gap again.
     test_unnamed_deletes_are_a_gap_for_clients_that_include_deletes,
     test_what_follows_a_truncate_is_no_gap
T7   What lies before a Snapshot is such a gap too if deletes may be unknown: a stream was
     interrupted, or begins.
     test_unnamed_deletes_are_a_gap_for_clients_that_include_deletes
T8   Everything before the first Snapshot is such a gap, even where memory reaches further back.
     test_deletes_before_the_start_are_a_gap_for_clients_that_include_deletes
T9   An UPDATE of the id is a delete and an insert. A tombstone is conflated with nothing. A row
     that leaves the contract is buried like a deleted one. One that is buried again is not pushed
     again, unless the API has shown it in between.
     test_a_tombstone_is_conflated_with_nothing, test_a_run_is_buried_and_pushed_once,
     test_an_update_of_the_id_is_a_delete_and_an_insert
"""

from typing import Final

from brain.contract.messages import ACTIVE, STATUSES, Run
from brain.contract.subscription import ANY, Facet, facet
from brain.delivery.log import DELETED, FACETS, RUN, Entry, is_tombstone

FINISHED: Final[tuple[Facet, ...]] = (("completed", ANY, ANY), ("failed", ANY, ANY))
"""What an updated run that the board does not hold may have been: unfinished runs are never
evicted."""

ANYTHING: Final[tuple[Facet, ...]] = tuple((status, ANY, ANY) for status in STATUSES)


def tombstone(run_id: str, known: Entry | None) -> Run:
    """What is known of a deleted run, by which filters select the clients that hear of it (T2)."""
    _, agent, task_id = (DELETED, None, None) if known is None else facet(known[RUN])
    return (run_id, DELETED, None, task_id, agent, None, None, None)


def buried(known: Entry) -> tuple[tuple[Facet, ...], tuple[Facet, ...]]:
    """What a run was last, and all that it has been, in which that comes last (for
    `was_unfinished`).
    """
    last, ever = facet(known[RUN]), known[FACETS]
    if ever != ANYTHING and not is_tombstone(known):
        ever = (*(each for each in ever if each != last), last)
    return (last,), ever


def was_unfinished(entry: Entry) -> bool:
    """Whether this is the tombstone of a run that was unfinished, or may have been (T4)."""
    facets = entry[FACETS]
    return is_tombstone(entry) and (facets == ANYTHING or facets[-1][0] in ACTIVE)
