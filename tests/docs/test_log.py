"""docs/reference/log.md has every event of the log that is a warning or an error, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

PAGE = ROOT / "docs" / "reference" / "log.md"
SOURCE = ROOT / "src" / "brain"

CHOSEN = {"source", "table warning"}
"""Their level depends on what they say."""


def warnings(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("log"), attr="warning" | "error" | "exception"),
                args=[event, *_],
            ):
                texts = [each for each in ast.walk(event) if isinstance(each, ast.Constant)]
                assert texts, f"{module}:{event.lineno}"
                yield from (str(each.value) for each in texts)


def test_the_page_has_every_warning_and_every_error() -> None:
    found = {event for module in SOURCE.rglob("*.py") for event in warnings(module)}
    assert {"worker died", "row rejected", "client failed"} <= found
    rows = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)
    documented = {event for cell in rows for event in re.findall("`([^`]+)`", cell)}
    assert documented == found | CHOSEN
