"""Where `brain watch` draws a table."""

import io
import sys

import pytest

from brain.cli.watch import Options, draws_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("options", "environment", "draws"),
    [
        (Options(), {"TERM": "xterm"}, True),
        (Options(), {"TERM": "xterm", "CI": "false"}, True),
        (Options(), {"TERM": "xterm", "CI": "true"}, False),
        (Options(), {"TERM": "dumb"}, False),
        (Options(), {}, False),
        (Options(as_json=True), {"TERM": "xterm"}, False),
    ],
)
def test_a_table_is_for_a_person_at_a_terminal(
    options: Options, environment: dict[str, str], draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not draws_table(options), "a pipe, or a file"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert draws_table(options) is draws
