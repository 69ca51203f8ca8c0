"""What goes beyond the contract: each message is one of the published schema, and of no other."""

import json

import jsonschema
import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from brain.contract.include import (
    NO_SOURCE,
    SourceReport,
    WSIncludeMessage,
    deleted_message,
    ready_message,
    source_message,
)
from brain.contract.messages import iso, message
from tests.support import ROOT

T = 1_700_000_000_123_456
DEFAULT = json.loads((ROOT / "docs" / "reference" / "wsmessage.schema.json").read_text())
INCLUDING = json.loads((ROOT / "docs" / "reference" / "wsmessage-include.schema.json").read_text())
FRAMES = {
    "deleted": deleted_message('r"\n \U0001f600', T),
    "ready": ready_message(T),
    "source": source_message(SourceReport("poll", "role", "may not\nreplicate", 1.23456), T),
    "streaming": source_message(SourceReport("replication", None, "", -0.001), T),
    "unread": source_message(NO_SOURCE, 0),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_message_is_one_text_frame_of_the_published_schema(name: str) -> None:
    client = Protocol(Side.CLIENT, state=State.OPEN)
    client.receive_data(FRAMES[name])
    (frame,) = client.events_received()
    assert isinstance(frame, Frame)
    assert (frame.opcode, frame.fin) == (Opcode.TEXT, True)
    found = json.loads(bytes(frame.data))
    assert bytes(frame.data).isascii()
    jsonschema.validate(found, INCLUDING)
    WSIncludeMessage.model_validate(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, DEFAULT)


def test_a_message_of_the_contract_is_of_both_schemas() -> None:
    frame = message(("r", "queued", None, None, None, None, None, None), T)
    found = json.loads(frame[2:])
    jsonschema.validate(found, DEFAULT)
    jsonschema.validate(found, INCLUDING)


def test_the_published_schema_is_that_of_the_model() -> None:
    """`json.dumps(WSIncludeMessage.model_json_schema(), indent=2)` writes it."""
    assert WSIncludeMessage.model_json_schema() == INCLUDING


def test_source_has_only_what_is_known() -> None:
    data = {name: json.loads(frame[frame.index(b"{") :]) for name, frame in FRAMES.items()}
    assert data["source"]["data"] == {
        "source": "poll",
        "code": "role",
        "detail": "may not\nreplicate",
        "lag_seconds": 1.235,
    }
    assert data["streaming"]["data"] == {"source": "replication", "lag_seconds": 0}
    assert data["unread"]["data"] == {"source": "none", "lag_seconds": None}
    assert data["unread"]["timestamp"] == iso(0) == "1970-01-01T00:00:00.000000Z"


def test_silence_is_a_change_of_the_source() -> None:
    keys = {SourceReport("replication", None, "", lag).key for lag in (0.0, 4.9, 5.1, 60.0)}
    assert len(keys) == 2
