"""When a checkpoint no longer holds, and when nothing has happened since."""

from dataclasses import replace

import pytest

from brain.postgres.checkpoints import Checkpoint
from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot

HERE = ("system", "timeline", "database", "table")
CHECKPOINT = Checkpoint(HERE, PgSnapshot(1000, 1005, frozenset({1000, 1002})), flushed=LSN(500))


@pytest.mark.parametrize(
    ("identity", "xmax", "flushed", "void"),
    [
        (HERE, 1005, 500, False),
        (HERE, 2000, 900, False),
        (("another", *HERE[1:]), 1005, 500, True),
        (HERE, 1004, 900, True),
        (HERE, 2000, 499, True),
        (HERE, 2000, 0, False),
        (HERE, 1000 + 2**31 - 1, 900, False),
        (HERE, 1000 + 2**31, 900, True),
    ],
    ids=[
        "the same",
        "later",
        "another system",
        "fewer transactions",
        "less log",
        "a read replica, which flushes none",
        "as far as 32 bits tell",
        "further",
    ],
)
def test_another_history_voids_a_checkpoint(
    identity: tuple[str, ...], xmax: int, flushed: int, void: bool
) -> None:
    visible = PgSnapshot(xmax, xmax, frozenset())
    assert CHECKPOINT.voided_by(identity, visible, LSN(flushed)) == void


def test_an_equal_snapshot_proves_that_nothing_was_committed() -> None:
    assert CHECKPOINT.is_current(CHECKPOINT.visible, LSN(500))
    assert CHECKPOINT.is_current(CHECKPOINT.visible, LSN(900))
    assert not CHECKPOINT.is_current(PgSnapshot(1005, 1005, frozenset()), LSN(900))


def test_an_equal_snapshot_proves_nothing_on_a_replica_or_with_less_log() -> None:
    assert not CHECKPOINT.is_current(CHECKPOINT.visible, LSN(499))
    replica = replace(CHECKPOINT, visible=PgSnapshot(1000, 1005, frozenset()))
    assert not replica.is_current(replica.visible, LSN(0))
