"""Each test has a log of its own."""

import secrets

import pytest

from tests.support.nodes import Stream


@pytest.fixture(autouse=True)
def _stream() -> None:
    Stream.name = f"BRAIN_TEST_{secrets.token_hex(6)}"
