"""A role, and a template database with an empty table `runs` that each test copies."""

from collections.abc import Iterator
from contextlib import contextmanager

from brain.postgres.table import Table, init_sql
from tests.support.postgres import Postgres, execute

TEMPLATE = "brain_template"

ROLE = "cecelia"
"""A role with REPLICATION that owns the database and its table. It is no superuser."""


def with_template(server: Postgres) -> Postgres:
    """Create the role, and the template that `create_database(TEMPLATE, ROLE)` copies."""
    execute(server.url(), f"CREATE ROLE {ROLE} LOGIN REPLICATION")
    execute(server.url(), f"CREATE DATABASE {TEMPLATE} OWNER {ROLE}")
    execute(server.url(TEMPLATE, ROLE), init_sql(Table("public", "runs")))
    return server


@contextmanager
def own(version: int = 18, **settings: str) -> Iterator[tuple[Postgres, str]]:
    """A server whose settings ALTER SYSTEM may change, and a database on it."""
    server = Postgres(version, **settings)
    for name in settings:
        server.settings.pop(name, None)
    try:
        server.init()
        with (server.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        server.start()
        with_template(server)
        yield server, server.url(server.create_database(TEMPLATE, ROLE), ROLE)
    finally:
        server.remove()
