"""The messages of the log, byte by byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.contract.events import Changes, Event, Image, Op, Resumed, Snapshot
from brain.contract.messages import UNCHANGED, Run
from brain.nodes.messages import (
    MessageError,
    decode,
    decode_checkpoint,
    decode_columns,
    decode_event,
    decode_held,
    decode_image,
    encode,
    encode_checkpoint,
    encode_columns,
    encode_event,
    encode_held,
    encode_image,
    items,
    joined,
    parts,
)
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Column

RUN: Run = ("a", "running", 12.5, "t", None, "2026-11-27T11:00:00Z", None, "é\u2028😀")
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
runs: st.SearchStrategy[Any] = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    st.sampled_from(["queued", "running", "completed", "failed", UNCHANGED]),
    st.none() | st.floats(0, 100) | st.integers(0, 100),
    *[texts] * 5,
)
ops: st.SearchStrategy[Op] = st.sampled_from(["insert", "update", "delete", "truncate"])
times = st.integers(1, 2**53)
changes = st.builds(
    Changes, st.lists(st.tuples(ops, runs)), times, st.integers(0, 2**63), st.booleans()
)
snapshots = st.builds(
    Snapshot,
    rows=st.lists(runs),
    at=times,
    gone=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    complete=st.booleans(),
    new=st.booleans(),
    deletes_unknown=st.booleans(),
    unless_after=st.none() | times,
    refused=st.just(()),
    outcome=st.none(),
)


@given(changes | snapshots)
def test_an_event_is_what_it_was(event: Any) -> None:
    body = next(joined([encode_event(event, event.at)], 100))
    assert [decode_event(each) for each in items(body)] == [event]


def test_the_time_is_the_one_that_the_leader_gives() -> None:
    event = decode_event(json.loads(encode_event(Changes([("insert", RUN)], 5, 1), 7)))
    assert event == Changes([("insert", RUN)], 7, 1)


def test_a_message_has_a_head_and_a_body() -> None:
    message = decode(encode("events", 3, 4, b"[1]\n[2]", looked=True))
    assert (message.kind, message.epoch, message.n, message.body) == ("events", 3, 4, b"[1]\n[2]")
    assert message.head["looked"] is True
    assert message.is_last


@given(st.binary(max_size=60))
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


@pytest.mark.parametrize("head", ["1", "[]", '{"k":"claim"}', '{"k":"x","e":1,"n":2}', "null"])
def test_a_head_that_lacks_something_is_an_error(head: str) -> None:
    with pytest.raises(MessageError):
        decode(head.encode())


@pytest.mark.parametrize(
    "body", ['["c",1,2,0,[["x","a"]]]', '["s",1]', '["q"]', "[]", '["c","1",2,0,[]]', "1"]
)
def test_an_event_of_another_form_is_an_error(body: str) -> None:
    with pytest.raises(MessageError):
        decode_event(json.loads(body))


@pytest.mark.parametrize("body", [b"{}", b"[", b"\xff", b'"x"'])
def test_a_body_of_another_form_is_an_error(body: bytes) -> None:
    with pytest.raises(MessageError):
        items(body)


def test_no_source_of_a_node_yields_what_a_restart_needs() -> None:
    event: Event = Resumed([], [], 1, 1)
    with pytest.raises(TypeError):
        encode_event(event, 1)


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 100))
def test_lists_are_cut_by_their_encoded_size(found: list[bytes], limit: int) -> None:
    encoded = [json.dumps(each.hex()).encode() for each in found]
    bodies = list(joined(encoded, limit))
    assert [each for body in bodies for each in items(body)] == [each.hex() for each in found]
    for body in bodies:
        assert len(body) <= 2 * limit + 2 or len(items(body)) == 1


@given(st.binary(max_size=50), st.integers(1, 20))
def test_a_body_in_parts_is_the_body(body: bytes, limit: int) -> None:
    cut = parts(body, limit)
    assert b"".join(cut) == body
    assert all(len(part) <= limit for part in cut)
    heads = [encode("events", 1, 1, part, part=(i + 1, len(cut))) for i, part in enumerate(cut)]
    assert [decode(head).is_last for head in heads] == [False] * (len(cut) - 1) + [True]


def test_a_checkpoint_is_what_it_was_but_for_the_versions() -> None:
    checkpoint = Checkpoint(
        ("7", "1", None, "0 text"),
        PgSnapshot(5, 9, frozenset({6, 7})),
        frozenset({("a", "5")}),
        LSN(99),
        frozenset({3, 4}),
        "2026-11-27",
    )
    decoded = decode_checkpoint(json.loads(json.dumps(encode_checkpoint(checkpoint))))
    assert decoded == Checkpoint(
        checkpoint.identity,
        checkpoint.visible,
        flushed=LSN(99),
        tree=checkpoint.tree,
        epoch=checkpoint.epoch,
    )


def test_columns_are_what_they_were_and_a_later_version_may_add_to_them() -> None:
    columns = {"id": Column("Id", "uuid", generated=False, default=True, base="uuid", number=1)}
    encoded = json.loads(json.dumps(encode_columns(columns)))
    encoded["id"]["added"] = 1
    assert decode_columns(encoded) == columns


def test_a_board_is_what_it_was() -> None:
    entries = [(5, RUN, (("queued", None, "\0"), ("running", "a", None)), 7)]
    image = Image(entries, 9, 8, 3, 4, ended_early=True)
    head = json.loads(json.dumps(encode_image(image)))
    (body,) = joined(encode_held(entries), 1000)
    assert decode_image(head, decode_held(body)) == image


@pytest.mark.parametrize("body", [b"[1]", b"[[1,2,3]]", b'[[1,["a"],3,4]]'])
def test_a_board_of_another_form_is_an_error(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode_held(body)
