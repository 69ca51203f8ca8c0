"""The format of the log, as nodes of other versions read it.

If a test here fails, a node beside this one may misunderstand what it writes: raise VERSION in
nodes/messages.py, and READABLE_FROM if readers of the version before do, and add the new bytes.
"""

from brain.contract.events import Changes, Held, Image, Snapshot
from brain.contract.messages import Run
from brain.nodes.messages import (
    READABLE_FROM,
    VERSION,
    decode,
    decode_checkpoint,
    decode_event,
    decode_held,
    decode_image,
    encode,
    encode_checkpoint,
    encode_event,
    encode_held,
    encode_image,
    items,
    joined,
)
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot

RUN: Run = ("é", "running", 12.5, None, "a", "2026-11-21T09:30:00.000000Z", None, 'no "x"')
GONE: Run = ("b", *[None] * 7)  # type: ignore[assignment]
CHANGES = Changes([("insert", RUN), ("delete", GONE)], 5, 77, incomplete=True)
SNAPSHOT = Snapshot([RUN], 6, ["c"], new=True, unless_after=4, refused=((1, 2),))
CHECKPOINT = Checkpoint(
    ("7", None),
    PgSnapshot(3, 9, frozenset((4, 6))),
    flushed=LSN(99),
    tree=frozenset((2, 1)),
    epoch="e",
)
HELD: list[Held] = [(8, RUN, (("running", None, "a"),), 77)]
IMAGE = Image(HELD, 8, 7, 6, 5, ended_early=True, refused=((1, 2),))

EVENTS = (
    '{"v":1,"r":1,"k":"events","e":3,"n":2,"checkpoint":{"identity":["7",null],"visible":"3:9:4,6",'
    '"flushed":99,"tree":[1,2],"epoch":"e"},"part":[1,1]}\n'
    '[["c",5,77,1,[["i","é","running",12.5,null,"a","2026-11-21T09:30:00.000000Z",null,'
    '"no \\"x\\""],["d","b",null,null,null,null,null,null,null]]],["s",6,3,4,["c"],[["é","running",'
    '12.5,null,"a","2026-11-21T09:30:00.000000Z",null,"no \\"x\\""]],[[1,2]]]]'
).encode()
BOARD = (
    '{"v":1,"r":1,"k":"end","e":3,"n":2,"image":{"time":8,"last_time":7,"floor_time":6,'
    '"dead_floor_time":5,"ended_early":true,"refused":[[1,2]]}}\n'
    '[[8,["é","running",12.5,null,"a","2026-11-21T09:30:00.000000Z",null,"no \\"x\\""],'
    '[["running",null,"a"]],77]]'
).encode()


def test_events_are_written_as_version_1_does() -> None:
    (body,) = joined((encode_event(CHANGES, 5), encode_event(SNAPSHOT, 6)), 1 << 20)
    head = {"checkpoint": encode_checkpoint(CHECKPOINT), "part": (1, 1)}
    assert encode("events", 3, 2, body, **head) == EVENTS


def test_a_board_is_written_as_version_1_does() -> None:
    (body,) = joined(encode_held(HELD), 1 << 20)
    assert encode("end", 3, 2, body, image=encode_image(IMAGE)) == BOARD


def test_what_version_1_has_written_is_read() -> None:
    message = decode(EVENTS)
    assert [decode_event(each) for each in items(message.body)] == [CHANGES, SNAPSHOT]
    assert decode_checkpoint(message.head["checkpoint"]) == CHECKPOINT
    message = decode(BOARD)
    entries = decode_held(message.body)
    assert entries == HELD
    assert decode_image(message.head["image"], entries) == IMAGE


def test_the_version_is_the_one_of_these_bytes() -> None:
    assert (VERSION, READABLE_FROM) == (1, 1)
