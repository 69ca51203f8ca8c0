"""What is printed of texts that somebody wrote into the table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.cli.lines import printable, readable


@given(st.text())
def test_a_line_has_the_same_value_as_the_message(text: str) -> None:
    message = json.dumps({"data": {"id": text, "progress": 33.333}})
    line = readable(message)
    assert json.loads(line) == json.loads(message)
    assert len(line.splitlines()) == 1
    line.encode()


def test_text_is_printed_as_it_is() -> None:
    assert readable('{"a": "\\u4efb\\u52a1 \\ud83d\\ude00 \\u00e9"}') == '{"a":"任务 😀 é"}'


@pytest.mark.parametrize("code", [0x1B, 0x07, 0x7F, 0x9B, 0x2028, 0x202E, 0x2066, 0x0A, 0xD800])
def test_what_a_terminal_obeys_is_escaped(code: int) -> None:
    character = chr(code)
    assert character not in readable(json.dumps({"a": character}))
    assert character not in printable(f"a{character}b")


@given(st.text())
def test_a_cell_is_printable(text: str) -> None:
    assert printable(text).isprintable()
