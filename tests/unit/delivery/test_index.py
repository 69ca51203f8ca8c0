"""The index of filters finds exactly what each of them would match."""

import random

import pytest

from brain.contract.include import NOTHING, Included
from brain.contract.messages import Run
from brain.contract.subscription import ANY, Facet, Filter, facet
from brain.delivery.cohorts import Cohort, Cohorts
from brain.delivery.index import concerned
from brain.delivery.log import DELETED
from brain.delivery.tombstones import ANYTHING, FINISHED

IDS, TASKS, AGENTS = ("r", "s"), ("t", "u"), ("a", "b")
TOLD: Included = frozenset(("deleted",))
STATUSES = ("queued", "running", "completed", "failed")


def drawn_filter(dice: random.Random) -> Filter:
    def some(values: tuple[str, ...]) -> frozenset[str]:
        return frozenset(dice.sample(values, dice.choice((0, 0, 0, 1, 2))))

    bounds = [(name, some(of)) for name, of in (("agent", AGENTS), ("task_id", TASKS))]
    return Filter(
        some(IDS),
        some(TASKS),
        some(AGENTS),
        some(STATUSES),
        frozenset(bound for bound in bounds if bound[1]),
    )


def drawn_change(dice: random.Random) -> tuple[Run, tuple[Facet, ...]]:
    def drawn() -> Facet:
        return dice.choice(STATUSES), dice.choice((*AGENTS, None)), dice.choice((*TASKS, None))

    status, agent, task_id = drawn()
    if dice.random() < 0.2:
        status = DELETED
    now: Run = (dice.choice(IDS), status, None, task_id, agent, None, None, None)
    was = dice.choice(((), (drawn(),), FINISHED, ANYTHING))
    return now, was if status == DELETED else (*was, facet(now))


@pytest.mark.parametrize("seed", range(20))
def test_the_index_finds_exactly_what_filters_match(seed: int) -> None:
    dice = random.Random(seed)
    cohorts = Cohorts()
    everyone: list[Cohort] = []
    for _ in range(60):
        wish = drawn_filter(dice)
        if wish != Filter():
            everyone.append(cohorts.add(wish, dice.choice((NOTHING, TOLD))))
    for cohort in everyone[::7]:
        cohorts.remove(cohort)
    for _ in range(100):
        run, facets = drawn_change(dice)
        kinds, found = cohorts.index.lookup(run, facets)
        assert kinds == [] or ANY in {agent for _, agent, _ in facets}
        all_of_a_kind = {cohort for kind in kinds for cohort in kind.cohorts}
        matching = {cohort for cohort in found if concerned(cohort, run, facets)}
        assert all_of_a_kind | matching == {
            cohort for cohort in cohorts if concerned(cohort, run, facets)
        }
    for cohort in list(cohorts):
        while not cohorts.remove(cohort):
            pass
    assert not cohorts.index
