"""The stream is refused, lost or silent, and comes back: running.md, "When the database
fails".

Whatever the source, clients receive changes in time. /readyz says which source it is, why it is no
better one, and what to run.
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


def changed(fleet: Fleet, url: str, run_id: str, seconds: float = WITHIN) -> None:
    """Insert a run, and wait until every client has received it."""
    execute(url, INSERT.format(run_id))
    fleet.received(f'"{run_id}"', seconds)


# The server, the role or a pooler refuses the stream


@aside
def test_polls_without_a_slot_or_the_right_to_replicate_and_streams_once_it_has_both() -> None:
    """No slot is free; the role may not replicate; it may not open a second connection."""
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
            changed(fleet, each, "while it is refused")
            assert walsenders(each) == []
        said = [len(sources(brain)) for brain, _ in brains]
        for number in range(3):
            execute(server.url(), f"SELECT pg_drop_replication_slot('taken_{number}')")
        execute(server.url(), brains[1][0].get("/readyz")[1]["hint"])
        execute(server.url(), "ALTER ROLE lonely CONNECTION LIMIT -1")
        for (brain, fleet), each, before in zip(brains, urls, said, strict=True):
            brain.wait_ready("replication")
            changed(fleet, each, "once it is allowed")
            fleet.check(each)
            assert len(sources(brain)) == before + 1


@aside
def test_polls_while_no_walsender_is_free_and_streams_afterwards() -> None:
    with fresh(max_wal_senders="1") as (server, url):
        taken = psycopg.connect(server.url(replication="database"), autocommit=True)
        with followed(url, "poll") as (brain, fleet):
            detail(brain, "no connection for replication is free", "max_wal_senders")
            changed(fleet, url, "while none is free")
            taken.close()
            brain.wait_ready("replication")
            fleet.check(url)


@aside
def test_the_source_follows_changes_of_wal_level() -> None:
    with fresh(wal_level="replica") as (server, url), followed(url, "poll") as (brain, fleet):
        detail(brain, "wal_level is not logical", "ALTER SYSTEM SET wal_level = logical")
        changed(fleet, url, "replica")
        for level, follows, senders in (
            ("logical", "replication", "20"),
            ("minimal", "poll", "0"),
            ("replica", "poll", "20"),
            ("logical", "replication", "20"),
        ):
            server.restart(wal_level=level, max_wal_senders=senders)
            changed(fleet, url, f"{level} {senders} {time.monotonic()}")
            brain.wait_ready(follows)
            if follows == "poll":
                detail(brain, "wal_level is not logical" if senders != "0" else "max_wal_senders")
        fleet.check(url)


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
@aside
def test_polls_through_a_pooler() -> None:
    """A pooler passes on neither replication nor start-up options."""
    with fresh() as (server, url), ExitStack() as stack:
        urls = [url, server.url(server.create_database(TEMPLATE, ROLE), ROLE)]
        for each, mode in zip(urls, ("transaction", "session"), strict=True):
            execute(
                each,
                f"ALTER ROLE {ROLE} SET datestyle = 'SQL, DMY';"
                f" ALTER ROLE {ROLE} SET timezone = 'Asia/Kolkata'",
            )
            brain, fleet = stack.enter_context(
                followed(stack.enter_context(pooled(each, mode)), "poll")
            )
            detail(brain, "what answers is a pooler", "name the database itself")
            with Load(each, 200):
                changed(fleet, each, mode)
                time.sleep(0.5)
            execute(
                each,
                "UPDATE runs SET started_at = '2026-11-21 06:32:03.5+00' WHERE id = 'load-0-0'",
            )
            fleet.check(each)
            assert brain.request("POST", "/api/runs", {"id": "by the API"})[0] == 201
            fleet.check(each)


# The table has no replica identity


@aside
def test_polls_and_publishes_nothing_without_a_replica_identity() -> None:
    """A publication would make the application's own UPDATEs fail (55000)."""
    with fresh() as (server, url), ExitStack() as stack:
        urls = [url, server.url(server.create_database(TEMPLATE, ROLE), ROLE)]
        for each in urls:
            execute(each, "DROP PUBLICATION brain_public_runs")
        execute(urls[0], "ALTER TABLE runs DROP CONSTRAINT runs_pkey")
        execute(urls[1], "ALTER TABLE runs REPLICA IDENTITY NOTHING")
        brains = [stack.enter_context(followed(each, "poll")) for each in urls]
        for (brain, fleet), each in zip(brains, urls, strict=True):
            detail(brain, "no replica identity that contains id")
            changed(fleet, each, "a")
            execute(each, "UPDATE runs SET status = 'failed'")
            assert execute(each, "SELECT FROM pg_publication") == []
            fleet.check(each)
            execute(each, brain.get("/readyz")[1]["hint"])
        for (brain, fleet), each in zip(brains, urls, strict=True):
            brain.wait_ready("replication")
            execute(each, "UPDATE runs SET status = 'running'")
            fleet.check(each)


# The stream goes silent without an error


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
def test_a_change_that_silences_the_stream_is_noticed(version: int) -> None:
    table = Table("public", "runs")
    changes = {
        "the publication is dropped": "DROP PUBLICATION brain_public_runs",
        "the publication loses the table": "ALTER PUBLICATION brain_public_runs DROP TABLE runs",
        "the table is dropped and made again": f"DROP TABLE runs; {init_sql(table)}",
        "the publication filters rows": (
            "ALTER PUBLICATION brain_public_runs SET TABLE runs WHERE (id = 'x')"
        ),
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
            stack.enter_context(followed(each, reload="made again" in name))
            for each, name in zip(urls, changes, strict=True)
        ]
        for (_, fleet), each, (name, change) in zip(brains, urls, changes.items(), strict=True):
            changed(fleet, each, "before")
            execute(each, change)
            execute(each, INSERT.format(name))
        for (brain, fleet), each, name in zip(brains, urls, changes, strict=True):
            fleet.received(f'"{name}"')
            if "filters" in name:
                detail(brain, "filters rows", "DROP PUBLICATION")
                assert brain.get("/readyz")[1]["source"] == "poll"
            else:
                brain.wait_ready("replication")
            changed(fleet, each, "afterwards")
            fleet.check(each)


@aside
def test_brain_is_not_ready_while_the_table_has_another_name() -> None:
    """Until the table exists again, Brain is not ready and says why."""
    with fresh() as (_, url), followed(url) as (brain, fleet):
        changed(fleet, url, "before")
        execute(url, "ALTER TABLE runs RENAME TO others")
        detail(brain, "there is no table public.runs")
        assert brain.get("/readyz")[0] == 503
        execute(url, "ALTER TABLE others RENAME TO runs")
        changed(fleet, url, "again")
        brain.wait_ready("replication")
        fleet.check(url)


# Standbys and long transactions


@aside
def test_polls_a_standby_and_streams_once_it_is_promoted() -> None:
    with fresh() as (server, url):
        standby = server.standby()
        try:
            standby.start()
            there = url.replace(str(server.port), str(standby.port))
            with followed(there, "poll", reload=True) as (brain, fleet):
                detail(brain, "read replica", "primary")
                with Load(url, 200):
                    changed(fleet, url, "by way of the primary")
                    time.sleep(0.5)
                Fleet.until(lambda: truth(url) == truth(there))
                fleet.check(there)
                standby.program("pg_ctl", "promote", "-D", str(standby.data))
                brain.wait_ready("replication")
                changed(fleet, there, "promoted")
                fleet.check(there)
        finally:
            standby.remove()


@aside
def test_streams_although_a_write_transaction_is_always_open() -> None:
    """Long transactions overlap, so there is no moment without one."""
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
                changed(fleet, url, "during a transaction")
                brain.wait_ready("replication")
                ended.set()
                for writer in writers:
                    writer.join()
                fleet.check(url)
        finally:
            ended.set()


# A new history


async def refused(brain: Brain, since: str) -> bool:
    """Whether a client that reconnects with this `since` is closed with 4410."""
    async with brain.connect(f"?since={since}") as client:
        try:
            await message(client)
        except ConnectionClosed as error:
            return error.rcvd is not None and error.rcvd.code == 4410
    return False


@aside
def test_every_client_reloads_after_a_restore_from_a_backup() -> None:
    with fresh() as (server, url), followed(url, reload=True) as (brain, fleet):
        changed(fleet, url, "in the backup")
        execute(url, "INSERT INTO runs SELECT i, 'running' FROM generate_series(1, 50) i")
        fleet.check(url)
        server.stop()
        backup = server.folder / "backup"
        copy(server.data, backup)
        server.start()
        brain.wait_ready("replication")
        execute(url, "UPDATE runs SET status = 'failed'; INSERT INTO runs (id) VALUES ('lost')")
        fleet.received('"lost"')
        stamp = fleet.messages()[-1]["timestamp"]
        assert not asyncio.run(refused(brain, stamp))
        server.stop()
        shutil.rmtree(server.data)
        copy(backup, server.data)
        server.start()
        changed(fleet, url, "after it")
        fleet.check(url)
        assert asyncio.run(refused(brain, stamp))
        brain.wait_ready("replication")


def copy(source: Path, target: Path) -> None:
    """Keeps the owner of the files, which shutil does not."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@aside
def test_every_client_reloads_after_a_failover() -> None:
    """The URL names both. The primary is killed, and the standby is promoted."""
    with fresh() as (server, url):
        standby = server.standby()
        try:
            standby.start()
            both = url.replace(f":{server.port}/", f":{server.port},127.0.0.1:{standby.port}/")
            with followed(f"{both}?target_session_attrs=read-write", reload=True) as (brain, fleet):
                changed(fleet, url, "before")
                stamp = fleet.messages()[-1]["timestamp"]
                there = url.replace(str(server.port), str(standby.port))
                Fleet.until(lambda: truth(there) == truth(url))
                server.kill()
                standby.program("pg_ctl", "promote", "-D", str(standby.data))
                changed(fleet, there, "after it")
                brain.wait_ready("replication")
                fleet.check(there)
                assert asyncio.run(refused(brain, stamp))
        finally:
            standby.remove()
