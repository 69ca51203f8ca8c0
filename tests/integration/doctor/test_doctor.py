"""brain doctor: each finding is produced for real, and is gone after its hint has been run."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import get_args

import psycopg
import pytest
from psycopg import conninfo

from brain.doctor import checks as doctor
from brain.doctor.checks import examine
from brain.doctor.context import Context, Thresholds
from brain.doctor.report import CheckCode, Finding, Report
from brain.doctor.stream import slot
from brain.postgres.decoder import Decoder
from brain.postgres.table import Table
from brain.postgres.unavailable import UnavailableCode
from tests.support import ROOT
from tests.support.commands import run
from tests.support.hints import followed, follows, paste, shell
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import Postgres, execute, running
from tests.support.served import served
from tests.support.template import ROLE, TEMPLATE, own, with_template

pytestmark = pytest.mark.long

RUNS = Table("public", "runs")
RUNNING = ROOT / "docs" / "reference" / "running.md"


IMPATIENT = Thresholds(slot_wait=0.3)


async def look(
    url: str,
    *,
    table: Table = RUNS,
    stream: bool = True,
    thresholds: Thresholds | None = None,
) -> Report:
    return await examine(url, table, Decoder({}, 8192), stream=stream, thresholds=thresholds)


def checks(report: Report) -> list[str]:
    return sorted(found.check for found in report.findings)


def the(report: Report, check: str) -> Finding:
    (found,) = (found for found in report.findings if found.check == check)
    assert found.detail
    assert found.what in report.text()
    return found


async def resolved(url: str, check: str, *, by: str = "", stays: tuple[str, ...] = ()) -> Finding:
    """The finding. Running its hint resolves it; the findings `stays` remain."""
    found = the(await look(url), check)
    paste(found.hint, by or url)
    after = await look(url)
    assert checks(after) == sorted(stays), after.text()
    return found


@pytest.fixture
def stranger(postgres: Postgres, database: str, superuser_url: str) -> Iterator[str]:
    """The same database, for a role without any rights."""
    execute(postgres.url(), "DROP ROLE IF EXISTS doctors_stranger")
    execute(postgres.url(), "CREATE ROLE doctors_stranger LOGIN")
    yield database.replace(f"{ROLE}@", "doctors_stranger@")
    execute(superuser_url, "DROP OWNED BY doctors_stranger")
    execute(postgres.url(), "DROP ROLE doctors_stranger")


# Nothing is wrong.


async def test_what_brain_creates_has_no_findings(any_database: str) -> None:
    # With so few rows the planner prefers a scan.
    execute(any_database, "INSERT INTO runs (id) VALUES ('a'), ('b')")
    execute(any_database, "ANALYZE runs")
    report = await look(any_database)
    assert report.findings == []
    assert (report.status, report.source) == (0, "replication")
    assert (
        execute(
            any_database,
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
        )
        == []
    )


async def test_a_missing_publication_is_no_finding_and_is_not_created(any_database: str) -> None:
    execute(any_database, "DROP PUBLICATION brain_public_runs")
    report = await look(any_database)
    assert (report.findings, report.source) == ([], "replication")
    assert execute(any_database, "SELECT pubname FROM pg_publication") == []


async def test_a_running_brain_is_not_disturbed(database: str) -> None:
    with served(database_url=database) as brain:
        assert (await look(database)).findings == []
        assert brain.metric("brain_streams_total") == 1
        assert brain.metric("brain_streams_lost_total") == 0


@follows("BRAIN_SOURCE=auto")
async def test_polling_by_setting_is_a_note(database: str) -> None:
    report = await look(database, stream=False)
    assert checks(report) == ["chosen"]
    assert (report.status, report.source) == (0, "poll")
    said = shell(the(report, "chosen").hint, "brain doctor", BRAIN_DATABASE_URL=database)
    assert "Brain streams public.runs." in said


# The table cannot be followed.


async def test_an_unreachable_database_is_broken_and_no_password_is_shown() -> None:
    report = await look("postgresql://u:secret@127.0.0.1:1/d")
    found = the(report, "away")
    assert (report.status, report.source, found.level) == (2, "none", "broken")
    assert "Connection refused" in found.what
    assert "secret" not in report.text() + report.json()


@follows(
    "set the right role and password in BRAIN_DATABASE_URL",
    "give the role a line for this database in pg_hba.conf",
    "start PostgreSQL there",
    "the host name does not resolve",
    "CREATE DATABASE {};",
    "CREATE ROLE {} LOGIN REPLICATION;",
    "ALTER ROLE {} LOGIN;",
    "ALTER ROLE {} CONNECTION LIMIT -1;",
    "ALTER DATABASE {} CONNECTION LIMIT -1;",
    "GRANT CONNECT ON DATABASE {} TO",
    "reduce the number of clients, or raise max_connections",
)
async def test_each_connection_error_has_its_hint() -> None:
    with own(max_connections="8") as (server, url):
        lines = ("host all lost 127.0.0.1/32 reject", "host all secret 127.0.0.1/32 scram-sha-256")
        configuration = server.data / "pg_hba.conf"
        configuration.write_text("\n".join([*lines, configuration.read_text()]))
        execute(
            server.url(),
            "CREATE ROLE lost LOGIN; CREATE ROLE secret LOGIN PASSWORD 'x'; CREATE ROLE idle;"
            " SELECT pg_reload_conf()",
        )
        for wrong, hint in (
            (url.replace(f"{ROLE}@", "secret:wrong@"), "set the right role and password"),
            (url.replace(f"{ROLE}@", "secret@"), "set the right role and password"),
            (
                url.replace(f"{ROLE}@", "lost@"),
                "give the role a line for this database in pg_hba.conf",
            ),
            (url.replace(f":{server.port}/", ":1/"), "start PostgreSQL there"),
            (url.replace("127.0.0.1", "nowhere.invalid"), "the host name does not resolve"),
        ):
            found = the(await look(wrong), "away")
            assert followed(found.hint).startswith(hint), found
            assert found.detail.endswith("keeps trying; until then clients receive no changes")
        assert "away" not in checks(await look(url)), "with the right role, password, host and port"
        configuration.write_text(f"host all lost 127.0.0.1/32 trust\n{configuration.read_text()}")
        execute(server.url(), "SELECT pg_reload_conf()")
        assert "away" not in checks(await look(url.replace(f"{ROLE}@", "lost@")))
        for wrong in (
            server.url('ano"ther', ROLE),
            url.replace(f"{ROLE}@", "unheard@"),
            url.replace(f"{ROLE}@", "idle@"),
        ):
            paste(the(await look(wrong), "away").hint, server.url())
            assert "away" not in checks(await look(wrong))
        name = url.rpartition("/")[2]
        for limited in (f"ROLE {ROLE}", f'DATABASE "{name}"'):
            execute(server.url(), f"ALTER {limited} CONNECTION LIMIT 0")
            paste(the(await look(url), "away").hint, server.url())
            assert (await look(url)).findings == []
        execute(server.url(), f"ALTER DATABASE {name} OWNER TO postgres")
        execute(server.url(), f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        paste(the(await look(url), "away").hint, server.url())
        assert (await look(url)).findings == []
        with contextlib.ExitStack() as clients:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    clients.enter_context(psycopg.connect(url))
            found = the(await look(url), "away")
            assert followed(found.hint).startswith("reduce the number of clients")
        assert (await look(url)).findings == []


STARTING = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"


@follows(
    "wait until PostgreSQL takes connections",
    "another program than PostgreSQL answers there",
    "correct the host and the port in BRAIN_DATABASE_URL",
)
async def test_a_server_that_is_not_ready_or_not_postgresql_has_its_hint(database: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        if answers:
            writer.write(answers)
        else:
            await reader.read()  # until the client gives up
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://u:secret@127.0.0.1:{port}/d?connect_timeout=2&sslmode="
        starting = b"E" + (len(STARTING) + 4).to_bytes(4, "big") + STARTING
        for mode, reply, hint in (
            ("disable", starting, "wait until PostgreSQL takes connections"),
            ("prefer", b"HTTP/1.1 400 Bad Request\r\n\r\n", "another program than PostgreSQL"),
            ("prefer", b"", "correct the host and the port"),
        ):
            answers = reply
            report = await look(url + mode)
            found = the(report, "away")
            assert followed(found.hint).startswith(hint), found
            assert "secret" not in report.text()
        assert found.what == f"127.0.0.1:{port}/d did not answer within 2 s"
    assert (await look(database)).findings == []


@follows("brain init-db  # or name another table than {} in BRAIN_TABLE")
async def test_a_missing_table_or_column_is_broken(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    report = await look(url)
    assert report.status == 2
    hint = the(report, "table").hint
    called = hint.replace("brain", "/in a clone/.venv/bin/brain", 1)
    assert f"  hint    {called}\n" in report.text("/in a clone/.venv/bin/brain")
    shell(hint, BRAIN_DATABASE_URL=url)
    assert (await look(url)).findings == []
    execute(url, "ALTER TABLE runs DROP COLUMN status")
    assert "no column status" in the(await look(url), "table").what


@follows("run this again")
async def test_a_locked_table_interrupts_the_examination(database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE runs")
        found = the(await look(database), "away")
        assert "lock timeout" in found.what
    followed(found.hint)
    assert (await look(database)).findings == []


# Rights.


@follows(
    "GRANT USAGE ON SCHEMA {} TO {};",
    "GRANT SELECT ON {} TO {};",
    "GRANT INSERT, UPDATE ON {} TO {};",
    "ALTER ROLE {} REPLICATION;",
)
async def test_the_hints_give_a_role_every_right_that_it_needs(
    any_postgres: Postgres, any_database: str
) -> None:
    """A role without any rights, after running nothing but the hints."""
    admin = any_postgres.url(str(conninfo.conninfo_to_dict(any_database)["dbname"]))
    execute(
        admin,
        "DROP ROLE IF EXISTS nobodys; CREATE ROLE nobodys LOGIN;"
        " REVOKE USAGE ON SCHEMA public FROM PUBLIC",
    )
    url = any_database.replace(f"{ROLE}@", "nobodys@")
    seen = []
    try:
        for _ in range(10):
            report = await look(url)
            seen.append((report.status, report.source, checks(report)))
            for found in report.findings:
                paste(found.hint, admin)
            if not report.findings:
                break
        assert seen == [
            (2, "none", ["select"]),
            (1, "poll", ["role", "write"]),
            (0, "replication", []),
        ]
    finally:
        execute(admin, "DROP OWNED BY nobodys; DROP ROLE nobodys")


@follows("CREATE PUBLICATION {} FOR TABLE {} WITH ({})")
async def test_a_publication_that_the_role_may_not_create(
    database: str, stranger: str, superuser_url: str
) -> None:
    execute(database, "DROP PUBLICATION brain_public_runs")
    execute(database, "GRANT SELECT, INSERT, UPDATE ON runs TO doctors_stranger")
    execute(superuser_url, "ALTER ROLE doctors_stranger REPLICATION")
    found = await resolved(stranger, "publication", by=superuser_url)
    assert found.what.startswith("the publication brain_public_runs is missing: permission denied")
    assert found.hint.startswith("CREATE PUBLICATION")


async def test_a_role_whose_transactions_are_read_only_streams_what_another_role_publishes(
    database: str, superuser_url: str
) -> None:
    execute(database, "DROP PUBLICATION brain_public_runs")
    name = database.rpartition("/")[2]
    execute(
        superuser_url,
        f"ALTER ROLE {ROLE} IN DATABASE {name} SET default_transaction_read_only = on",
    )
    found = the(await look(database), "publication")
    assert "cannot execute CREATE PUBLICATION in a read-only transaction" in found.what
    execute(superuser_url, found.hint)
    report = await look(database)
    assert (report.source, checks(report)) == ("replication", [])


@follows("ALTER ROLE {} BYPASSRLS;")
async def test_row_security_that_hides_rows(
    database: str, stranger: str, superuser_url: str
) -> None:
    execute(database, "GRANT SELECT, INSERT, UPDATE ON runs TO doctors_stranger")
    execute(superuser_url, "ALTER ROLE doctors_stranger REPLICATION")
    execute(database, "ALTER TABLE runs ENABLE ROW LEVEL SECURITY")
    await resolved(stranger, "row_security", by=superuser_url)


# The table.


@follows(
    "{} SET LOGGED;",
    "ALTER TABLE {} REPLICA IDENTITY DEFAULT;",
    "{}; -- Brain creates it again",
    all_of_them=False,
)
@pytest.mark.parametrize(
    ("harm", "check", "hint"),
    [
        ("ALTER TABLE runs SET UNLOGGED", "unlogged", "SET LOGGED"),
        (
            "ALTER TABLE runs REPLICA IDENTITY NOTHING",
            "replica_identity",
            "REPLICA IDENTITY DEFAULT",
        ),
        (
            (
                "DROP PUBLICATION brain_public_runs;"
                " CREATE PUBLICATION brain_public_runs FOR TABLE runs WITH (publish = 'insert')"
            ),
            "publication",
            "DROP PUBLICATION",
        ),
        (
            (
                "DROP PUBLICATION brain_public_runs;"
                " CREATE PUBLICATION brain_public_runs FOR TABLE runs WHERE (id <> 'x')"
            ),
            "publication",
            "DROP PUBLICATION",
        ),
    ],
)
async def test_each_table_blocker_is_found_and_its_hint_resolves_it(
    any_database: str, harm: str, check: str, hint: str
) -> None:
    if check != "publication":
        execute(any_database, "DROP PUBLICATION brain_public_runs")
    execute(any_database, harm)
    report = await look(any_database)
    assert (report.status, report.source) == (1, "poll")
    assert hint in (await resolved(any_database, check)).hint
    assert (await look(any_database)).source == "replication"


@follows("make it a partitioned table, or run ALTER TABLE … NO INHERIT", "{}; -- then {}")
async def test_inheritance_and_the_publication_that_it_makes_harmful(any_database: str) -> None:
    execute(any_database, "CREATE TABLE a () INHERITS (runs)")
    found = the(await look(any_database), "inheritance")
    assert "UPDATEs fail" not in found.what  # the publication has the parent alone
    assert found.hint.startswith("make it a partitioned table")
    execute(any_database, "ALTER PUBLICATION brain_public_runs SET TABLE runs")
    found = the(await look(any_database), "inheritance")
    assert "makes the application's own UPDATEs fail" in found.what
    assert found.hint.startswith(
        'DROP PUBLICATION "brain_public_runs"; -- then make it a partitioned table'
    )
    paste(found.hint, any_database)
    execute(any_database, "ALTER TABLE a NO INHERIT runs")
    assert (await look(any_database)).findings == []


@follows("{} ADD PRIMARY KEY ({});")
async def test_a_table_without_a_key_has_one_finding(any_database: str) -> None:
    """Ids cannot be looked up either, but the same hint resolves both."""
    execute(
        any_database,
        "DROP PUBLICATION brain_public_runs; ALTER TABLE runs DROP CONSTRAINT runs_pkey",
    )
    assert checks(await look(any_database)) == ["replica_identity"]
    execute(any_database, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 10000) i")
    assert "id_index" in checks(await look(any_database, stream=False))
    report = await look(any_database)
    assert checks(report) == ["replica_identity"]
    assert "UPDATEs fail" in the(report, "replica_identity").what
    await resolved(any_database, "replica_identity")


@follows("{} ADD PRIMARY KEY ({});", "{}; -- make these unique")
async def test_duplicate_ids_come_before_the_key(any_database: str) -> None:
    execute(
        any_database,
        "DROP PUBLICATION brain_public_runs; ALTER TABLE runs DROP CONSTRAINT runs_pkey",
    )
    execute(any_database, "ALTER TABLE runs ALTER started_at TYPE text")
    execute(
        any_database, "INSERT INTO runs (id, started_at) VALUES ('a', 'x'), ('a', 'y'), ('b', NULL)"
    )
    report = await look(any_database)
    found = the(report, "values")
    assert found.what == "2 values in 2 rows do not fit the contract: started_at (text)"
    assert "IN ('a');" in found.hint
    found = the(report, "replica_identity")
    assert found.what.endswith("duplicate or NULL ids rule out a key")
    query, key = found.hint.splitlines()
    assert execute(any_database, query) == [("a", 2)]
    paste(found.hint, any_database)
    execute(any_database, "DELETE FROM runs WHERE id = 'a'")
    paste(key.removeprefix("-- and then: "), any_database)
    assert (await look(any_database)).findings == []


@follows("{} ADD PRIMARY KEY ({});", "{} SET LOGGED;")
async def test_hints_can_be_pasted_one_after_the_other(any_database: str) -> None:
    execute(
        any_database,
        "DROP PUBLICATION brain_public_runs; ALTER TABLE runs DROP CONSTRAINT runs_pkey;"
        " ALTER TABLE runs SET UNLOGGED",
    )
    report = await look(any_database)
    assert checks(report) == ["replica_identity", "unlogged"]
    paste("\n".join(found.hint for found in report.findings), any_database)
    assert (await look(any_database)).findings == []


async def test_a_view_is_polled(any_database: str) -> None:
    execute(any_database, "CREATE VIEW seen AS SELECT * FROM runs")
    report = await look(any_database, table=Table("public", "seen"))
    assert checks(report) == ["view"]
    assert (report.status, report.source) == (1, "poll")


async def test_generated_and_virtual_columns(any_postgres: Postgres, any_database: str) -> None:
    execute(any_database, "DROP PUBLICATION brain_public_runs")
    execute(
        any_database,
        "ALTER TABLE runs DROP COLUMN agent;"
        " ALTER TABLE runs ADD agent text GENERATED ALWAYS AS (upper(task_id)) STORED",
    )
    report = await look(any_database)
    assert checks(report) == ([] if any_postgres.version >= 18 else ["generated"])
    if any_postgres.version >= 18:
        execute(
            any_database,
            "ALTER TABLE runs DROP COLUMN agent;"
            " ALTER TABLE runs ADD agent text GENERATED ALWAYS AS (upper(task_id)) VIRTUAL",
        )
        assert checks(await look(any_database)) == ["virtual"]


async def test_missing_columns_are_a_note(database: str) -> None:
    execute(database, "ALTER TABLE runs DROP COLUMN task_id; ALTER TABLE runs DROP COLUMN progress")
    report = await look(database)
    assert "progress, task_id" in the(report, "columns").what
    assert (report.status, report.source) == (0, "replication")


@follows(
    "BRAIN_STATUS_MAP={}  # or =queued, =running, =completed",
    "SELECT * FROM {} WHERE {} IS NULL;",
)
async def test_unknown_statuses_are_found_and_the_hint_maps_them(database: str) -> None:
    execute(
        database,
        "ALTER TABLE runs DROP CONSTRAINT runs_status_check;"
        " ALTER TABLE runs ALTER status DROP NOT NULL",
    )
    execute(
        database,
        "INSERT INTO runs (id, status) VALUES ('a', 'on hold'), ('b', NULL), ('c', 'it''s'),"
        " ('d', 'Pending')",
    )
    found = the(await look(database), "status")
    assert "NULL" in found.what
    assert "'on hold'" in found.what
    assert "Pending" not in found.what
    said = shell(found.hint, "brain doctor || true", BRAIN_DATABASE_URL=database)
    assert "a status that the contract does not have: NULL" in said
    execute(database, "DELETE FROM runs WHERE status IS NOT NULL")
    paste(the(await look(database), "status").hint, database)
    execute(database, "UPDATE runs SET status = 'queued'")
    assert (await look(database)).findings == []


async def test_a_padded_status_is_no_finding(database: str) -> None:
    execute(
        database,
        "ALTER TABLE runs DROP CONSTRAINT runs_status_check; DROP INDEX runs_id_idx;"
        " ALTER TABLE runs ALTER status DROP DEFAULT;"
        " ALTER TABLE runs ALTER status TYPE char(12)",
    )
    execute(database, "INSERT INTO runs (id, status) VALUES ('a', 'running')")
    assert "status" not in checks(await look(database))


@follows("SELECT {}, {} FROM {} WHERE {} IN ({}); -- to look at")
async def test_values_that_the_contract_cannot_express_are_listed(any_database: str) -> None:
    """Brain cannot know the right values. So the hint shows the rows, and changes nothing."""
    execute(
        any_database,
        "ALTER TABLE runs DROP COLUMN started_at; ALTER TABLE runs ADD started_at bigint;"
        " ALTER TABLE runs DROP COLUMN completed_at; ALTER TABLE runs ADD completed_at text;"
        " ALTER TABLE runs DROP COLUMN progress; ALTER TABLE runs ADD progress text",
    )
    execute(any_database, "INSERT INTO runs (id, progress) VALUES ('a', '50%')")
    found = the(await look(any_database), "values")
    assert found.what == "1 value in 1 row does not fit the contract: progress (text)"
    execute(
        any_database,
        "INSERT INTO runs (id, started_at, progress, completed_at) VALUES"
        " ('it''s', 1790000000, '250', 'yesterday'), ('c', NULL, '100', '2026-11-21T10:00:00Z')",
    )
    before = execute(any_database, "SELECT * FROM runs ORDER BY id")
    found = the(await look(any_database), "values")
    assert found.what.startswith(
        "4 values in 2 rows do not fit the contract: completed_at (text), progress"
    )
    paste(found.hint, any_database)
    assert [execute(any_database, line) for line in found.hint.splitlines()] == [
        [("it's", "yesterday")],
        [("a", "50%"), ("it's", "250")],
        [("it's", 1790000000)],
    ]
    assert execute(any_database, "SELECT * FROM runs ORDER BY id") == before
    execute(
        any_database,
        "INSERT INTO runs (id, progress) SELECT i, 'half' FROM generate_series(1, 20) i",
    )
    assert "-- to look at, the first 10 of 22" in the(await look(any_database), "values").hint


@follows("CREATE INDEX ON {} ({}) WHERE {};", "CREATE UNIQUE INDEX ON {} ({});")
async def test_missing_indexes_matter_in_a_large_table(any_database: str) -> None:
    fill = "INSERT INTO runs (id, status) SELECT i, 'completed' FROM generate_series({}, {}) i"
    execute(any_database, "DROP INDEX runs_id_idx")
    execute(any_database, fill.format(1, 9999))
    assert (await look(any_database)).findings == [], "few rows"
    execute(any_database, fill.format(10000, 10000))
    assert "10000 rows or more" in the(await look(any_database), "status_index").detail, (
        "no statistics"
    )
    execute(any_database, "ANALYZE runs")
    found = await resolved(any_database, "status_index")
    assert found.level == "better"
    assert "about 10000 rows" in found.detail
    execute(
        any_database,
        "ALTER TABLE runs REPLICA IDENTITY FULL; ALTER TABLE runs DROP CONSTRAINT runs_pkey",
    )
    execute(any_database, "ALTER TABLE runs ADD other serial PRIMARY KEY")
    execute(any_database, "INSERT INTO runs (id) VALUES ('1')")
    assert the(await look(any_database), "id_index").hint.startswith("SELECT id, count(*) FROM")
    execute(any_database, "DELETE FROM runs WHERE other > 10000")
    found = await resolved(any_database, "id_index")
    assert found.level == "better"
    assert found.hint == 'CREATE UNIQUE INDEX ON "public"."runs" (id);'


@follows("CREATE INDEX ON {} ({}) WHERE {};")
@pytest.mark.parametrize("type_", ["word", "domain"])
async def test_the_index_on_an_enum_that_the_hint_creates_serves(
    any_database: str, type_: str
) -> None:
    execute(
        any_database,
        "DROP INDEX runs_id_idx; ALTER TABLE runs DROP COLUMN status;"
        " CREATE TYPE word AS ENUM ('queued', 'Running', 'completed', 'failed');"
        " CREATE DOMAIN domain AS word",
    )
    execute(any_database, f"ALTER TABLE runs ADD status {type_} NOT NULL DEFAULT 'completed'")
    execute(any_database, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 10000) i")
    found = the(await look(any_database), "status_index")
    paste(found.hint, any_database)
    assert "status_index" not in checks(await look(any_database))


@follows("CREATE INDEX ON {} ({}) WHERE {};")
async def test_the_index_on_words_of_any_case_that_the_hint_creates_serves(
    any_database: str,
) -> None:
    execute(
        any_database,
        "ALTER TABLE runs DROP CONSTRAINT runs_status_check;"
        "INSERT INTO runs (id) SELECT i FROM generate_series(1, 10000) i",
    )
    found = the(await look(any_database), "status_index")
    paste(found.hint, any_database)
    assert "status_index" not in checks(await look(any_database))


@follows("CREATE INDEX ON {} ({}) WHERE {};")
async def test_indexes_of_a_partitioned_table(any_database: str) -> None:
    execute(any_database, "DROP TABLE runs")
    execute(
        any_database,
        "CREATE TABLE runs (id text PRIMARY KEY, status text NOT NULL) PARTITION BY HASH (id);"
        " CREATE TABLE runs_0 PARTITION OF runs FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        " CREATE TABLE runs_1 PARTITION OF runs FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    execute(any_database, "DROP PUBLICATION brain_public_runs")
    execute(any_database, "INSERT INTO runs SELECT i, 'failed' FROM generate_series(1, 10000) i")
    await resolved(any_database, "status_index", stays=("columns",))


# The server.


@follows("ALTER ROLE {} REPLICATION;", "ALTER SYSTEM SET wal_level = logical;")
async def test_wal_level_and_the_role_are_reported_together() -> None:
    """PostgreSQL reports only the first of them; the doctor reports both."""
    with own(wal_level="replica") as (server, url):
        execute(server.url(), f"ALTER ROLE {ROLE} NOREPLICATION")
        report = await look(url)
        assert checks(report) == ["role", "wal_level"]
        assert (report.status, report.source) == (1, "poll")
        paste(the(report, "role").hint, server.url())
        found = the(await look(url), "wal_level")
        assert found.hint.endswith("-- then restart PostgreSQL")
        paste(found.hint, server.url())
        server.restart()
        report = await look(url)
        assert (report.findings, report.source) == ([], "replication")


@follows(
    "ALTER SYSTEM SET {} = {};", "-- or, if nobody needs it: SELECT pg_drop_replication_slot({});"
)
async def test_no_replication_slot_is_free() -> None:
    with own(max_replication_slots="1") as (server, url):
        execute(
            server.url(),
            "SELECT pg_create_physical_replication_slot('some''body'::name)".replace("''", "_"),
        )
        found = the(await look(url), "slots")
        raised, other = followed(found.hint).splitlines()
        assert raised == "ALTER SYSTEM SET max_replication_slots = 5; -- then restart PostgreSQL"
        execute(server.url(), other.removeprefix("-- or, if nobody needs it: "))
        assert (await look(url)).findings == []
        with served(database_url=url) as brain:
            report = await look(url)
            assert the(report, "slots").level == "note", "a running Brain uses it"
            assert the(report, "slots").hint == raised
            assert (report.status, report.source) == (0, "replication")
            assert brain.metric("brain_streams_lost_total") == 0
        execute(server.url(), "SELECT pg_create_physical_replication_slot('some_body')")
        paste(found.hint, server.url())
        server.restart()
        assert (await look(url)).findings == []
        assert execute(server.url(), "SELECT slot_name FROM pg_replication_slots") == [
            ("some_body",)
        ]


@follows("give {} a line for this database in pg_hba.conf")
async def test_pg_hba_refuses_a_stream_to_a_connected_brain() -> None:
    """A stream needs the same line as any connection to the database, not one for `replication`."""
    with own() as (server, url):
        configuration = server.data / "pg_hba.conf"
        name = url.rpartition("/")[2]
        allowed = f"host all postgres 127.0.0.1/32 trust\nhost {name} {ROLE} 127.0.0.1/32 trust\n"
        refused = f"host replication all 127.0.0.1/32 trust\n{allowed.splitlines()[0]}\n"
        configuration.write_text(f"host replication all 127.0.0.1/32 reject\n{allowed}")
        execute(server.url(), "SELECT pg_reload_conf()")
        assert (await look(url)).findings == []
        with (
            served(database_url=url) as brain,
            psycopg.connect(server.url(), autocommit=True) as admin,
        ):
            brain.wait_ready("replication")
            configuration.write_text(refused)
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
            until = time.monotonic() + PATIENCE
            while (said := brain.get("/readyz")[1])["code"] != "pg_hba":
                assert time.monotonic() < until, said
                await asyncio.sleep(0.05)
            assert followed(said["hint"]).startswith(
                f'give "{ROLE}" a line for this database in pg_hba.conf'
            )
            assert the(await look(url), "away").hint.startswith(
                "give the role a line for this database"
            )
            configuration.write_text(allowed)
            admin.execute("SELECT pg_reload_conf()")
            brain.wait_ready("replication")


@follows("ALTER SYSTEM SET {} = {};")
async def test_no_walsender_is_free() -> None:
    with own(max_wal_senders="1") as (server, url):
        taken = psycopg.connect(f"{server.url()}?replication=database", autocommit=True)
        found = the(await look(url), "walsenders")
        paste(found.hint, server.url())
        taken.close()
        server.restart()
        taken = psycopg.connect(f"{server.url()}?replication=database", autocommit=True)
        assert (await look(url)).findings == []
        taken.close()


@follows(
    "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB';\nSELECT pg_reload_conf();",
    "list your standbys by name in synchronous_standby_names",
)
async def test_synchronous_standbys_and_a_small_wal_limit_for_slots() -> None:
    with own(max_slot_wal_keep_size="10MB") as (server, url):
        await resolved(url, "slot_log", by=server.url())
        execute(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'Brain'")
        execute(server.url(), "SELECT pg_reload_conf()")
        until = time.monotonic() + PATIENCE
        while not (report := await look(url)).findings:
            assert time.monotonic() < until
        found = the(report, "synchronous")
        assert report.source == "poll"
        assert followed(found.hint) == "list your standbys by name in synchronous_standby_names"
        execute(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'Standby'")
        execute(server.url(), "SELECT pg_reload_conf()")
        until = time.monotonic() + PATIENCE
        while (await look(url)).findings:
            assert time.monotonic() < until


@follows(
    "SELECT pg_terminate_backend({}); -- or let it end",
    "ROLLBACK PREPARED {}; -- or COMMIT PREPARED, in its database",
    all_of_them=False,
)
@pytest.mark.parametrize("kind", ["open", "prepared"])
async def test_a_transaction_that_blocks_the_slot(kind: str) -> None:
    with running() as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        with psycopg.connect(url) as writer:
            writer.execute("INSERT INTO runs (id) VALUES ('open')")
            if kind == "prepared":
                writer.execute("PREPARE TRANSACTION 'it''s'")
            report = await look(url, thresholds=IMPATIENT)
            assert (report.status, report.source) == (1, "poll")
            found = the(report, "slot_waits")
            assert (str(writer.info.backend_pid) if kind == "open" else "'it''s'") in found.hint
            paste(found.hint, url)
            assert (await look(url)).findings == []
            writer.close()


@follows("SELECT pg_terminate_backend({}); -- or let it end")
async def test_a_transaction_of_unknown_age_is_reported_if_it_blocks_the_slot(
    database: str, superuser_url: str
) -> None:
    """PostgreSQL hides the kind and age of another role's session from an ordinary role."""
    with psycopg.connect(superuser_url) as writer:
        writer.execute("INSERT INTO runs (id) VALUES ('open')")
        report = await look(database, thresholds=IMPATIENT)
        assert (report.status, report.source) == (1, "poll")
        found = the(report, "slot_waits")
        assert (
            found.what
            == f"a writing transaction of postgres (pid {writer.info.backend_pid}) is open"
        )
        paste(found.hint, superuser_url)
        assert (await look(database)).findings == []
        writer.close()


@follows("run this again")
async def test_polling_always_has_a_finding(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction blocks the slot, and ends before the doctor looks for open transactions."""
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO runs (id) VALUES ('open')")

        async def end_transaction(_: Context) -> list[Finding]:
            writer.rollback()
            return []

        in_order = list(doctor.STREAM_CHECKS)
        in_order.insert(in_order.index(slot) + 1, end_transaction)
        monkeypatch.setattr(doctor, "STREAM_CHECKS", tuple(in_order))
        report = await look(database, thresholds=IMPATIENT)
    assert (report.status, report.source) == (1, "poll")
    found = the(report, "slot_waits")
    assert "which has ended since" in found.what
    followed(found.hint)
    monkeypatch.undo()
    assert (await look(database)).findings == []


async def test_a_long_transaction_is_reported_where_no_slot_is_tried(database: str) -> None:
    execute(
        database, "DROP PUBLICATION brain_public_runs; ALTER TABLE runs REPLICA IDENTITY NOTHING"
    )
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO runs (id) VALUES ('open')")
        report = await look(database, thresholds=Thresholds(long_transaction=0))
        assert checks(report) == ["replica_identity", "slot_waits"]
        assert re.search(r"is open for \d+ s", the(report, "slot_waits").what)


@follows("name the primary in BRAIN_DATABASE_URL")
async def test_a_standby_is_polled() -> None:
    with own() as (server, url), contextlib.ExitStack() as stack:
        standby = server.standby()
        stack.callback(standby.remove)
        standby.start()
        report = await look(standby.url(str(conninfo.conninfo_to_dict(url)["dbname"]), ROLE))
        assert checks(report) == ["standby"]
        assert (report.status, report.source) == (1, "poll")
        followed(the(report, "standby").hint)
        assert (await look(url)).findings == []


@contextlib.contextmanager
def pooled(server: Postgres, url: str, options: str) -> Iterator[str]:
    """The URL of a PgBouncer in front of the server."""
    port = free_port()
    ini = server.folder / f"pgbouncer-{port}.ini"
    ini.with_suffix(".users").write_text(f'"{ROLE}" ""\n')
    ini.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"auth_type = trust\nauth_file = {ini.with_suffix('.users')}\n"
        f"pool_mode = transaction\nunix_socket_dir =\n{options}"
    )
    bouncer = subprocess.Popen(
        ["pgbouncer", "-q", ini],
        stderr=subprocess.DEVNULL,
        cwd="/",
        user="nobody" if os.geteuid() == 0 else None,
    )
    pooled_url = url.replace(f":{server.port}/", f":{port}/")
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                execute(pooled_url, "SELECT 1")
                break
            except psycopg.OperationalError:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield pooled_url
    finally:
        bouncer.terminate()
        bouncer.wait(PATIENCE)


@pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="pgbouncer is not installed: apt install pgbouncer"
)
@follows("name the database itself in BRAIN_DATABASE_URL")
@pytest.mark.parametrize("options", ["", "ignore_startup_parameters = options\n"])
async def test_a_pooler_is_found(postgres: Postgres, database: str, options: str) -> None:
    with pooled(postgres, database, options) as url:
        report = await look(url)
        assert (report.status, report.source) == (1, "poll"), report.text()
        followed(the(report, "pooler").hint)
    assert (await look(database)).findings == []


# The command.


@follows("CREATE INDEX ON {} ({}) WHERE {};")
def test_the_exit_status_the_text_and_the_json(database: str) -> None:
    assert (
        run("doctor", code=0, database_url=database).splitlines()[-1]
        == "Brain streams public.runs."
    )
    execute(database, "DROP INDEX runs_id_idx")
    execute(
        database,
        "INSERT INTO runs (id, status) SELECT i, 'failed' FROM generate_series(1, 10000) i",
    )
    execute(database, "ANALYZE runs")
    said = run("doctor", code=1, database_url=database)
    assert "could be better: no index finds the queued and running rows\n  detail  " in said
    assert "\n  hint    CREATE INDEX ON" in said
    document = json.loads(run("doctor", "--json", code=1, database_url=database))
    assert document["status"] == 1
    assert document["source"] == "replication"
    assert [found["check"] for found in document["findings"]] == ["status_index"]
    paste(document["findings"][0]["hint"], database)
    assert json.loads(run("doctor", "--json", code=0, database_url=database))["findings"] == []
    away = json.loads(run("doctor", "--json", code=2, database_url="postgresql://u@127.0.0.1:1/d"))
    assert (away["status"], away["source"], away["findings"][0]["level"]) == (2, "none", "broken")


def test_every_check_is_in_the_docs() -> None:
    """docs/reference/running.md lists exactly the codes that the code has."""
    _, _, after = RUNNING.read_text().partition("## brain doctor")
    rows = re.findall(r"^\| ((?:`\w+` )+)\|", after.partition("\n## ")[0], re.MULTILINE)
    written = {word for row in rows for word in re.findall(r"`(\w+)`", row)} - {
        "replication",
        "poll",
        "none",
    }
    assert written == {*get_args(CheckCode), *get_args(UnavailableCode)}
