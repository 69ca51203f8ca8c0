"""A row that the contract cannot express leaves the board, and comes back with a change."""

import pytest
from structlog.testing import capture_logs

from brain.contract.messages import STATUS
from brain.postgres.polling import Mode
from tests.support.following import Following

LOOSE = (
    "ALTER TABLE runs DROP CONSTRAINT runs_status_check",
    "ALTER TABLE runs ALTER status DROP NOT NULL",
    "ALTER TABLE runs DROP CONSTRAINT runs_id_check",
)


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [
        ("UPDATE runs SET status = 'paused'", "UPDATE runs SET status = 'running'"),
        ("UPDATE runs SET status = NULL", "UPDATE runs SET status = 'running'"),
        (
            "UPDATE runs SET status = repeat(md5('x'), 4000)",
            "UPDATE runs SET status = 'running'",
        ),
        (
            "UPDATE runs SET id = repeat('x', 1025) WHERE id = 'a'",
            "UPDATE runs SET id = 'a' WHERE id LIKE 'xx%'",
        ),
        ("UPDATE runs SET id = '' WHERE id = 'a'", "UPDATE runs SET id = 'a' WHERE id = ''"),
    ],
    ids=["unknown word", "NULL", "long word", "long id", "empty id"],
)
async def test_a_row_that_leaves_the_contract_leaves_the_board(
    any_database: str, mode: Mode, leave: str, come_back: str
) -> None:
    async with Following(any_database, mode) as f:
        await f.sql(*LOOSE, "INSERT INTO runs (id, status) VALUES ('a', 'running')")
        await f.source()
        await f.until(lambda: "a" in f.board)
        await f.sql(leave)
        await f.until(lambda: "a" not in f.board)
        assert "a" not in f.board.unfinished()
        # What concerns the row no more does not bring it back.
        await f.sql("UPDATE runs SET progress = 1", "INSERT INTO runs (id) VALUES ('z')")
        await f.pushed("z", "queued")
        assert list(f.view()) == ["z"]
        assert f.decoder.rejected >= 1
        f.pushes.clear()
        await f.sql(come_back)
        await f.pushed("a", "running")


async def test_a_finished_run_leaves_the_board_too(any_database: str, mode: Mode) -> None:
    async with Following(any_database, mode) as f:
        await f.sql(*LOOSE)
        await f.source()
        await f.sql("INSERT INTO runs (id, status) VALUES ('a', 'completed')")
        await f.pushed("a", "completed")
        await f.sql("UPDATE runs SET status = 'archived'")
        await f.until(lambda: "a" not in f.board)


async def test_a_row_that_left_while_brain_was_away_is_gone_afterwards(
    any_database: str, mode: Mode
) -> None:
    async with Following(any_database, mode) as f:
        await f.sql(*LOOSE)
        await f.source()
        await f.sql("INSERT INTO runs (id, status) VALUES ('a', 'running'), ('b', 'queued')")
        await f.pushed("b", "queued")
        # One message to the server: Brain is cut off before it is told.
        await f.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid();"
            " UPDATE runs SET status = 'paused' WHERE id = 'a'"
        )
        await f.until(lambda: list(f.view()) == ["b"])


async def test_an_inserted_row_outside_of_the_contract_does_not_disturb(
    any_database: str, mode: Mode
) -> None:
    async with Following(any_database, mode) as f:
        await f.sql(*LOOSE)
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, status) VALUES ('a', 'paused')",
            "INSERT INTO runs (id) VALUES ('z')",
        )
        await f.pushed("z", "queued")
        assert ("delete", "a") not in f.changes()


async def test_reasons_are_bounded_and_each_is_logged_once_with_the_setting_that_maps_it(
    database: str,
) -> None:
    with capture_logs() as logs:
        async with Following(database, "poll", statuses={"ok": "completed"}) as f:
            await f.sql(*LOOSE)
            await f.source()
            await f.sql(
                "INSERT INTO runs (id, status) SELECT i, 'word' || i % 50"
                " FROM generate_series(1, 100) i",
                "INSERT INTO runs (id, status) VALUES ('z', 'OK')",
            )
            await f.pushed("z", "completed")
            assert f.run("z")[STATUS] == "completed"
            assert sum(reason.rows for reason in f.decoder.reasons) == f.decoder.rejected == 100
    lines = [log for log in logs if log["event"] == "row rejected"]
    assert len(lines) == len(f.decoder.reasons) == 21
    assert lines[0]["hint"] == (
        "BRAIN_STATUS_MAP=ok=completed,word1=failed  # or =queued, =running, =completed"
    )
