"""What starts Brain, without a database."""

from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from brain.app import _announce_start
from brain.postgres.example import ExampleRun


async def test_brain_serves_also_if_the_example_fails_by_a_bug() -> None:
    """Or because the table has changed between two of its queries."""
    announced: list[tuple[str | None, ExampleRun | None]] = []
    server: Any = SimpleNamespace(started=True)
    parts: Any = SimpleNamespace(board=SimpleNamespace(begun=True))

    async def look() -> ExampleRun:
        raise KeyError("a column that has just been renamed")

    with capture_logs() as logs:
        await _announce_start(server, parts, lambda *given: announced.append(given), look)
    assert announced == [(None, None)]
    assert [line["event"] for line in logs] == ["no example"]
