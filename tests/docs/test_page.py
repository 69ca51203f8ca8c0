"""docs/reference/page.md: what it names as a proof is there."""

import re

from tests.docs.test_protocol import table
from tests.support import ROOT

PAGE = next((ROOT / "docs").rglob("page.md")).read_text()


def test_each_promise_has_a_proof_that_exists() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)", written, re.MULTILINE))
    rows = list(table(PAGE, "promise"))
    assert len(rows) == 14
    for promise, proof in rows:
        named = re.findall(r"`(test_\w+)(?!\.py)\b`", proof)
        assert named or "`benchmarks.page" in proof, promise
        assert set(named) <= there, promise
