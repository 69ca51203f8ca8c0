"""The options: what they refuse, before anything is asked of anybody."""

import re

import pytest
from typer.testing import CliRunner

from brain.cli.commands import app


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("watch --status done", "'--status': 'done' is not queued, running, completed or failed"),
        ("watch --status running,done", "'done' is not"),
        ("watch --quiet nan", "'--quiet': nan is not 1 to 31536000 seconds"),
        ("wait r --timeout 0", "'--timeout': 0 is not 0.1 to 31536000 seconds"),
        ("wait r --timeout inf", "'--timeout': inf is not 0.1 to 31536000 seconds"),
        ("wait", "Missing argument 'RUN"),
        ("wait \udcff", "run '\\udcff' must not contain an unpaired surrogate"),
        ("token --scope admin", "'--scope': 'admin' is not read or write"),
        ("token --minutes 0", "'--minutes'"),
        ("token --minutes 999999", "'--minutes'"),
    ],
)
def test_a_wrong_option_names_the_value_and_the_rule(command: str, says: str) -> None:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert says in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
