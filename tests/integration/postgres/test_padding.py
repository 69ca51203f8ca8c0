"""Ids of char(n): followed and compared without the padding that PostgreSQL prints."""

from typing import Literal

import pytest

from tests.support.following import Following
from tests.support.postgres import execute


@pytest.mark.parametrize("mode", ["replication", "poll"])
async def test_a_run_of_char_n_is_followed_without_padding(
    any_database: str, mode: Literal["replication", "poll"]
) -> None:
    execute(
        any_database,
        "DROP TABLE runs; CREATE DOMAIN code AS char(8);"
        "CREATE TABLE runs (id char(8) PRIMARY KEY, status char(12), agent code, task_id text);"
        "INSERT INTO runs VALUES ('a', 'queued', 'x', 't ')",
    )
    async with Following(any_database, mode) as it:
        await it.until(lambda: it.follow.state.source == mode and "a" in it.board)
        await it.sql(
            "UPDATE runs SET status = 'running'", "INSERT INTO runs VALUES ('b', 'queued')"
        )
        await it.until(lambda: {run[0] for run in it.pushes} == {"a", "b"})
        assert it.pushes[0] == ("a", "running", None, "t ", "x", None, None, None)
        await it.sql("DELETE FROM runs WHERE id = 'b'")
        await it.until(lambda: "b" not in it.board)
        assert "a" in it.board, "a poll finds the unfinished run by its id"
