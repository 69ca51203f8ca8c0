"""The stream is refused, lost, or says nothing any more, and comes again: lines 7, 8, 17, 18 and 19 of the faults, end to end.

Whatever the source, clients are told in time; and /readyz says which it is, why it is not a better one, and what to run.
"""

import asyncio
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from brain.postgres.table import Table, init_sql
from tests.support.fleet import Fleet, Load, truth
from tests.support.pooler import MISSING, PROGRAM, pooled
from tests.support.postgres import VERSIONS, available, execute
from tests.support.scenarios import WITHIN, aside, detail, followed, fresh, sources, walsenders
from tests.support.served import Brain, message
from tests.support.template import ROLE, TEMPLATE

INSERT = "INSERT INTO runs (id, status) VALUES ('{}', 'running')"


def told(fleet: Fleet, url: str, run_id: str, seconds: float = WITHIN) -> None:
    """A change now is heard of by all."""
    execute(url, INSERT.format(run_id))
    fleet.told(f'"{run_id}"', seconds)


# Line 7. What the server, the role or what stands between refuses.


@aside
def test_07_refused_and_then_not() -> None:
    """No slot is left; the role may not replicate, or have a second connection. Then all of them may."""
    with fresh(max_replication_slots="3") as (server, url), ExitStack() as stack:
        for number in range(3):
            execute(server.url(), f"SELECT pg_create_physical_replication_slot('taken_{number}')")
        execute(
            server.url(),
            "CREATE ROLE reader LOGIN; CREATE ROLE lonely LOGIN REPLICATION CONNECTION LIMIT 1",
        )
        urls = [url, *(server.url(server.create_database(TEMPLATE, ROLE), ROLE) for _ in range(2))]
        reasons = [
            ("no replication slot is free", "max_replication_slots"),
            ("may not replicate", 'ALTER ROLE "reader" REPLICATION'),
            ("no connection for replication is free", "max_connections"),
        ]
        brains: list[tuple[Brain, Fleet]] = []
        for each, role in zip(urls, (ROLE, "reader", "lonely"), strict=True):
            if role != ROLE:
                execute(each, f"GRANT SELECT ON runs TO {role}")
            brains.append(
                stack.enter_context(followed(each.replace(f"{ROLE}@", f"{role}@"), "poll"))
            )
        for (brain, fleet), each, reason in zip(brains, urls, reasons, strict=True):
            detail(brain, *reason)
            told(fleet, each, "while it is refused")
            assert walsenders(each) == []
        said = [len(sources(brain)) for brain, _ in brains]
        for number in range(3):
            execute(server.url(), f"SELECT pg_drop_replication_slot('taken_{number}')")
        execute(server.url(), brains[1][0].get("/readyz")[1]["hint"])
        execute(server.url(), "ALTER ROLE lonely CONNECTION LIMIT -1")
        for (brain, fleet), each, before in zip(brains, urls, said, strict=True):
            brain.wait_ready("replication")
            told(fleet, each, "when it is not")
            fleet.check(each)
            assert len(sources(brain)) == before + 1


@aside
def test_07_no_walsender_is_left() -> None:
    with fresh(max_wal_senders="1") as (server, url):
        taken = psycopg.connect(server.url(replication="database"), autocommit=True)
        with followed(url, "poll") as (brain, fleet):
            detail(brain, "no connection for replication is free", "max_wal_senders")
            told(fleet, url, "while there is none")
            taken.close()
            brain.wait_ready("replication")
            fleet.check(url)


@aside
def test_07_wal_level_changes_over_restarts() -> None:
    with fresh(wal_level="replica") as (server, url), followed(url, "poll") as (brain, fleet):
        detail(brain, "wal_level is not logical", "ALTER SYSTEM SET wal_level = logical")
        told(fleet, url, "replica")
        for level, follows, senders in (
            ("logical", "replication", "20"),
            ("minimal", "poll", "0"),
            ("replica", "poll", "20"),
            ("logical", "replication", "20"),
        ):
            server.restart(wal_level=level, max_wal_senders=senders)
            told(fleet, url, f"{level} {senders} {time.monotonic()}")
            brain.wait_ready(follows)
            if follows == "poll":
                detail(brain, "wal_level is not logical" if senders != "0" else "max_wal_senders")
        fleet.check(url)


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
@aside
def test_07_a_pooler_between() -> None:
    """It passes no replication on, nor start-up options. What is behind it is polled."""
    with fresh() as (server, url), ExitStack() as stack:
        urls = [url, server.url(server.create_database(TEMPLATE, ROLE), ROLE)]
        for each, mode in zip(urls, ("transaction", "session"), strict=True):
            execute(
                each,
                f"ALTER ROLE {ROLE} SET datestyle = 'SQL, DMY'; ALTER ROLE {ROLE} SET timezone = 'Asia/Kolkata'",
            )
            brain, fleet = stack.enter_context(
                followed(stack.enter_context(pooled(each, mode)), "poll")
            )
            detail(brain, "what answers is a pooler", "name the database itself")
            with Load(each, 200):
                told(fleet, each, mode)
                time.sleep(0.5)
            execute(
                each,
                "UPDATE runs SET started_at = '2026-11-21 06:32:03.5+00' WHERE id = 'load-0-0'",
            )
            fleet.check(each)
            assert brain.request("POST", "/api/runs", {"id": "by the API"})[0] == 201
            fleet.check(each)


# Line 8.


@aside
def test_08_nothing_tells_rows_apart() -> None:
    """Then a publication would make the application's own UPDATEs fail (55000)."""
    with fresh() as (server, url), ExitStack() as stack:
        urls = [url, server.url(server.create_database(TEMPLATE, ROLE), ROLE)]
        for each in urls:
            execute(each, "DROP PUBLICATION brain_public_runs")
        execute(urls[0], "ALTER TABLE runs DROP CONSTRAINT runs_pkey")
        execute(urls[1], "ALTER TABLE runs REPLICA IDENTITY NOTHING")
        brains = [stack.enter_context(followed(each, "poll")) for each in urls]
        for (brain, fleet), each in zip(brains, urls, strict=True):
            detail(brain, "no replica identity that contains id")
            told(fleet, each, "a")
            execute(each, "UPDATE runs SET status = 'failed'")
            assert execute(each, "SELECT FROM pg_publication") == []
            fleet.check(each)
            execute(each, brain.get("/readyz")[1]["hint"])
        for (brain, fleet), each in zip(brains, urls, strict=True):
            brain.wait_ready("replication")
            execute(each, "UPDATE runs SET status = 'running'")
            fleet.check(each)


# Line 17. What goes silent without an error.


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(
            v, marks=pytest.mark.skipif(not available(v), reason=f"PostgreSQL {v} is not installed")
        )
        for v in VERSIONS
    ],
)
@aside
def test_17_silent_without_an_error(version: int) -> None:
    table = Table("public", "runs")
    changes = {
        "the publication is dropped": "DROP PUBLICATION brain_public_runs",
        "the publication loses the table": "ALTER PUBLICATION brain_public_runs DROP TABLE runs",
        "the table is dropped and made again": f"DROP TABLE runs; {init_sql(table)}",
        "the publication filters rows": "ALTER PUBLICATION brain_public_runs SET TABLE runs WHERE (id = 'x')",
    }
    if version != 18:
        changes = dict(list(changes.items())[:3:2])
    with fresh(version) as (server, url), ExitStack() as stack:
        urls = [
            url,
            *(
                server.url(server.create_database(TEMPLATE, ROLE), ROLE)
                for _ in range(1, len(changes))
            ),
        ]
        brains = [
            stack.enter_context(followed(each, anew="made again" in name))
            for each, name in zip(urls, changes, strict=True)
        ]
        for (_, fleet), each, (name, change) in zip(brains, urls, changes.items(), strict=True):
            told(fleet, each, "before")
            execute(each, change)
            execute(each, INSERT.format(name))
        for (brain, fleet), each, name in zip(brains, urls, changes, strict=True):
            fleet.told(f'"{name}"')
            if "filters" in name:
                detail(brain, "filters rows", "DROP PUBLICATION")
                assert brain.get("/readyz")[1]["source"] == "poll"
            else:
                brain.wait_ready("replication")
            told(fleet, each, "afterwards")
            fleet.check(each)


@aside
def test_17_the_table_is_renamed() -> None:
    """There is no such table any more: Brain says so, and is not ready, until there is."""
    with fresh() as (_, url), followed(url) as (brain, fleet):
        told(fleet, url, "before")
        execute(url, "ALTER TABLE runs RENAME TO others")
        detail(brain, "there is no table public.runs")
        assert brain.get("/readyz")[0] == 503
        execute(url, "ALTER TABLE others RENAME TO runs")
        told(fleet, url, "again")
        brain.wait_ready("replication")
        fleet.check(url)


# Line 18, but for what concerns rows.


@aside
def test_18_a_standby() -> None:
    """It is polled, and streamed once it is the primary."""
    with fresh() as (server, url):
        standby = server.standby()
        try:
            standby.start()
            there = url.replace(str(server.port), str(standby.port))
            with followed(there, "poll", anew=True) as (brain, fleet):
                detail(brain, "read replica", "primary")
                with Load(url, 200):
                    told(fleet, url, "by way of the primary")
                    time.sleep(0.5)
                Fleet.until(lambda: truth(url) == truth(there))
                fleet.check(there)
                standby.program("pg_ctl", "promote", "-D", str(standby.data))
                brain.wait_ready("replication")
                told(fleet, there, "promoted")
                fleet.check(there)
        finally:
            standby.remove()


@aside
def test_18_long_transactions_back_to_back() -> None:
    """There is never a moment without one, and the stream is joined all the same."""
    ended = threading.Event()

    def write(url: str, number: int) -> None:
        with psycopg.connect(url) as conn:
            time.sleep(number * 0.5)
            for i in range(1000):
                conn.execute("INSERT INTO runs (id) VALUES (%s)", (f"long-{number}-{i}",))
                ended.wait(1.5)
                conn.commit()
                if ended.is_set():
                    return

    with fresh() as (_, url):
        writers = [threading.Thread(target=write, args=(url, number)) for number in range(3)]
        for writer in writers:
            writer.start()
        try:
            time.sleep(1.2)
            with followed(url, "") as (brain, fleet):
                told(fleet, url, "meanwhile")
                brain.wait_ready("replication")
                ended.set()
                for writer in writers:
                    writer.join()
                fleet.check(url)
        finally:
            ended.set()


# Line 19. A new beginning.


async def refused(brain: Brain, since: str) -> bool:
    """Whether who comes back with this moment is told to load everything anew."""
    async with brain.connect(f"?since={since}") as client:
        try:
            await message(client)
        except ConnectionClosed as error:
            return error.rcvd is not None and error.rcvd.code == 4410
    return False


@aside
def test_19_restored_from_a_backup() -> None:
    with fresh() as (server, url), followed(url, anew=True) as (brain, fleet):
        told(fleet, url, "in the backup")
        execute(url, "INSERT INTO runs SELECT i, 'running' FROM generate_series(1, 50) i")
        fleet.check(url)
        server.stop()
        backup = server.folder / "backup"
        copy(server.data, backup)
        server.start()
        brain.wait_ready("replication")
        execute(url, "UPDATE runs SET status = 'failed'; INSERT INTO runs (id) VALUES ('lost')")
        fleet.told('"lost"')
        stamp = fleet.messages()[-1]["timestamp"]
        assert not asyncio.run(refused(brain, stamp))
        server.stop()
        shutil.rmtree(server.data)
        copy(backup, server.data)
        server.start()
        told(fleet, url, "after it")
        fleet.check(url)
        assert asyncio.run(refused(brain, stamp))
        brain.wait_ready("replication")


def copy(source: Path, target: Path) -> None:
    """With its owner, whom shutil would change."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@aside
def test_19_failed_over_to_a_standby() -> None:
    """The URL names both; the primary dies, and the standby takes its place."""
    with fresh() as (server, url):
        standby = server.standby()
        try:
            standby.start()
            both = url.replace(f":{server.port}/", f":{server.port},127.0.0.1:{standby.port}/")
            with followed(f"{both}?target_session_attrs=read-write", anew=True) as (brain, fleet):
                told(fleet, url, "before")
                stamp = fleet.messages()[-1]["timestamp"]
                there = url.replace(str(server.port), str(standby.port))
                Fleet.until(lambda: truth(there) == truth(url))
                server.kill()
                standby.program("pg_ctl", "promote", "-D", str(standby.data))
                told(fleet, there, "after it")
                brain.wait_ready("replication")
                fleet.check(there)
                assert asyncio.run(refused(brain, stamp))
        finally:
            standby.remove()
