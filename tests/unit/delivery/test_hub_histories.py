"""Board and hub in random histories (world.py), and a history that goes wrong without each rule.

BRAIN_HISTORIES=10000 pytest tests/unit/delivery/test_hub_histories.py
    many more of them
BRAIN_HISTORIES=1 BRAIN_FIRST_HISTORY=4711 pytest tests/unit/delivery/test_hub_histories.py
    that one again
"""

import os
import pkgutil
import re
from importlib import import_module

import pytest

from brain import delivery
from tests.support import ROOT
from tests.unit.delivery.judge import Violation
from tests.unit.delivery.mutants import MUTANTS, engine
from tests.unit.delivery.world import histories

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.long]

FIRST = int(os.environ.get("BRAIN_FIRST_HISTORY", "0"))
RULES = (("I", 2), ("L", 8), ("P", 3), ("R", 18), ("T", 9), ("W", 2))
MODULES = [
    import_module(f"brain.delivery.{module.name}")
    for module in pkgutil.iter_modules(delivery.__path__)
]
HISTORIES = int(os.environ.get("BRAIN_HISTORIES", "60"))
MORE_HISTORIES = 300
"""Of `make faults`, and where a rule's own history does not need the rule."""


def test_histories() -> None:
    histories(range(FIRST, FIRST + HISTORIES), engine())


@pytest.mark.faults
def test_more_histories() -> None:
    histories(range(FIRST, FIRST + MORE_HISTORIES), engine())


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_history_goes_wrong_without(rule: str) -> None:
    """When what is drawn changes, the seed may no longer find it. Then the next histories are
    tried; BRAIN_HISTORIES=4000 tries enough for the rarest.
    """
    tries = max(HISTORIES, MORE_HISTORIES)
    mutant = MUTANTS[rule]
    histories([mutant.seed], engine())
    with pytest.raises(Violation, match=r"^history \d+"):
        histories([mutant.seed, *range(FIRST, FIRST + tries)], engine(mutant))


def test_each_rule_is_stated_once_and_has_a_test_and_a_mutant() -> None:
    stated: list[str] = []
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for module in MODULES:
        rules = re.split(r"^([ILPRTW]\d+) ", module.__doc__ or "", flags=re.MULTILINE)[1:]
        for number, text in zip(rules[::2], rules[1::2], strict=True):
            stated.append(number)
            names = re.findall(r"\btest_\w+", text)
            assert names, f"{number} names no test"
            for name in names:
                assert f"def {name}(" in tests, name
    expected = [f"{kind}{number}" for kind, most in RULES for number in range(1, most + 1)]
    assert sorted(stated) == sorted(expected)
    assert {rule.partition(" ")[0] for rule in MUTANTS} == set(stated)
