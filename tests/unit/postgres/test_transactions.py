"""Messages of a stream, and the Changes that they become."""

import pytest

from brain.contract.messages import CUT, FIELDS, UNCHANGED
from brain.postgres.column_map import SAME_NAMES
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import LSN, PgoutputError
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.transactions import LONGEST, SLICE, Transactions

OID = b"\0\0\0\7"
RELATION = (
    b"R"
    + OID
    + b"public\0runs\0d"
    + len(FIELDS).to_bytes(2, "big")
    + b"".join(b"\0" + field.encode() + b"\0" + bytes(8) for field in FIELDS)
)


def begin(xid: int = 700, lsn: int = 10, time: int = 0) -> bytes:
    return b"B" + lsn.to_bytes(8, "big") + time.to_bytes(8, "big") + xid.to_bytes(4, "big")


def commit(end: int = 11) -> bytes:
    return b"C\0" + bytes(8) + end.to_bytes(8, "big") + bytes(8)


def row(*values: str | None) -> bytes:
    columns = (*values, *(None,) * (len(FIELDS) - len(values)))
    texts = (
        b"n"
        if text is None
        else b"u"
        if text == UNCHANGED
        else b"t" + len(text.encode()).to_bytes(4, "big") + text.encode()
        for text in columns
    )
    return len(columns).to_bytes(2, "big") + b"".join(texts)


def insert(*values: str | None) -> bytes:
    return b"I" + OID + b"N" + row(*values)


def update(*values: str | None) -> bytes:
    return b"U" + OID + b"N" + row(*values)


def transactions(max_text: int = 64) -> Transactions:
    return Transactions(7, SAME_NAMES, (), Decoder({}, max_text), "utf-8")


def feed(to: Transactions, *messages: bytes) -> list[bool]:
    return [to.feed(message, 0) for message in messages]


def test_one_read_has_a_slice_of_each_transaction() -> None:
    t = transactions()
    assert feed(t, RELATION) == [True]
    assert t.described
    feed(t, begin(1), insert("a", "queued"), update("a", "running"), commit(20))
    feed(t, begin(2), commit(30))
    feed(t, begin(3), update("b", "failed"))
    taken = t.take()
    assert [(c.xid, [(op, run[:2]) for op, run in c.rows]) for c in taken] == [
        (1, [("insert", ("a", "queued")), ("update", ("a", "running"))]),
        (3, [("update", ("b", "failed"))]),
    ]
    assert t.position == 30
    feed(t, update("c", "failed"), commit(40))
    assert [(c.xid, len(c.rows)) for c in t.take()] == [(3, 1)]  # the same transaction goes on
    assert t.take() == []


def test_the_position_is_the_furthest_of_commits_and_of_what_is_passed_by() -> None:
    t = transactions()
    feed(t, RELATION, begin(), insert("a", "queued"), commit(20))
    t.pass_by(LSN(15))
    assert t.position == 20
    t.pass_by(LSN(40))
    feed(t, begin(), insert("b", "queued"), commit(30))
    assert t.position == 40
    feed(t, begin(), insert("c", "queued"), commit(50), begin(), insert("d", "queued"), commit(60))
    assert t.position == 60


def test_a_slice_ends_at_its_bound() -> None:
    t = transactions()
    feed(t, RELATION, begin())
    full = feed(t, *(insert(str(i), "queued") for i in range(SLICE)))
    assert full == [False] * (SLICE - 1) + [True]
    assert len(t.take()[0].rows) == SLICE
    assert feed(t, insert("more", "queued")) == [False]


def test_a_row_outside_of_a_transaction_is_refused() -> None:
    t = transactions()
    feed(t, RELATION)
    with pytest.raises(PgoutputError, match="a row outside of a transaction"):
        feed(t, insert("a", "queued"))
    feed(t, begin(), commit())
    with pytest.raises(PgoutputError, match="a row outside of a transaction"):
        feed(t, insert("a", "queued"))


def test_a_row_before_its_relation_is_refused_and_one_of_another_table_is_not_read() -> None:
    t = transactions()
    feed(t, begin())
    assert feed(t, insert("a", "queued").replace(OID, b"\0\0\0\5")) == [False]
    assert t.take() == []
    for message in (insert("a", "queued"), update("a", "queued"), b"D" + OID + b"K" + row("a")):
        with pytest.raises(PgoutputError, match="a row before its relation"):
            feed(t, message)


@pytest.mark.parametrize("data", [b"", b"S\0\0\0\1\1", commit()[:-1], commit() + b"\0"])
def test_refuses_what_is_no_message(data: bytes) -> None:
    with pytest.raises(PgoutputError, match="not a pgoutput message"):
        feed(transactions(), data)


def test_leaves_out_what_the_poll_has_seen_and_was_committed_before_its_position() -> None:
    t = transactions()
    t.join(PgSnapshot(5, 8, frozenset({6})), LSN(100))
    feed(t, RELATION)
    for xid, lsn in ((4, 50), (6, 60), (7, 70), (9, 80), (4, 101), (5, 90)):
        feed(t, begin(xid, lsn), insert(f"{xid}@{lsn}", "queued"), commit(lsn + 1))
    assert [run[0] for c in t.take() for _, run in c.rows] == ["6@60", "9@80", "4@101", "5@90"]


@pytest.mark.parametrize("values", [("a", "running", None, UNCHANGED), (UNCHANGED, "running")])
def test_a_value_that_was_not_sent_makes_its_slice_incomplete(values: tuple[str | None]) -> None:
    t = transactions()
    feed(t, RELATION, begin(1), update("a", "running"), commit())
    feed(t, begin(2), update(*values), commit())
    assert [(c.incomplete, len(c.rows)) for c in t.take()] == [
        (False, 1),
        # The row of an id that was not sent is found by a comparison.
        (True, 1) if values[0] == "a" else (False, 0),
    ]


@pytest.mark.parametrize("bound", [64, 100_000])
@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_a_huge_text_becomes_what_it_would_have_become_whole(bound: int, character: str) -> None:
    t = transactions(bound)
    feed(t, RELATION, begin())
    error = "." + 500_000 * character
    data = b"w" + bytes(24) + insert("a", "failed", *(None,) * 5, error)
    short = t.shortened(memoryview(data), 25)
    assert len(short) < 25 + 200 + max(LONGEST, 4 * (bound + 2)) < len(data)
    t.feed(short, 25)
    ((_, run),) = t.take()[0].rows
    assert run[7] == error[:bound] + CUT
