"""brain init-db: create what Brain needs in the database, print it as SQL, or remove it."""

import sys

import psycopg
from psycopg import sql

from brain.cli import console
from brain.cli.doctor import examine
from brain.config import Settings
from brain.postgres.connection import APPLICATION, Conn, connect, error_line, redact
from brain.postgres.publication import initialize, polled, publication_sql, removal
from brain.postgres.table import Table, TableError, init_sql


async def remove(settings: Settings, *, drop_table: bool, only_print: bool) -> None:
    url, table = console.database_url(settings), settings.table
    async with await connect(url, APPLICATION, lock_timeout="10s") as conn:
        statements = await removal(conn, table, drop_table=drop_table)
        texts = [statement.as_string(conn) for statement in statements]
        if only_print:
            print("".join(f"{text};\n" for text in texts), end="")
            return
        try:
            async with conn.transaction():
                for statement in statements:
                    await conn.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            console.fail(f"{error_line(error)}: name a role that owns it in --database-url")
        except psycopg.errors.DependentObjectsStillExist as error:
            console.fail(f"{error_line(error)}: {error.diag.message_detail}")
    for text in texts:
        print(f"done: {text}")
    if not any("PUBLICATION" in text for text in texts):
        print(f"{redact(url)} has no publication that Brain created for {table}")
    if drop_table and not any("IF EXISTS" in text for text in texts):
        print(f"{redact(url)} has no table {table}")
    print(
        "A running Brain creates its publication again: stop it first. "
        + ("" if drop_table else f"The table {table} stays. ")
        + f"Not touched: the role, its rights, and the folder {settings.data_dir}."
    )


async def print_sql(settings: Settings) -> None:
    """The SQL for a new table, then what the table as it is in BRAIN_DATABASE_URL still needs."""
    print(init_sql(settings.table))
    if settings.database_url is None:
        return
    url = console.database_url(settings)
    try:
        async with await connect(url, APPLICATION) as conn:
            if text := await publication_sql(conn, settings.table, APPLICATION):
                print(text)
    except psycopg.Error as error:
        print(f"-- {redact(url)} does not answer: {error_line(error)}")
        print(
            f"-- If the table exists there, run `{console.program()} init-db` for its publication."
        )


async def create(settings: Settings) -> None:
    url = console.database_url(settings)
    # The name that a stream has: synchronous_standby_names may contain it.
    async with await connect(url, APPLICATION) as conn:
        conn.add_notice_handler(
            lambda notice: print(f"{notice.severity}: {notice.message_primary}", file=sys.stderr)
        )
        unavailable = unfit = None
        try:
            unavailable = await initialize(conn, settings.table, APPLICATION)
        except TableError as error:
            unfit = error
        except psycopg.errors.InsufficientPrivilege as error:
            grant = await _grant_to_create(conn, settings.table)
            console.fail(
                f"{error_line(error)}: run {grant} as its owner, or name a role that may create"
                " the table in --database-url"
            )
    if unavailable is not None:
        print(f"NOTICE: {polled(settings.table, unavailable)}", file=sys.stderr)
    report = await examine(settings, console.serving_url(settings))
    print(report.text(console.program()))
    if report.status == 2:
        raise SystemExit(2)
    if unfit is not None:  # it has been changed since
        raise unfit
    print(f"{settings.table} of {redact(url)} is ready: {console.program()} serve")


async def _grant_to_create(conn: Conn, table: Table) -> str:
    """From PostgreSQL 15 on an ordinary role may not create a table in the schema public."""
    exists = "SELECT current_user, current_database(), to_regnamespace(%s) IS NOT NULL"
    schema = sql.Identifier(table.schema)
    row = await (await conn.execute(exists, (schema.as_string(),))).fetchone()
    assert row is not None
    role, database = (sql.Identifier(str(name)).as_string() for name in row[:2])
    if row[2] == "t":
        return f"GRANT CREATE ON SCHEMA {schema.as_string()} TO {role};"
    return f"GRANT CREATE ON DATABASE {database} TO {role};"
