"""`serve`, `init-db`, `init-db --sql` and `doctor` agree on whether a table may be published."""

import os
import shlex
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import conninfo

from brain.doctor.checks import examine
from brain.postgres.connection import Conn, connect
from brain.postgres.decoder import Decoder
from brain.postgres.publication import ensure_publication, initialize, publication_sql
from brain.postgres.table import Table
from brain.postgres.unavailable import StreamUnavailable, UnavailableCode
from tests.support.postgres import Postgres, execute
from tests.support.served import BRAIN
from tests.support.template import ROLE

TABLE = Table("odd", "jobs")

ABOUT_TABLES: set[UnavailableCode] = {
    "view",
    "row_security",
    "unlogged",
    "replica_identity",
    "inheritance",
    "virtual",
    "generated",
    "publication",
}


@dataclass(frozen=True)
class Case:
    create: str
    """By the table's owner, with the schema of the table in search_path."""
    code: UnavailableCode | None = None
    """Why it must not be streamed; None: it is published."""
    superuser: str = ""
    """What a superuser does after that."""
    before: dict[int, UnavailableCode] | None = None
    """By the first version with `code`: the code in older versions."""
    since: int = 0
    """The first version that has what the case needs."""
    harmed: bool = False
    """The publication makes the application's UPDATEs fail, and only its owner can change that."""


PARTITIONED = "CREATE TABLE jobs (id int{}, status text) PARTITION BY RANGE (id);"
PARTITION = "CREATE TABLE part PARTITION OF jobs DEFAULT;"
KEYED = "CREATE TABLE jobs (id int PRIMARY KEY, status text{});"
MINE = TABLE.publication

CASES: dict[str, Case] = {
    # Keys and replica identities.
    "primary key": Case(KEYED.format("")),
    "types of its own": Case("CREATE TABLE jobs (id int PRIMARY KEY, status int, extra jsonb)"),
    "composite key": Case("CREATE TABLE jobs (id int, status text, n int, PRIMARY KEY (n, id))"),
    "no key": Case("CREATE TABLE jobs (id int, status text)", "replica_identity"),
    "key without id": Case(
        KEYED.format(", n int").replace("id int PRIMARY KEY", "id int")
        + "ALTER TABLE jobs ADD PRIMARY KEY (n)",
        "replica_identity",
    ),
    "deferrable key": Case(
        "CREATE TABLE jobs (id int, status text, PRIMARY KEY (id) DEFERRABLE)", "replica_identity"
    ),
    "identity nothing": Case(
        KEYED.format("") + "ALTER TABLE jobs REPLICA IDENTITY NOTHING", "replica_identity"
    ),
    "identity full, no key": Case(
        "CREATE TABLE jobs (id int, status text); ALTER TABLE jobs REPLICA IDENTITY FULL"
    ),
    "identity index": Case(
        "CREATE TABLE jobs (id int NOT NULL UNIQUE, status text);"
        "ALTER TABLE jobs REPLICA IDENTITY USING INDEX jobs_id_key"
    ),
    "identity index without id": Case(
        KEYED.format(", n int NOT NULL UNIQUE")
        + "ALTER TABLE jobs REPLICA IDENTITY USING INDEX jobs_n_key",
        "replica_identity",
    ),
    "identity index dropped": Case(
        KEYED.format("") + "CREATE UNIQUE INDEX gone ON jobs (id);"
        "ALTER TABLE jobs REPLICA IDENTITY USING INDEX gone; DROP INDEX gone",
        "replica_identity",
    ),
    # Kinds of tables.
    "unlogged": Case("CREATE UNLOGGED TABLE jobs (id int PRIMARY KEY, status text)", "unlogged"),
    "view": Case("CREATE VIEW jobs AS SELECT 1 AS id, 'queued' AS status", "view"),
    "materialized view": Case(
        "CREATE MATERIALIZED VIEW jobs AS SELECT 1 AS id, 'queued' AS status", "view"
    ),
    "partitioned with keys": Case(PARTITIONED.format(" PRIMARY KEY") + PARTITION),
    "partitioned without keys": Case(PARTITIONED.format("") + PARTITION, "replica_identity"),
    "partition without identity": Case(
        PARTITIONED.format(" PRIMARY KEY")
        + PARTITION
        + "ALTER TABLE part REPLICA IDENTITY NOTHING",
        "replica_identity",
    ),
    "partitioned without identity": Case(
        PARTITIONED.format(" PRIMARY KEY")
        + PARTITION
        + "ALTER TABLE jobs REPLICA IDENTITY NOTHING",
        "replica_identity",
    ),
    "unlogged partition": Case(
        PARTITIONED.format(" PRIMARY KEY") + PARTITION.replace("CREATE", "CREATE UNLOGGED"),
        "unlogged",
    ),
    "inherited": Case(KEYED.format("") + "CREATE TABLE old () INHERITS (jobs)", "inheritance"),
    "inherited with keys": Case(
        KEYED.format("") + "CREATE TABLE old (PRIMARY KEY (id)) INHERITS (jobs)", "inheritance"
    ),
    # Columns.
    "generated": Case(
        KEYED.format(", agent text GENERATED ALWAYS AS (upper(status)) STORED"),
        before={18: "generated"},
    ),
    "virtual": Case(
        KEYED.format(", agent text GENERATED ALWAYS AS (upper(status)) VIRTUAL"),
        "virtual",
        since=18,
    ),
    "generated, not of the contract": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) STORED")
    ),
    "generated, and in the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) STORED")
        + "ALTER TABLE jobs REPLICA IDENTITY FULL"
    ),
    "generated, and in the key": Case(
        "CREATE TABLE jobs (id int, status text, n int GENERATED ALWAYS AS (id % 7) STORED,"
        " PRIMARY KEY (n, id))"
    ),
    "generated, and in the replica identity of a partition": Case(
        PARTITIONED.format(" PRIMARY KEY").replace(
            "status text", "status text, other int GENERATED ALWAYS AS (id + 1) STORED"
        )
        + PARTITION
        + "ALTER TABLE part REPLICA IDENTITY FULL"
    ),
    "virtual, and in the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) VIRTUAL")
        + "ALTER TABLE jobs REPLICA IDENTITY FULL",
        "replica_identity",
        since=18,
    ),
    "virtual, and in the replica identity, without a key": Case(
        "CREATE TABLE jobs (id int, status text, other int GENERATED ALWAYS AS (id + 1) VIRTUAL);"
        "ALTER TABLE jobs REPLICA IDENTITY FULL",
        "replica_identity",
        since=18,
    ),
    "virtual, and published with the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) VIRTUAL")
        + f"ALTER TABLE jobs REPLICA IDENTITY FULL; CREATE PUBLICATION {MINE} FOR TABLE jobs",
        "replica_identity",
        since=18,
    ),
    # A publication with Brain's name that somebody else created.
    "without the generated column of the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) STORED")
        + f"ALTER TABLE jobs REPLICA IDENTITY FULL; CREATE PUBLICATION {MINE} FOR TABLE jobs"
    ),
    "empty, without the generated column of the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) STORED")
        + f"ALTER TABLE jobs REPLICA IDENTITY FULL; CREATE PUBLICATION {MINE}"
    ),
    "all tables, without the generated column of the replica identity": Case(
        KEYED.format(", other text GENERATED ALWAYS AS (upper(status)) STORED")
        + "ALTER TABLE jobs REPLICA IDENTITY FULL",
        "publication",
        superuser=f"CREATE PUBLICATION {MINE} FOR ALL TABLES",
        since=18,
        harmed=True,
    ),
    "empty": Case(KEYED.format("") + f"CREATE PUBLICATION {MINE}"),
    "all tables": Case(KEYED.format(""), superuser=f"CREATE PUBLICATION {MINE} FOR ALL TABLES"),
    "tables in schema": Case(
        KEYED.format(""), superuser=f"CREATE PUBLICATION {MINE} FOR TABLES IN SCHEMA odd"
    ),
    "row filter": Case(
        KEYED.format("") + f"CREATE PUBLICATION {MINE} FOR TABLE jobs WHERE (id > 5)",
        "publication",
    ),
    "row filter without the key": Case(
        KEYED.format("") + f"CREATE PUBLICATION {MINE} FOR TABLE jobs WHERE (status <> 'x')",
        "publication",
        harmed=True,
    ),
    "column list": Case(
        KEYED.format(", other text") + f"CREATE PUBLICATION {MINE} FOR TABLE jobs (id, status)"
    ),
    "column list without a field": Case(
        KEYED.format(", agent text") + f"CREATE PUBLICATION {MINE} FOR TABLE jobs (id, status)",
        "publication",
    ),
    "column list without the key": Case(
        KEYED.format("") + f"CREATE PUBLICATION {MINE} FOR TABLE jobs (status)",
        "publication",
        harmed=True,
    ),
    "no deletes": Case(
        KEYED.format("")
        + f"CREATE PUBLICATION {MINE} FOR TABLE jobs WITH (publish = 'insert, update, truncate')",
        "publication",
    ),
    "partitions by name": Case(
        PARTITIONED.format(" PRIMARY KEY")
        + PARTITION
        + f"CREATE PUBLICATION {MINE} FOR TABLE jobs",
        "publication",
    ),
    "row security, of another's table": Case(
        KEYED.format("") + "ALTER TABLE jobs ENABLE ROW LEVEL SECURITY",
        "row_security",
        superuser=f"ALTER TABLE odd.jobs OWNER TO postgres; GRANT ALL ON odd.jobs TO {ROLE}",
    ),
    "row security, forced on the owner": Case(
        KEYED.format("") + "ALTER TABLE jobs FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY",
        "row_security",
    ),
    "row security, which the owner bypasses": Case(
        KEYED.format("") + "ALTER TABLE jobs ENABLE ROW LEVEL SECURITY"
    ),
    "no key, and published": Case(
        f"CREATE TABLE jobs (id int, status text); CREATE PUBLICATION {MINE} FOR TABLE jobs",
        "replica_identity",
    ),
}

STATE = """
SELECT to_jsonb(p) - 'oid', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.schemaname, t.tablename)
                               FROM pg_publication_tables t WHERE t.pubname = p.pubname)
FROM pg_publication p WHERE p.pubname LIKE 'brain_odd%%'
"""


async def outcome(
    conn: Conn, publish: Callable[[], Awaitable[object]]
) -> tuple[UnavailableCode | None, list[Any]]:
    """The code, and the publication then. What `publish` does is rolled back."""
    async with conn.transaction(force_rollback=True):
        try:
            result = await publish()
        except StreamUnavailable as unavailable:
            result = unavailable
        code = result.code if isinstance(result, StreamUnavailable) else None
        return code, await (await conn.execute(STATE)).fetchall()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.each_version] if case.before or case.since else [])
        for name, case in CASES.items()
    ],
)
async def test_all_commands_agree_on_whether_a_table_may_be_published(
    any_postgres: Postgres, any_database: str, name: str
) -> None:
    case = CASES[name]
    if any_postgres.version < case.since:
        pytest.skip(f"PostgreSQL {case.since} is the first with this")
    expected = case.code
    for version, code in (case.before or {}).items():
        expected = code if any_postgres.version < version else expected
    admin = any_postgres.url(str(conninfo.conninfo_to_dict(any_database)["dbname"]))
    execute(admin, f"CREATE SCHEMA odd AUTHORIZATION {ROLE}")
    execute(f"{any_database}?options=-csearch_path%3Dodd", case.create)
    if case.superuser:
        execute(admin, case.superuser)
    before = execute(admin, STATE)

    report = await examine(any_database, TABLE, Decoder({}, 8192))
    assert execute(admin, STATE) == before, "the doctor changes nothing"
    found = {finding.check for finding in report.findings} & ABOUT_TABLES
    assert found == ({expected} if expected else set()), report.text()
    assert report.source == ("poll" if expected else "replication"), report.text()

    async with await connect(any_database, "brain") as conn:
        unchanged = await (await conn.execute(STATE)).fetchall()
        sql = await publication_sql(conn, TABLE, "brain")
        by_serve = await outcome(conn, lambda: ensure_publication(conn, TABLE, "brain"))
        by_init_db = await outcome(conn, lambda: initialize(conn, TABLE, "brain"))
        by_sql = await outcome(conn, lambda: conn.execute(sql.encode()))
        assert by_serve[0] == by_init_db[0] == expected
        assert by_serve[1] == by_init_db[1]
        if expected is None:
            assert by_sql[1] == by_serve[1] != []
        else:
            assert sql.startswith("-- Brain polls odd.jobs and does not stream it: ")
            assert by_sql[1] == unchanged
        await initialize(conn, TABLE, "brain")
    if expected != "view" and not case.harmed:
        execute(any_database, "UPDATE odd.jobs SET status = status; DELETE FROM odd.jobs")


def init_db(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRAIN_")}
    return subprocess.run(
        [*BRAIN, "init-db", *options],
        env=environment | {"BRAIN_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_init_db_says_why_a_table_is_not_published_and_its_hint_works(database: str) -> None:
    execute(
        database,
        "DROP PUBLICATION brain_public_runs; ALTER TABLE runs DROP CONSTRAINT runs_pkey",
    )
    reason = "Brain polls public.runs and does not stream it: the table has no replica identity"
    hint = 'ALTER TABLE "public"."runs" ADD PRIMARY KEY (id);'
    done = init_db(database)
    assert f"NOTICE: {reason}" in done.stderr
    assert f"\n{hint}\n" in done.stderr
    assert f"is ready: {shlex.join(BRAIN)} serve" in done.stdout
    printed = init_db(database, "--sql").stdout
    assert f"\n-- {reason}" in printed
    assert f"\n-- {hint}\n" in printed
    execute(database, hint)
    printed = init_db(database, "--sql").stdout
    assert execute(database, "SELECT FROM pg_publication") == []
    execute(database, printed)
    assert execute(database, "SELECT tablename FROM pg_publication_tables") == [("runs",)]
    assert "exists, and is complete" in init_db(database, "--sql").stdout


def test_init_db_prints_its_sql_without_a_database() -> None:
    printed = init_db("postgresql://u:secret@127.0.0.1:1/d", "--sql").stdout
    assert 'CREATE TABLE "public"."runs"' in printed
    assert "-- postgresql://u@127.0.0.1:1/d does not answer: connection failed" in printed
    assert "secret" not in printed
