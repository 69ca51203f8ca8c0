"""The blocks of operations.md for a role of its own, pasted as they stand, and its reach."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from brain.postgres.table import init_sql
from tests.support import ROOT
from tests.support.following import RUNS
from tests.support.postgres import Postgres, execute
from tests.support.served import served, until
from tests.support.template import ROLE, own

PAGE = (ROOT / "docs" / "how-to" / "operations.md").read_text()
SECTION = PAGE.partition("## A role of its own")[2].partition("\n## ")[0]
SECRET = "only-the-application-may-read-this"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", params=[18, 15])
def server(request: Any) -> Iterator[Postgres]:
    with own(request.param) as (server, _):
        yield server


@pytest.fixture(scope="module")
def url(server: Postgres) -> str:
    """An application's database with two tables, after the paste; as Brain's role."""
    name = server.create_database(owner=ROLE)
    as_root, as_owner = server.url(name), server.url(name, ROLE)
    execute(as_owner, init_sql(RUNS) + "; DROP PUBLICATION brain_public_runs")
    execute(as_owner, "CREATE TABLE secrets (id text PRIMARY KEY, value text)")
    grants, publication = blocks("sql")
    execute(as_root, grants.replace("DATABASE app", f"DATABASE {name}"))
    execute(as_owner, publication)
    (lines,) = blocks("pg_hba")
    ours = lines.replace("hostssl", "host").replace(" app ", f" {name} ")
    ours = ours.replace("10.0.0.5/32", "127.0.0.1/32")
    file = server.data / "pg_hba.conf"
    file.write_text(ours + file.read_text())
    execute(as_root, "SELECT pg_reload_conf()")
    found = re.search(r"PASSWORD '(.*)'", grants)
    assert found
    return as_root.replace("postgres@", f"brain:{found[1]}@", 1)


def refused(url: str, statement: str, **options: Any) -> str:
    with pytest.raises(psycopg.Error) as caught, psycopg.connect(url, **options) as connection:
        connection.execute(statement.encode())
    return str(caught.value)


async def test_brain_streams_and_writes_with_this_role_and_reads_no_other_table(
    server: Postgres, url: str
) -> None:
    with served(database_url=url, follows="replication") as brain:
        async with brain.connect() as client:
            assert brain.request("POST", "/api/runs", {"id": "least"})[0] == 201
            assert brain.request("PATCH", "/api/runs/least", {"status": "failed"})[0] == 200
            await until(client, "least", "failed")
    for statement in ("TABLE secrets", "DELETE FROM runs", "CREATE TABLE mine ()"):
        assert "permission denied" in refused(url, statement)
    assert "pg_hba.conf rejects" in refused(server.url().replace("postgres@", "brain@", 1), "")
    base = url.rpartition("/")[0]
    assert "pg_hba.conf" in refused(f"{base}/?replication=true", "IDENTIFY_SYSTEM")


def test_replication_reaches_the_changes_of_every_published_table(
    server: Postgres, url: str
) -> None:
    """As the page says. A slot of this kind needs no right on the table."""
    name = url.rpartition("/")[2]
    as_owner = server.url(name, ROLE)
    read = (
        "SELECT string_agg(encode(data, 'escape'), '') FROM pg_logical_slot_get_binary_changes("
        " 'reach', NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'brain_public_runs,theirs')"
    )
    execute(as_owner, "CREATE PUBLICATION theirs")
    execute(url, "SELECT pg_create_logical_replication_slot('reach', 'pgoutput')")
    try:
        execute(as_owner, f"INSERT INTO secrets VALUES ('1', '{SECRET}')")
        assert SECRET not in str(execute(url, read))
        execute(as_owner, "ALTER PUBLICATION theirs ADD TABLE secrets")
        execute(as_owner, f"INSERT INTO secrets VALUES ('2', '{SECRET}')")
        assert SECRET in str(execute(url, read))
    finally:
        execute(url, "SELECT pg_drop_replication_slot('reach')")


async def test_without_replication_the_role_polls(server: Postgres, url: str) -> None:
    name = url.rpartition("/")[2]
    execute(server.url(name), "ALTER ROLE brain NOREPLICATION")
    try:
        with served(database_url=url, source="poll", follows="poll") as brain:
            async with brain.connect() as client:
                execute(server.url(name, ROLE), "INSERT INTO runs (id) VALUES ('polled')")
                await until(client, "polled", "queued")
    finally:
        execute(server.url(name), "ALTER ROLE brain REPLICATION")
