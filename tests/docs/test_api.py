"""docs/api.md: its table is that of the code, and its examples give the answers that it prints."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from brain.api.examples import LIST
from brain.contract.messages import TRANSITIONS
from tests.docs.test_protocol import table
from tests.integration.api.test_examples import timeless
from tests.support import ROOT
from tests.support.patience import PATIENCE, wait_until
from tests.support.served import Brain, served

PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"^```sh\n(.*?)^```\n```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


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


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_each_example_gives_the_answer_below_it(brain: Brain) -> None:
    assert len(EXAMPLES) == 6
    environment = {"PATH": os.environ["PATH"]}  # without a proxy

    def pushed() -> bool:
        runs = brain.get("/api/runs?order=changed")[1]["runs"]
        return bool(runs) and runs[0]["status"] == "running"

    for command, answer in EXAMPLES:
        if "order=changed" in command:
            wait_until(pushed)
        found = subprocess.run(
            ["bash", "-c", command.replace("localhost:5221", f"127.0.0.1:{brain.port}")],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
            env=environment,
        )
        expected = timeless(json.loads(answer))
        assert timeless(json.loads(found.stdout)) == expected, command
