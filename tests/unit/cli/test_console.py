"""What a command prints to a person."""

import pytest

from brain.cli.console import fail
from brain.client.endings import WatchError


def test_an_error_has_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    """The close reason, or the page of a proxy: a stranger may have written it."""
    with pytest.raises(SystemExit):
        fail(WatchError("closed: \x1b[2J\x1b]0;x\x07\u009b31m\u202e\nsee the log"))
    assert capsys.readouterr().err == (
        "brain: closed: \\x1b[2J\\x1b]0;x\\x07\\x9b31m\\u202e\nsee the log\n"
    )
