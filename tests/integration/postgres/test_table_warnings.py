"""What Brain warns of, and that the hint ends the warning."""

from collections.abc import Iterator
from datetime import UTC

import pytest
from psycopg import conninfo
from structlog.testing import capture_logs

from brain.doctor.checks import examine
from brain.doctor.report import Finding
from brain.postgres.column_map import ColumnMap
from brain.postgres.decoder import Decoder
from brain.postgres.polling import Mode
from brain.postgres.table import Table
from brain.postgres.time_zone import DEFAULT, TimeZone
from tests.support.following import RUNS, Following
from tests.support.hints import follows, paste, shell
from tests.support.postgres import Postgres, execute
from tests.support.served import served
from tests.support.template import ROLE


async def look(url: str, *, table: Table = RUNS, zone: TimeZone = DEFAULT) -> list[Finding]:
    """What the doctor finds, but for the source."""
    report = await examine(url, table, Decoder({}, 8192, zone), stream=False)
    return [found for found in report.findings if found.check in ("id_unique", "time_zone")]


# Ids.

HEAD = "DROP TABLE runs; CREATE TABLE runs (tenant text, id text, status text"

REPEATING = {
    "composite key": (
        f"{HEAD}, PRIMARY KEY (tenant, id))",
        'CREATE UNIQUE INDEX ON "public"."runs" (id);',
    ),
    "no key": (f"{HEAD})", 'ALTER TABLE "public"."runs" ADD PRIMARY KEY (id);'),
    "partial index": (
        f"{HEAD}, n int PRIMARY KEY); CREATE UNIQUE INDEX ON runs (id) WHERE status <> 'failed'",
        'CREATE UNIQUE INDEX ON "public"."runs" (id);',
    ),
    "index of two columns": (
        f"{HEAD}, n int PRIMARY KEY); CREATE UNIQUE INDEX ON runs (id, status)",
        'CREATE UNIQUE INDEX ON "public"."runs" (id);',
    ),
    "index of an expression of two columns": (
        f"{HEAD}, n int PRIMARY KEY); CREATE UNIQUE INDEX ON runs ((id || tenant))",
        'CREATE UNIQUE INDEX ON "public"."runs" (id);',
    ),
    "partitions by id": (
        f"{HEAD}) PARTITION BY HASH (id)",
        'ALTER TABLE "public"."runs" ADD PRIMARY KEY (id);',
    ),
}

NO_INDEX_CAN = {
    "partitions by another column": (
        f"{HEAD}, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);"
        " CREATE TABLE part PARTITION OF runs DEFAULT"
    ),
    "partitions of a partition by another column": (
        f"{HEAD}, PRIMARY KEY (tenant, id)) PARTITION BY HASH (id);"
        " CREATE TABLE part PARTITION OF runs FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        " PARTITION BY LIST (tenant); CREATE TABLE leaf PARTITION OF part DEFAULT"
    ),
    "inheritance": f"{HEAD}, PRIMARY KEY (id)); CREATE TABLE part () INHERITS (runs)",
}

UNIQUE = {
    "primary key": f"{HEAD}, PRIMARY KEY (id))",
    "unique index": (
        f"{HEAD}, PRIMARY KEY (tenant, id)); CREATE UNIQUE INDEX ON runs (id) INCLUDE (status)"
    ),
    "unique index of an expression of it": (
        f"{HEAD}, PRIMARY KEY (tenant, id)); CREATE UNIQUE INDEX ON runs (lower(id))"
    ),
    "partitions by it": (
        f"{HEAD}, PRIMARY KEY (id)) PARTITION BY HASH (id);"
        " CREATE TABLE part PARTITION OF runs FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
    ),
    "a view, of which nobody knows": (
        f"{HEAD}); ALTER TABLE runs RENAME TO hidden; CREATE VIEW runs AS SELECT * FROM hidden"
    ),
}


@follows(
    "CREATE UNIQUE INDEX ON {} ({});", "ALTER TABLE {} ADD PRIMARY KEY ({});", all_of_them=False
)
@pytest.mark.parametrize("name", REPEATING)
async def test_ids_that_may_repeat_are_found_and_the_hint_makes_them_unique(
    any_database: str, name: str
) -> None:
    create, hint = REPEATING[name]
    execute(any_database, create)
    (found,) = await look(any_database)
    assert (found.check, found.level, found.hint) == ("id_unique", "better", hint)
    paste(found.hint, any_database)
    assert await look(any_database) == []


@follows("{} -- make these unique: no index can")
@pytest.mark.parametrize("name", NO_INDEX_CAN)
async def test_where_no_index_can_make_ids_unique_the_hint_lists_those_that_repeat(
    any_database: str, name: str
) -> None:
    execute(any_database, NO_INDEX_CAN[name])
    execute(any_database, "INSERT INTO runs VALUES ('t1', 'a', 'queued'), ('t1', 'b', 'queued')")
    (found,) = await look(any_database)
    paste(found.hint, any_database)
    assert execute(any_database, found.hint) == []
    table = "part" if name == "inheritance" else "runs"
    execute(any_database, f"INSERT INTO {table} VALUES ('t2', 'a', 'running')")
    assert execute(any_database, found.hint) == [("a", 2)]


@pytest.mark.parametrize("name", UNIQUE)
async def test_ids_that_are_unique_are_no_finding(any_database: str, name: str) -> None:
    execute(any_database, UNIQUE[name])
    assert await look(any_database) == []


@pytest.mark.parametrize("partitions", ["", " PARTITION BY LIST (tenant)"])
async def test_the_hint_names_the_column_that_holds_the_ids(
    any_database: str, partitions: str
) -> None:
    execute(
        any_database,
        'DROP TABLE runs; CREATE TABLE runs (tenant text, "runId" text, status text,'
        f' PRIMARY KEY (tenant, "runId")){partitions}',
    )
    table = Table("public", "runs", ColumnMap.parse("id=runId"))
    (found,) = await look(any_database, table=table)
    assert '"runId"' in found.hint
    execute(any_database, found.hint)
    if not partitions:
        assert await look(any_database, table=table) == []


async def test_ids_that_repeat_come_before_the_index(any_database: str) -> None:
    execute(any_database, f"{HEAD}, PRIMARY KEY (tenant, id))")
    execute(any_database, "INSERT INTO runs VALUES ('t1', 'a', 'queued'), ('t2', 'a', 'queued')")
    (found,) = await look(any_database)
    assert "duplicate or NULL ids rule out a key" in found.detail + found.what
    query, index = found.hint.splitlines()
    assert execute(any_database, query) == [("a", 2)]
    execute(any_database, "DELETE FROM runs WHERE tenant = 't2'")
    execute(any_database, index.removeprefix("-- and then: "))
    assert await look(any_database) == []


@follows(
    "CREATE UNIQUE INDEX ON {} ({});", "{} -- make these unique: no index can", all_of_them=False
)
async def test_hints_name_the_columns_that_the_table_has(any_database: str) -> None:
    table = Table("public", "runs", ColumnMap.parse('id="runId",started_at="startedAt"'))
    head = 'DROP TABLE runs; CREATE TABLE runs ("runId" text, "startedAt" timestamp, status text'
    execute(any_database, f'{head}, PRIMARY KEY ("runId", status)) PARTITION BY LIST (status)')
    (found,) = await look(any_database, table=table)
    paste(found.hint, any_database)
    execute(any_database, f'{head}, PRIMARY KEY ("runId", status))')
    (found,) = await look(any_database, table=table)
    paste(found.hint, any_database)
    assert await look(any_database, table=table) == []
    (found,) = await look(any_database, table=table, zone=TimeZone.parse("Asia/Tokyo"))
    assert "write startedAt in its TimeZone" in found.what


def warned(f: Following) -> list[str]:
    return [warning.code for warning in f.follow.state.warnings]


async def test_a_running_brain_notices_that_ids_may_repeat_and_that_they_no_longer_may(
    any_database: str, mode: Mode
) -> None:
    execute(any_database, f"{HEAD}, PRIMARY KEY (tenant, id))")
    execute(any_database, "CREATE UNIQUE INDEX only_one ON runs (id)")
    async with Following(any_database, mode) as f:
        await f.source()
        assert warned(f) == []
        streams = f.follow.state.streams
        with capture_logs() as logs:
            await f.sql("DROP INDEX only_one")
            await f.until(lambda: warned(f) == ["id_unique"])
            await f.sql(f.follow.state.warnings[0].hint)
            await f.until(lambda: warned(f) == [])
        (line,) = (line for line in logs if line["event"] == "table warning")
        assert line["log_level"] == "warning"
        assert line["hint"] == 'CREATE UNIQUE INDEX ON "public"."runs" (id);'
        assert f.follow.state.losses == 0
        assert f.follow.state.streams == streams, "the stream does not depend on it"


# Time zones.

LOCAL = "ALTER TABLE runs ALTER started_at TYPE timestamp"


@pytest.fixture
def writer(any_postgres: Postgres, admin: str) -> Iterator[str]:
    """Another role that may write the table."""
    execute(any_postgres.url(), "DROP ROLE IF EXISTS zone_writer; CREATE ROLE zone_writer LOGIN")
    execute(admin, "GRANT UPDATE ON runs TO zone_writer")
    yield "zone_writer"
    execute(admin, "DROP OWNED BY zone_writer")
    execute(any_postgres.url(), "DROP ROLE zone_writer")


def database_zone(url: str, zone: str) -> str:
    return f"ALTER DATABASE \"{conninfo.conninfo_to_dict(url)['dbname']}\" SET TimeZone = '{zone}'"


@follows("BRAIN_TIMEZONE={}")
async def test_another_time_zone_of_the_database_is_found_and_the_hint_names_the_setting(
    any_database: str, admin: str
) -> None:
    execute(admin, database_zone(any_database, "Europe/Berlin"))
    assert await look(any_database) == [], "each column has a zone"
    execute(any_database, LOCAL)
    (found,) = await look(any_database)
    assert (found.check, found.level) == ("time_zone", "better")
    assert "write started_at in its TimeZone, Europe/Berlin" in found.what
    assert "for times in UTC (BRAIN_TIMEZONE)" in found.detail
    said = shell(found.hint, "brain doctor", BRAIN_DATABASE_URL=any_database)
    assert said.endswith("Brain streams public.runs.\n")
    assert "time" not in said
    (found,) = await look(any_database, zone=TimeZone.parse("Asia/Tokyo"))
    assert found.level == "note", "somebody has chosen it"


@pytest.mark.parametrize("zone", ["Etc/UTC", "GMT", "Etc/Greenwich", "UCT"])
async def test_other_names_of_the_same_zone_are_no_finding(
    any_database: str, admin: str, zone: str
) -> None:
    execute(any_database, LOCAL)
    execute(admin, database_zone(any_database, zone))
    assert await look(any_database) == []


@follows("ALTER DATABASE {} SET TimeZone = '{}';")
async def test_a_zone_that_has_no_name_is_found_and_the_hint_changes_it(
    any_database: str, admin: str
) -> None:
    execute(any_database, LOCAL)
    execute(admin, database_zone(any_database, "<+02>-02"))
    (found,) = await look(any_database)
    paste(found.hint, admin)
    assert await look(any_database) == []


@follows("ALTER ROLE {}{} SET TimeZone = '{}';")
@pytest.mark.parametrize("where", ["", " IN DATABASE {}"])
async def test_a_role_that_writes_in_another_zone_is_found_and_the_hint_changes_it(
    any_database: str, admin: str, writer: str, where: str
) -> None:
    where = where.format(conninfo.conninfo_to_dict(any_database)["dbname"])
    execute(any_database, LOCAL)
    execute(admin, f"ALTER ROLE {writer}{where} SET TimeZone = 'America/New_York'")
    (found,) = await look(any_database)
    assert "the role zone_writer writes started_at in its TimeZone, America/New_York" in found.what
    paste(found.hint, admin)
    assert await look(any_database) == []
    execute(admin, f"ALTER ROLE {writer}{where} SET TimeZone = 'America/New_York'")
    execute(admin, f"REVOKE UPDATE ON runs FROM {writer}")
    assert await look(any_database) == [], "it may not write"


async def test_brains_own_role_and_session_say_nothing_of_other_sessions(
    any_postgres: Postgres, any_database: str, admin: str
) -> None:
    execute(any_database, LOCAL)
    url = f"{any_database}?options=-ctimezone%3DAsia/Tokyo"
    assert await look(url) == []
    execute(admin, f"ALTER ROLE {ROLE} SET TimeZone = 'Asia/Tokyo'")
    try:
        (found,) = await look(any_database)
        assert f"the role {ROLE} writes" in found.what
        execute(admin, found.hint)
        assert await look(any_database) == []
    finally:
        execute(any_postgres.url(), f"ALTER ROLE {ROLE} RESET TimeZone")


async def test_a_zone_that_the_database_does_not_know_is_found(any_database: str) -> None:
    execute(any_database, LOCAL)
    (found,) = await look(any_database, zone=TimeZone("Europe/Nowhere", UTC))
    assert 'time zone "Europe/Nowhere" not recognized' in found.what
    assert (found.level, found.detail) == (
        "better",
        "POST and PATCH /api/runs cannot write started_at",
    )


def test_serve_warns_once_and_readyz_has_the_hint(any_database: str, admin: str) -> None:
    execute(any_database, f"{LOCAL}, DROP CONSTRAINT runs_pkey, ADD PRIMARY KEY (id, status)")
    execute(admin, database_zone(any_database, "Europe/Berlin"))
    with served(database_url=any_database) as brain:
        brain.wait_ready("replication")
        said = brain.get("/readyz")[1]["warnings"]
        lines = [line for line in brain.log().splitlines() if 'event="table warning"' in line]
    assert [each["code"] for each in said] == ["id_unique", "time_zone"]
    assert said[1]["hint"] == "BRAIN_TIMEZONE=Europe/Berlin"
    assert len(lines) == 2
    assert all("level=warning" in line for line in lines)
    execute(any_database, said[0]["hint"])
    with served(database_url=any_database, timezone="Europe/Berlin") as brain:
        brain.wait_ready("replication")
        assert brain.get("/readyz")[1]["warnings"] == []
        brain.request("POST", "/api/runs", {"id": "a", "status": "running"})
        ((near,),) = execute(
            any_database,
            "SELECT abs(extract(epoch FROM now() - started_at AT TIME ZONE 'Europe/Berlin')) < 600"
            " FROM runs",
        )
        assert near
