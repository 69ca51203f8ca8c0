"""Valid and invalid requests that schemathesis derives from /openapi.json, to a real process.

`make fuzz` sends many more.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import Brain, served

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Requests of each operation. Unset: few, and always the same."""

OPTIONS = [
    "--checks",
    "not_a_server_error,response_headers_conformance",
    "--max-response-time",
    "5",
]
OPTIONS += ["--no-color", "--warnings", "off"]


@pytest.fixture
def brain(database: str) -> Iterator[Brain]:
    with served(database_url=database) as brain:
        yield brain


def test_no_request_causes_a_server_error(brain: Brain) -> None:
    amount = [str(EXAMPLES // 10)] if EXAMPLES else ["4", "--generation-deterministic"]
    schema = f"http://127.0.0.1:{brain.port}/openapi.json"
    run = subprocess.run(
        [SCHEMATHESIS, "run", schema, *OPTIONS, "--max-examples", *amount],
        cwd=brain.folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    assert "Tested: 7\n" in run.stdout, run.stdout
    assert brain.get("/readyz")[0] == 200
