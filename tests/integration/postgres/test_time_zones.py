"""A time without a zone is one of BRAIN_TIMEZONE, wherever Brain reads or writes it."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from psycopg import sql

from brain.postgres.polling import Mode
from brain.postgres.time_zone import DEFAULT, TimeZone
from tests.support.api import serving
from tests.support.following import Following
from tests.support.postgres import execute

BERLIN = TimeZone.parse("Europe/Berlin")
"""Clocks skip 02:00 to 03:00 on 2026-03-29, and show it twice on 2026-10-25."""

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",  # its winter time is what changes
    "Europe/Moscow",  # in October 2014 both offsets were standard time
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Casablanca",
    "Pacific/Apia",  # skipped a day
    "Asia/Kolkata",
)


def offset(zone: ZoneInfo, start: datetime, hours: int) -> timedelta | None:
    return (start + timedelta(hours=hours)).astimezone(zone).utcoffset()


def local_times(zone: ZoneInfo) -> list[datetime]:
    """Around each change of its clocks in these years, and some that are ordinary."""
    start = datetime(2011, 1, 1, tzinfo=UTC)
    days = range(0, 16 * 8766 + 24, 24)
    changes = [
        start + timedelta(hours=hour)
        for day, next_day in itertools.pairwise(days)
        if offset(zone, start, day) != offset(zone, start, next_day)
        for hour in range(day, next_day)
        if offset(zone, start, hour) != offset(zone, start, hour + 1)
    ]
    around = [
        (change + timedelta(minutes=15 * n)).astimezone(zone).replace(tzinfo=None)
        + timedelta(minutes=shift)
        for change in changes
        for n in range(-8, 9)
        for shift in (-60, 0, 60)
    ]
    ordinary = ("1880-01-01", "1970-01-01", "2026-11-21 09:30", "2050-07-01")
    return [*around, *map(datetime.fromisoformat, ordinary)]


@pytest.mark.parametrize("name", ZONES)
def test_a_local_time_is_the_moment_that_postgresql_takes_it_for(database: str, name: str) -> None:
    zone = TimeZone.parse(name)
    times = local_times(ZoneInfo(name))
    query = (
        "SELECT extract(epoch FROM (t AT TIME ZONE %s))::bigint"
        " FROM unnest(%s::timestamp[]) WITH ORDINALITY AS s(t, n) ORDER BY n"
    )
    found = [row[0] for row in execute(database, query, name, times)]
    assert [int(zone.moment(each).timestamp()) for each in times] == found


LOCAL = "ALTER TABLE runs ALTER started_at TYPE timestamp, ALTER completed_at TYPE date"


async def test_columns_without_a_zone_are_read_in_the_zone(any_database: str, mode: Mode) -> None:
    execute(any_database, LOCAL)
    async with Following(any_database, mode, zone=BERLIN) as f:
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, status, started_at, completed_at) VALUES"
            " ('winter', 'running', '2026-11-21 10:30:00', NULL),"
            " ('summer', 'completed', '2026-07-21 10:30:00.25', '2026-07-22'),"
            " ('skipped', 'running', '2026-03-29 02:30', NULL),"
            " ('twice', 'running', '2026-10-25 02:30', NULL),"
            " ('never', 'running', 'infinity', NULL)"
        )
        await f.until(lambda: len(f.board) == 5)
        assert {run_id: f.run(run_id)[5:7] for run_id in f.view()} == {
            "winter": ("2026-11-21T09:30:00Z", None),
            "summer": ("2026-07-21T08:30:00.250000Z", "2026-07-21T22:00:00Z"),
            "skipped": ("2026-03-29T01:30:00Z", None),
            "twice": ("2026-10-25T01:30:00Z", None),
            "never": (None, None),
        }


async def test_columns_with_a_zone_and_texts_with_an_offset_keep_theirs(
    any_database: str, mode: Mode
) -> None:
    execute(any_database, "ALTER TABLE runs ALTER completed_at TYPE text")
    async with Following(any_database, mode, zone=BERLIN) as f:
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, started_at, completed_at) VALUES"
            " ('a', '2026-11-21 10:30+01', '2026-11-21T10:30:00+01:00'),"
            " ('b', NULL, '2026-11-21T10:30:00')"
        )
        await f.until(lambda: len(f.board) == 2)
        assert f.run("a")[5:7] == ("2026-11-21T09:30:00Z", "2026-11-21T09:30:00Z")
        assert f.run("b")[6] == "2026-11-21T09:30:00Z"


@pytest.mark.parametrize("zone", [DEFAULT, BERLIN], ids=str)
async def test_the_api_writes_what_it_reads(any_database: str, zone: TimeZone) -> None:
    execute(any_database, LOCAL)
    execute(any_database, "CREATE DOMAIN local AS timestamp(3)")
    execute(any_database, "ALTER TABLE runs ALTER completed_at TYPE local")
    given = {"started_at": "2026-07-21T12:30:00.25+04:00", "completed_at": "2026-11-21T09:30:00Z"}
    async with serving(any_database, zone=zone) as client:
        made = await client.post("/api/runs", json={"id": "a", "status": "completed", **given})
        assert made.json()["started_at"] == "2026-07-21T08:30:00.250000Z"
        assert made.json()["completed_at"] == "2026-11-21T09:30:00Z"
        ((started, completed),) = execute(
            any_database, "SELECT started_at, completed_at FROM runs WHERE id = 'a'"
        )
        assert zone.moment(started) == datetime(2026, 7, 21, 8, 30, 0, 250000, UTC)
        assert zone.moment(completed) == datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
        # What the database's clock sets.
        await client.post("/api/runs", json={"id": "b", "status": "running"})
        await client.patch("/api/runs/b", json={"status": "completed"})
        ((late,),) = execute(
            any_database,
            sql.SQL(
                "SELECT greatest(now() - started_at AT TIME ZONE {0},"
                " now() - completed_at AT TIME ZONE {0}) < interval '10 minutes'"
                " AND least(now() - started_at AT TIME ZONE {0},"
                " now() - completed_at AT TIME ZONE {0}) > interval '-10 minutes'"
                " FROM runs WHERE id = 'b'"
            )
            .format(sql.Literal(zone.name))
            .as_string(),
        )
        assert late


async def test_the_zone_is_part_of_the_etag(any_database: str) -> None:
    execute(any_database, LOCAL)
    execute(any_database, "INSERT INTO runs (id, started_at) VALUES ('a', '2026-11-21 10:30')")
    tags = []
    for zone in (DEFAULT, BERLIN):
        async with serving(any_database, zone=zone) as client:
            tags.append((await client.get("/api/runs/a")).headers["ETag"])
    assert len(set(tags)) == 2


async def test_a_date_that_is_no_time_is_written_as_it_is(database: str) -> None:
    """Of a field that the contract takes for a text."""
    execute(database, "ALTER TABLE runs ALTER task_id TYPE date USING NULL")
    zone = TimeZone.parse("America/New_York")
    async with serving(database, zone=zone) as api:
        made = await api.post("/api/runs", json={"id": "a", "task_id": "2026-11-21"})
        assert made.json()["task_id"] == "2026-11-21"
    assert execute(database, "SELECT task_id::text FROM runs") == [("2026-11-21",)]
