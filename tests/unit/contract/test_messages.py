"""The hand-written encoding agrees with the model, and websockets can read the frames."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from brain.contract.messages import (
    FIELDS,
    STATUSES,
    TYPES,
    Run,
    RunData,
    WSMessage,
    body,
    iso,
    message,
    micros,
    parse_time,
    text_frame,
)

NOW = 1_700_000_000_123_456

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
times = st.integers(0, 253_402_300_799_999_999)  # to the end of the year 9999
runs = st.tuples(
    texts,
    st.sampled_from(STATUSES),
    st.none() | st.floats(0, 100) | st.integers(0, 100),
    st.none() | texts,
    st.none() | texts,
    st.none() | times.map(iso),
    st.none() | times.map(iso),
    st.none() | texts,
)


def read(data: bytes) -> Frame:
    """The one frame in `data`, by websockets' own parser."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parser = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parser)
    assert not reader.buffer
    frame = done.value.value
    assert isinstance(frame, Frame)
    return frame


@given(runs)
@example(
    (
        "r",
        "failed",
        None,
        None,
        None,
        None,
        None,
        '"\\\x01\x1f\x7f\n\u2028\u2029</script>😀\ufeff é',
    )
)
@example(("'\"", "queued", 0.1 + 0.2, "", "\\", None, None, None))
@example(("r", "running", 1e-07, None, None, None, None, None))
def test_body_encodes_what_the_model_encodes(run: Run) -> None:
    text = body(run)
    assert text.isascii()
    assert text.isprintable()
    given_ = {name: value for name, value in zip(FIELDS, run, strict=True) if value is not None}
    assert json.loads(text) == given_
    model = RunData.model_validate_json(text)
    assert model == RunData.model_validate(given_)
    assert json.loads(text).keys() == json.loads(model.model_dump_json(exclude_none=True)).keys()


def test_a_field_that_is_none_is_absent() -> None:
    assert (
        body(("r", "queued", None, None, None, None, None, None)) == '{"id":"r","status":"queued"}'
    )
    assert "null" not in body(("r", "queued", 0.0, "", "", None, None, ""))


@given(runs, times)
def test_a_message_is_a_text_frame_with_a_valid_ws_message(run: Run, time: int) -> None:
    frame = read(message(run, time))
    assert (frame.opcode, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (
        Opcode.TEXT,
        True,
        False,
        False,
        False,
    )
    parsed = WSMessage.model_validate_json(bytes(frame.data))
    assert parsed.type == TYPES[run[1]]
    assert micros(parsed.timestamp) == time


def test_the_schema_accepts_messages_and_contains_no_null() -> None:
    schema = WSMessage.model_json_schema()
    assert "null" not in json.dumps(schema)
    assert schema["$defs"]["RunData"]["required"] == ["id", "status"]
    for row in (
        ("r", "queued", None, None, None, None, None, None),
        ("r", "failed", 99.5, "t", "a", iso(NOW), iso(NOW), "e"),
    ):
        jsonschema.validate(json.loads(bytes(read(message(row, NOW)).data)), schema)


@pytest.mark.parametrize("status", STATUSES)
def test_the_type_follows_the_status(status: str) -> None:
    found: Any = json.loads(
        bytes(read(message(("r", status, None, None, None, None, None, None), NOW)).data)
    )
    assert found == {
        "type": {"completed": "run_complete", "failed": "run_failed"}.get(status, "run_update"),
        "data": {"id": "r", "status": status},
        "timestamp": "2023-11-14T22:13:20.123456Z",
    }


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1_000_000])
def test_a_frame_of_each_size_class_is_valid(size: int) -> None:
    payload = b"x" * size
    frame = read(text_frame(payload))
    assert (frame.opcode, bytes(frame.data)) == (Opcode.TEXT, payload)
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_the_model_rejects_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        RunData.model_validate({"id": "r", "status": "queued", "colour": "red"})


@given(
    st.integers(0, 4_000_000_000_000_000),
    st.lists(
        st.sampled_from([0, 1, 97, 999_999, 1_000_000, 60_000_000, -1, -2_000_000]), max_size=9
    ),
)
def test_a_message_has_its_own_time_after_any_other(time: int, steps: list[int]) -> None:
    run = ("r", "queued", None, None, None, None, None, None)
    for step in (0, *steps):
        time = max(0, time + step)
        assert json.loads(message(run, time)[2:])["timestamp"] == iso(time)


@given(times)
def test_parse_time_inverts_iso(time: int) -> None:
    assert parse_time(iso(time)) == time
    assert len(iso(time)) == len("2026-11-21T09:30:00.123456Z")


@given(times, times)
def test_iso_sorts_as_time_does(one: int, other: int) -> None:
    assert (iso(one) < iso(other)) == (one < other)


@given(times)
def test_micros_is_exact(time: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)
    assert micros(moment) == time
    assert (
        micros(moment.replace(tzinfo=timezone(timedelta(hours=5, minutes=30))))
        == time - 19_800_000_000
    )


@pytest.mark.parametrize(
    "text",
    ["2023-11-14T22:13:20.123456Z", "2023-11-15T03:43:20.123456+05:30", "20231114T221320.123456Z"],
)
def test_a_time_in_any_zone_is_parsed(text: str) -> None:
    assert parse_time(text) == NOW


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2023-11-14", "2023-11-14T22:13:20", "1700000000", "2023-13-01T00:00:00Z"],
)
def test_a_time_without_a_zone_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is not an ISO 8601 time with a zone, such as 2026-11-21T09:30:00.123456Z",
    ):
        parse_time(text)
