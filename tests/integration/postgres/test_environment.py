"""No environment variable of libpq changes Brain's sessions."""

import os

import psycopg
import pytest

from brain.postgres.connection import connect
from tests.support.postgres import execute
from tests.support.served import message, served

HOSTILE = {
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kolkata",
    "PGGEQO": "off",
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c intervalstyle=iso_8601 -c statement_timeout=1 -c search_path=pg_catalog",
    "PGAPPNAME": "somebody",
    "PGCONNECT_TIMEOUT": "86400",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "nonsense",
    "PGSERVICE": "nowhere",
    "PGHOSTADDR": "192.0.2.1",
    "PGHOST": "nowhere.invalid",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGDATABASE": "nothing",
}


@pytest.mark.parametrize("source", ["replication", "poll"])
async def test_serves_the_same_messages_under_every_variable(
    any_database: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for variables in ({}, HOSTILE):
        execute(any_database, "TRUNCATE runs")
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with served(database_url=any_database, source=source, follows=source) as brain:
                for name in variables:
                    patch.delenv(name)
                async with brain.connect() as client:
                    execute(
                        any_database,
                        "INSERT INTO runs (id, status, agent, started_at, progress)"
                        " VALUES ('a', 'running', 'é€', '2026-11-21 09:30:00.5+00', 33.25)",
                    )
                    pushed = (await message(client))["data"]
                seen.append((pushed, brain.get("/api/runs/a"), brain.get("/api/runs")[1]["runs"]))
                assert ("variables ignored" in brain.log()) == bool(variables)
    assert seen[0] == seen[1]
    assert seen[0][0]["started_at"] == "2026-11-21T09:30:00.5Z"


async def test_sessions_have_brains_settings(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    async with await connect(database, "brain") as conn:
        cursor = await conn.execute(
            "SELECT current_setting('datestyle'), current_setting('timezone'),"
            " current_setting('geqo'), current_setting('client_encoding'),"
            " current_setting('application_name'), current_setting('search_path')"
        )
        assert await cursor.fetchone() == (
            "ISO, MDY", "UTC", "on", "UTF8", "brain", '"$user", public'
        )  # fmt: skip


async def test_variables_that_say_how_to_reach_the_database_count(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        await connect(database, "brain")
    assert os.environ["PGSSLMODE"] == "require"
