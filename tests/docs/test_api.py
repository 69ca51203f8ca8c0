"""api.md: its tables are those of the code. test_snippets.py follows its examples."""

import re
from collections.abc import Iterator

import pytest

from brain.api.examples import LIST
from brain.contract.messages import TRANSITIONS
from tests.docs.test_protocol import table
from tests.support import ROOT
from tests.support.served import Brain, served

PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


def test_the_table_of_requests_is_that_of_the_code(brain: Brain) -> None:
    paths = brain.get("/openapi.json")[1]["paths"]
    expected = {
        f"`{method.upper()} {path}`": " ".join(operation["responses"])
        for path, operations in paths.items()
        if path.startswith(LIST)
        for method, operation in operations.items()
    }
    rows = {request: answers for request, _, answers in table(PAGE, "request")}
    assert {name: sorted(each.split()) for name, each in rows.items()} == {
        name: sorted(each.split()) for name, each in expected.items()
    }


def test_the_transitions_are_those_of_the_code() -> None:
    rows = {f"`{old}`": sorted(new - {old}) for old, new in TRANSITIONS.items()}
    found = {old: sorted(re.findall(r"`(\w+)`", new)) for old, new in table(PAGE, "from")}
    assert found == rows
