"""A table whose columns, and which itself, have other names than the contract's."""

from dataclasses import replace

import psycopg
import pytest

from brain.contract.messages import ID, STATUS
from brain.doctor import checks as doctor
from brain.postgres.column_map import ColumnMap
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.inspection import inspect
from brain.postgres.polling import Mode
from brain.postgres.table import Table, TableError, describe, init_sql
from tests.support import postgres
from tests.support.following import RUNS, Following

MAP = (
    'id="runId",status=State,progress="100 %s {0}",agent="who, ""exactly"" so",'
    "started_at=startedAt,completed_at=Ended_At,error=Error_Message"
)
TABLE = replace(Table.parse('"My App"."The ""Runs"" {} %s"'), columns=ColumnMap.parse(MAP))
"""Columns in camel case, quoted, with what psycopg and str.format() take for placeholders, and
folded. `id` and `error` are columns of the table that the contract does not have."""

CREATE = """
CREATE SCHEMA "My App";
CREATE TABLE "My App"."The ""Runs"" {} %s" (
    id serial, error int DEFAULT 1,
    "runId" text PRIMARY KEY, "State" text NOT NULL DEFAULT 'queued', "100 %s {0}" float8,
    task_id text, "who, ""exactly"" so" text, "startedAt" timestamptz, ended_at timestamptz,
    error_message text)
"""
NAME = TABLE.sql.as_string()


def execute(url: str, *statements: str) -> None:
    for statement in statements:
        postgres.execute(url, statement)


@pytest.mark.parametrize("mode", ["replication", "poll"])
async def test_mapped_columns_are_followed(any_database: str, mode: Mode) -> None:
    execute(
        any_database,
        CREATE,
        f"""INSERT INTO {NAME} ("runId", "State", "who, ""exactly"" so") VALUES"""
        " ('a', 'running', 'x'), ('b', 'completed', 'y')",
    )
    async with Following(any_database, mode, table=TABLE) as f:
        await f.source()
        assert f.view() == {"a": ("a", "running", None, None, "x", None, None, None)}
        await f.sql(
            f"""UPDATE {NAME} SET "100 %s {{0}}" = 50, task_id = 't', "startedAt" = now(),"""
            " ended_at = now(), error_message = repeat('x', 9000) WHERE \"runId\" = 'a'",
            f"""INSERT INTO {NAME} ("runId") VALUES ('c'), ('d')""",
        )
        await f.pushed("c", "queued")
        await f.until(lambda: f.run("a")[2] == 50)
        # The error, which is stored out of line, is not sent again.
        await f.sql(f"""UPDATE {NAME} SET "State" = 'completed' WHERE "runId" = 'a'""")
        await f.pushed("a", "completed")
        await f.sql(
            f"""UPDATE {NAME} SET "runId" = 'e' WHERE "runId" = 'c'""",
            f"""UPDATE {NAME} SET "State" = 'odd' WHERE "runId" = 'd'""",
        )
        await f.pushed("e", "queued")
        await f.until(lambda: "d" not in f.view() and "c" not in f.view())
        await f.sql(f"""DELETE FROM {NAME} WHERE "runId" IN ('d', 'e')""")
        await f.until(lambda: "e" not in f.view())
        assert f.run("a")[7] == "x" * 9000
        assert f.view()["a"] == (await f.select())["a"]


async def test_the_publication_may_list_the_mapped_columns_alone(any_database: str) -> None:
    execute(
        any_database,
        "CREATE TABLE jobs (run_id int PRIMARY KEY, state text, other text)",
        "CREATE PUBLICATION brain_public_jobs FOR TABLE jobs (run_id, state)"
        " WITH (publish_via_partition_root = true)",
    )
    table = Table("public", "jobs", ColumnMap.parse("id=run_id,status=state"))
    async with Following(any_database, table=table) as f:
        await f.source()
        await f.sql("INSERT INTO jobs VALUES (1, 'queued')")
        await f.pushed("1", "queued")


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ('"runId" text, status text', 'ADD PRIMARY KEY ("runId");'),
        ('"runId" text PRIMARY KEY, status text', "REPLICA IDENTITY DEFAULT;"),
    ],
)
async def test_the_hint_for_a_replica_identity_works(
    any_database: str, columns: str, hint: str
) -> None:
    execute(any_database, f'CREATE TABLE "Jobs" ({columns}); INSERT INTO "Jobs" VALUES (1)')
    if "PRIMARY" in columns:
        execute(any_database, 'ALTER TABLE "Jobs" REPLICA IDENTITY NOTHING')
    table = Table("public", "Jobs", ColumnMap.parse("id=runId"))
    async with Following(any_database, "auto", table=table) as f:
        await f.until(lambda: f.follow.state.code == "replica_identity")
        assert 'contains "runId"' in f.follow.state.detail
        assert f.follow.state.hint.endswith(hint)
        await f.sql(f.follow.state.hint)
        await f.source("replication")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("completed_at=endedAt", 'has no column "endedAt", which BRAIN_COLUMN_MAP gives to comple'),
        ("completed_at=endedAt", ": its nearest columns are ended_at"),
        ("agent=Who,task_id=WHO", "gives the column who of public.jobs to agent and to task_id: "),
        ("id=run", "has no column run, which BRAIN_COLUMN_MAP gives to id: its nearest columns"),
    ],
)
async def test_a_map_that_does_not_fit_the_table_is_an_error(
    database: str, columns: str, says: str
) -> None:
    execute(
        database, "CREATE TABLE jobs (id text PRIMARY KEY, status text, ended_at text, who text)"
    )
    table = Table("public", "jobs", ColumnMap.parse(columns))
    async with await connect(database, "test") as conn:
        with pytest.raises(TableError) as caught:
            await describe(conn, table)
    assert says in str(caught.value)
    report = await doctor.examine(database, table, Decoder({}, 100))
    assert [finding.what for finding in report.findings] == [str(caught.value)]


async def test_a_table_without_id_or_status_is_told_its_map(database: str) -> None:
    execute(database, 'CREATE TABLE jobs ("jobKey" int PRIMARY KEY, "State" text, "endedAt" text)')
    table = Table("public", "jobs")
    report = await doctor.examine(database, table, Decoder({}, 100))
    assert report.findings[0].hint == ("""BRAIN_COLUMN_MAP='status="State",id="jobKey"'""")
    async with Following(database, table=table) as f:
        await f.until(lambda: f.follow.state.code == "table")
        assert f.follow.state.hint == report.findings[0].hint
    mapped = replace(table, columns=ColumnMap.parse('status="State",id="jobKey"'))
    report = await doctor.examine(database, mapped, Decoder({}, 100))
    (note,) = report.findings
    assert note.hint.startswith(
        """BRAIN_COLUMN_MAP='status="State",id="jobKey",completed_at="endedAt"' # """
    )


async def test_a_missing_table_is_told_similar_ones(database: str) -> None:
    execute(database, 'CREATE SCHEMA "App"; CREATE TABLE "App"."Runs" (id int)')
    async with await connect(database, "test") as conn:
        with pytest.raises(TableError, match=r'such as "App"\."Runs"'):
            await describe(conn, Table("app", "runs"))
        with pytest.raises(TableError, match=r"such as public\.runs"):
            await describe(conn, Table("public", "Runs"))


@pytest.mark.parametrize(
    "columns",
    [MAP, "id=run_id,completed_at=end", "agent=task_id", "error=agent,agent=error", "agent=error"],
)
async def test_init_db_creates_the_names_of_the_map(any_database: str, columns: str) -> None:
    table = replace(RUNS, name="Jobs $brain$", columns=ColumnMap.parse(columns))
    for _ in range(2):
        execute(any_database, init_sql(table))
    async with await connect(any_database, "test") as conn:
        found = await inspect(conn, table)
    names = {field: column.name for field, column in found.description.columns.items()}
    assert names == table.columns.created()
    assert not found.description.others
    assert found.description.id_is_key
    assert found.description.statuses.allowed == ("queued", "running", "completed", "failed")
    assert found.member is not None
    execute(any_database, f"INSERT INTO {table.sql.as_string()} DEFAULT VALUES")
    name = found.description.in_sql("status")
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(any_database, f"UPDATE {table.sql.as_string()} SET {name} = 'odd'")


@pytest.mark.parametrize("rows", [0, 20_000])
async def test_every_hint_of_the_doctor_names_the_mapped_columns(
    any_database: str, rows: int
) -> None:
    """Each is pasted, and none is needed again."""
    execute(
        any_database,
        CREATE,
        f"ALTER TABLE {NAME} DROP CONSTRAINT " + '"The ""Runs"" {} %s_pkey"',
        f"""INSERT INTO {NAME} ("runId", "State", "100 %s {{0}}") VALUES"""
        " ('a', NULLIF('odd', 'x'), 7), ('b', 'queued', 'NaN'), ('c', 'queued', 3)",
        f"""INSERT INTO {NAME} ("runId", "State") SELECT i, 'completed'"""
        f" FROM generate_series(1, {rows}) i",
        f"ANALYZE {NAME}",
    )
    for _ in range(6):
        report = await doctor.examine(any_database, TABLE, Decoder({}, 100))
        assert report.status < 2
        hints = [f.hint for f in report.findings if f.hint and "BRAIN_" not in f.hint]
        if not [hint for hint in hints if not hint.startswith("SELECT")]:
            break
        for hint in hints:
            execute(any_database, hint)
    assert {finding.check for finding in report.findings} == {"status", "values"}
    assert report.source == "replication"
    execute(any_database, f"""UPDATE {NAME} SET "State" = 'queued', "100 %s {{0}}" = 1""")
    assert not (await doctor.examine(any_database, TABLE, Decoder({}, 100))).findings


async def test_a_run_that_is_unfinished_is_looked_up_by_its_mapped_id(any_database: str) -> None:
    """Of a view, whose rows have no xmin, only the ids of the board are read."""
    execute(any_database, CREATE, f"CREATE VIEW seen AS SELECT * FROM {NAME}")
    execute(any_database, f"""INSERT INTO {NAME} ("runId", "State") VALUES ('a', 'running')""")
    table = Table("public", "seen", TABLE.columns)
    async with Following(any_database, "auto", table=table) as f:
        await f.source("poll")
        await f.sql(f"""UPDATE {NAME} SET "State" = 'completed' WHERE "runId" = 'a'""")
        await f.pushed("a", "completed")
        assert [(run[ID], run[STATUS]) for run in f.pushes] == [("a", "completed")]
