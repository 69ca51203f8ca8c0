"""Which rows of a scan are news."""

from collections.abc import Collection

from brain.contract.messages import ID, Run
from brain.postgres.decoder import Decoder
from brain.postgres.scanned_rows import Keep, Leave, ScannedRows
from brain.postgres.snapshots import PgSnapshot, Xid

VISIBLE = PgSnapshot(Xid(100), Xid(200), frozenset({Xid(100)}))


class Known:
    """A board that holds these unfinished runs."""

    seq = floor = time = last_time = floor_time = 0

    def __init__(self, *ids: str) -> None:
        self._ids = ids

    def unfinished(self) -> Collection[str]:
        return self._ids

    def differs(self, _: Run) -> bool:
        return True

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids


def scanned(
    *known: str,
    seen: Collection[tuple[str, str | None]] = (),
    keep: Keep | None = None,
    leave: Leave | None = None,
) -> ScannedRows:
    return ScannedRows(Decoder({}, 100), Known(*known), seen, keep, leave)


def row(run_id: str | None, xmin: str | None, status: str = "running") -> tuple[str | None, ...]:
    return ("100:200:100", "1", xmin, run_id, status, None, None, None, None, None, None)


def test_a_run_that_is_found_is_not_missing() -> None:
    rows = scanned("a", "b")
    rows.take(row("a", "50"), VISIBLE)
    assert rows.missing == {"b"}
    assert [run[ID] for run in rows.changed] == ["a"]


def test_a_version_of_the_checkpoint_is_no_news_but_stays_in_the_next_one() -> None:
    rows = scanned(seen={("a", "150")})
    rows.take(row("a", "150"), VISIBLE)
    rows.take(row("b", "150"), VISIBLE)
    rows.take(row("c", "50"), VISIBLE)
    assert [run[ID] for run in rows.changed] == ["b", "c"]
    assert rows.versions == {("a", "150"), ("b", "150")}, "what an open transaction holds back"


def test_a_run_of_the_board_that_the_contract_cannot_express_is_rejected() -> None:
    left: list[tuple[str, int]] = []
    rows = scanned("a", leave=lambda run_id, xid: left.append((run_id, xid)))
    rows.take(row("a", "150", "no status"), VISIBLE)
    rows.take(row("b", "150", "no status"), VISIBLE)
    assert (rows.rejected, rows.missing, rows.changed) == (["a"], set(), [])
    assert left == [("a", 150), ("b", 150)]


def test_the_row_of_nulls_is_no_run() -> None:
    rows = scanned("a")
    rows.take((*row(None, None)[:4], None, *[None] * 6), VISIBLE)
    assert (rows.changed, rows.missing) == ([], {"a"})


def test_what_is_kept_is_decided_by_the_row_and_its_transaction() -> None:
    asked: list[int] = []

    def keep(run: Run, xid: int) -> bool:
        asked.append(xid)
        return run[ID] == "a"

    rows = scanned(keep=keep)
    for run_id in ("a", "b"):
        rows.take(row(run_id, "50"), VISIBLE)
    assert [run[ID] for run in rows.take_changed()] == ["a"]
    assert rows.changed == []
    assert asked == [50, 50]
