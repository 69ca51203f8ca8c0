"""What a reader of the log knows (nodes/track.py)."""

from typing import Any

import pytest

from brain.contract.events import Changes, Snapshot
from brain.contract.messages import Run
from brain.nodes.messages import (
    VERSION,
    encode,
    encode_checkpoint,
    encode_event,
    joined,
    parts,
)
from brain.nodes.track import LoadAgain, Track
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.snapshots import PgSnapshot

RUN: Run = ("a", "running", None, None, None, None, None, None)


def claim(node: str = "n", base: str = "log") -> bytes:
    return encode("claim", 0, 0, id=node, name=node, base=base)


def changes(epoch: int, n: int, at: int = 5, xid: int = 3, **head: Any) -> bytes:
    (body,) = joined([encode_event(Changes([("update", RUN)], at, xid), at)], 1000)
    return encode("events", epoch, n, body, **head)


def begun() -> Track:
    track = Track()
    track.take(1, claim())
    return track


def test_the_place_of_a_claim_is_the_epoch() -> None:
    track = begun()
    assert (track.epoch, track.n, track.position) == (1, 0, 1)
    assert track.claim is not None
    assert track.claim.node == "n"
    assert track.take(2, changes(1, 1)) == [Changes([("update", RUN)], 5, 3)]
    assert (track.n, track.position, track.at) == (1, 2, 5)


def test_a_message_of_a_lower_epoch_is_skipped() -> None:
    track = begun()
    track.take(2, claim("m"))
    assert track.take(3, changes(1, 1)) == []
    assert track.position == 3
    assert track.take(4, changes(2, 1)) != []


@pytest.mark.parametrize(("epoch", "n"), [(1, 2), (1, 0), (2, 1), (9, 1)])
def test_a_message_that_does_not_follow_loads_again(epoch: int, n: int) -> None:
    with pytest.raises(LoadAgain):
        begun().take(2, changes(epoch, n))


def test_what_was_cut_is_put_together() -> None:
    track = begun()
    snapshot = Snapshot([RUN] * 50, 7, [f"run {i}" for i in range(99)])
    (body,) = joined([encode_event(snapshot, 7)], 10**6)
    cut = parts(body, 100)
    for n, part in enumerate(cut[:-1], 1):
        assert track.take(n + 1, encode("events", 1, n, part, part=(n, len(cut)))) == []
    n = len(cut)
    assert track.take(n + 1, encode("events", 1, n, cut[-1], part=(n, n))) == [snapshot]


def test_what_a_leader_did_not_end_is_dropped() -> None:
    track = begun()
    track.take(2, encode("events", 1, 1, b"[[", part=(1, 2)))
    track.take(3, claim("m"))
    assert track.take(4, changes(3, 1)) == [Changes([("update", RUN)], 5, 3)]


def test_a_resignation_counts_until_the_next_claim() -> None:
    track = begun()
    track.take(2, encode("resign", 1, 1))
    assert track.resigned
    track.take(3, claim("m"))
    assert not track.resigned


def test_transactions_are_unseen_until_a_checkpoint_sees_them() -> None:
    track = begun()
    track.take(2, changes(1, 1, xid=5))
    track.take(3, changes(1, 2, xid=8))
    assert track.unseen == {5, 8}
    seen = Checkpoint(("a",), PgSnapshot(7, 9, frozenset({8})))
    track.take(4, encode("events", 1, 3, checkpoint=encode_checkpoint(seen)))
    assert track.unseen == {8}
    assert track.checkpoint == seen


def test_the_look_is_that_of_the_present_leader() -> None:
    track = begun()
    track.take(2, encode("events", 1, 1, looked=True))
    assert track.looked
    track.take(3, claim("m"))
    assert not track.looked


def test_what_a_later_version_writes_is_skipped_until_it_can_be_read_again() -> None:
    track = begun()
    later = encode("claim", 0, 0, id="l", name="l", base="log")
    later = later.replace(b'"r":1', b'"r":%d' % (VERSION + 1))
    track.take(2, later)
    assert track.claim is not None
    assert not track.claim.is_readable
    assert track.take(3, encode("events", 2, 1, b"?")) == []
    with pytest.raises(LoadAgain):
        track.take(4, claim("m"))
    assert track.epoch == 4


@pytest.mark.parametrize(
    "message",
    [
        encode("ckpt", 1, 1),
        encode("claim", 0, 0, id="n"),
        encode("events", 1, 1, b"{"),
        encode("events", 1, 1, b'[["c"]]'),
        encode("events", 1, 1, columns=7),
        encode("events", 1, 1, checkpoint={"identity": 1}),
    ],
)
def test_what_does_not_belong_into_the_log_loads_again(message: bytes) -> None:
    with pytest.raises(LoadAgain, match="message 2"):
        begun().take(2, message)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"hello", b"[1]", encode("events", 1, 1, part=7), b"[" * 100_000]
)
def test_what_somebody_else_has_written_is_skipped(data: bytes) -> None:
    track = begun()
    assert track.take(2, data) == []
    assert (track.position, track.n, track.foreign) == (2, 0, 1)
    assert track.take(3, changes(1, 1)) == [Changes([("update", RUN)], 5, 3)]
