"""Transaction ids, and what a snapshot sees of them."""

from hypothesis import given
from hypothesis import strategies as st

from brain.postgres.snapshots import PgSnapshot, Xid, widen


@given(near=st.integers(2**31, 2**63), offset=st.integers(-(2**31), 2**31 - 1))
def test_an_id_is_widened_to_the_nearest(near: int, offset: int) -> None:
    assert widen((near + offset) % 2**32, near) == near + offset


def test_an_id_is_widened_across_a_wraparound() -> None:
    assert widen(3, 2**32 - 2) == 2**32 + 3
    assert widen(2**32 - 2, 2**32 + 3) == 2**32 - 2
    assert widen(700, 750) == 700


@given(
    xmin=st.integers(3, 2**64),
    running=st.sets(st.integers(0, 50), max_size=5),
    more=st.integers(0, 10),
    xid=st.integers(-5, 70),
)
def test_a_snapshot_sees_what_was_committed_before_it(
    xmin: int, running: set[int], more: int, xid: int
) -> None:
    xids = sorted(xmin + offset for offset in running | ({0} if running else set()))
    xmax = (xids[-1] + 1 if xids else xmin) + more
    visible = PgSnapshot.parse(f"{xmin}:{xmax}:{','.join(map(str, xids))}")
    assert visible == PgSnapshot(xmin, xmax, frozenset(xids))
    seen = xmin + xid < xmax and xmin + xid not in xids
    assert visible.sees(Xid(xmin + xid)) == seen
    assert visible.unseen([xmin + xid]) == (set() if seen else {xmin + xid})


def test_a_replicas_snapshot_is_not_whole() -> None:
    assert PgSnapshot.parse("750:750:").whole
    assert PgSnapshot.parse("748:760:748,752").whole
    assert not PgSnapshot.parse("748:760:").whole
