"""A database that a test has used is like a new one for the next, or there is no next."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.support import postgres
from tests.support.databases import Databases
from tests.support.patience import wait_until
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

pytestmark = pytest.mark.each_version


@pytest.fixture(scope="module")
def databases(any_postgres: Postgres) -> Iterator[Databases]:
    found = Databases(any_postgres)
    yield found
    while found._free:
        any_postgres.drop_database(found._free.pop())


def test_a_database_with_changed_rows_is_used_again_without_them(databases: Databases) -> None:
    name = databases.take()
    url = databases.server.url(name, ROLE)
    execute(url, "INSERT INTO runs (id) VALUES ('a'), ('b'); DELETE FROM runs WHERE id = 'b'")
    assert databases.give_back(name)
    assert databases.take() == name
    assert execute(url, "SELECT * FROM runs") == []
    assert databases.give_back(name)


def test_its_sessions_are_ended(databases: Databases) -> None:
    name = databases.take()
    with psycopg.connect(databases.server.url(name, ROLE)) as connection:
        connection.execute("LOCK runs")
        assert databases.give_back(name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE other (id int)",
        "CREATE TABLE other (id int); DROP TABLE other",
        "ALTER TABLE runs REPLICA IDENTITY FULL",
        "ALTER TABLE runs ADD extra int; ALTER TABLE runs DROP extra",
        "DROP TABLE runs",
        "TRUNCATE runs",
        "DROP PUBLICATION brain_public_runs",
        "DROP INDEX runs_id_idx",
        "CREATE TYPE word AS ENUM ('a')",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE RULE nothing AS ON DELETE TO runs DO INSTEAD NOTHING",
        "GRANT SELECT ON runs TO PUBLIC",
        "ANALYZE runs",
        "COMMENT ON TABLE runs IS 'x'",
        "ALTER DATABASE {} SET work_mem = 64",
        "ALTER DATABASE {} CONNECTION LIMIT 5",
        "INSERT INTO runs (id, error) SELECT n, repeat('x', 1000) FROM generate_series(1, 200) n",
        "SELECT lo_create(0)",
    ],
)
def test_a_database_that_differs_in_more_than_rows_is_dropped(
    databases: Databases, change: str
) -> None:
    name = databases.take()
    execute(databases.server.url(name), change.format(name))
    assert not databases.give_back(name)
    rest = "SELECT FROM pg_database WHERE datname = %s"
    assert execute(databases.server.url(), rest, name) == []


def of_rows(url: str) -> int:
    """The backend of the connection that statements of rows have there."""
    found = execute(url, "INSERT INTO runs (id) SELECT md5(random()::text) RETURNING xmin")
    assert found
    ((_, connection),) = [each for each in postgres._open if each[0] == url]
    return connection.info.backend_pid


def test_statements_of_rows_share_a_connection_and_others_see_none(databases: Databases) -> None:
    with databases.one() as name:
        url = databases.server.url(name, ROLE)
        first = of_rows(url)
        assert of_rows(url) == first
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        wait_until(lambda: execute(url, others) == [(1,)])
        assert of_rows(url) != first


def test_a_connection_that_the_server_has_ended_is_replaced(databases: Databases) -> None:
    with databases.one() as name:
        url = databases.server.url(name, ROLE)
        first = of_rows(url)
        with psycopg.connect(databases.server.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [first])
        assert of_rows(url) != first
