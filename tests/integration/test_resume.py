"""Clients resume over a restart of Brain: a clean stop, a SIGKILL, a crash of PostgreSQL."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from brain.contract.messages import iso, parse_time
from tests.support.patience import PATIENCE, eventually
from tests.support.ports import free_port
from tests.support.postgres import Postgres, available, execute, running
from tests.support.served import Brain, Message, message, messages, until
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = pytest.mark.long

GAP = 4410
ENDS = [signal.SIGTERM, signal.SIGKILL]


class Lives:
    """One Brain after another, in one folder and on one port."""

    def __init__(self, folder: Path | None, **settings: Any) -> None:
        self.settings: dict[str, Any] = {"port": free_port(), "follows": "", "folder": folder}
        self.settings.update(settings)
        self.brain = Brain(**self.settings)
        self.settings["folder"] = self.brain.folder

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.brain.stop(number) == (0 if number == signal.SIGTERM else -number)

    def begin(self, **settings: Any) -> Brain:
        self.brain.log_file.unlink()
        self.brain = Brain(**{**self.settings, **settings})
        return self.brain

    def stamp(self) -> str:
        _, document = self.brain.get("/api/runs")
        stamp: str = document["timestamp"]
        return stamp


@contextmanager
def lives(folder: Path | None, **settings: Any) -> Iterator[Lives]:
    found = Lives(folder, **settings)
    try:
        yield found
    finally:
        if found.brain.process.poll() is None:
            found.brain.stop(signal.SIGKILL)


def files(folder: Path) -> list[Path]:
    """Of records."""
    return list((folder / ".brain" / "resume").iterdir())


async def since(brain: Brain, stamp: str, count: int, query: str = "") -> list[Message]:
    """The first messages of who comes back with this timestamp."""
    async with brain.connect(f"?since={stamp}{query}") as client:
        return await messages(client, count)


async def close_code(brain: Brain, stamp: str) -> int | None:
    """Of a connection with this `since`."""
    async with brain.connect(f"?since={stamp}") as client:
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(PATIENCE):
                await client.recv()
        return client.close_code


async def at_progress(client: ClientConnection, progress: float) -> Message:
    while (found := await message(client))["data"].get("progress") != progress:
        pass
    return found


def states(found: list[Message]) -> list[tuple[str, str]]:
    return [(each["data"]["id"], each["data"]["status"]) for each in found]


@pytest.mark.parametrize("source", ["auto", "poll"])
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
async def test_a_run_that_ends_while_brain_is_away_is_told(
    database: str, tmp_path: Path, source: str, number: signal.Signals
) -> None:
    follows = "poll" if source == "poll" else "replication"
    options: dict[str, Any] = {"source": source, "follows": follows}
    with lives(tmp_path, database_url=database, **options) as brains:
        execute(database, "INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')")
        async with brains.brain.connect() as client:
            execute(database, "UPDATE runs SET progress = 5 WHERE id = 'a'")
            last = await at_progress(client, 5)
        brains.end(number)
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'b'")
        brain = brains.begin()
        # In the order in which the table has them: nobody knows which of the two changed first.
        found = sorted(
            await since(brain, last["timestamp"], 2), key=lambda each: each["data"]["id"]
        )
        assert states(found) == [("a", "running"), ("b", "completed")]
        assert found[0]["data"] == last["data"]
        # Who filters hears of it too, although nobody knows any more what the run was.
        (only,) = await since(brain, last["timestamp"], 1, "&status=running&run_id=b")
        assert only["type"] == "run_complete"
        document = brain.get("/readyz")[1]
        assert document["resume_detail"] is None
        assert 0 < document["resume_seconds"] <= document["since_seconds"]
        assert brain.metric("brain_since_seconds") > 0
        assert brain.metric("brain_gaps_total") == 0


async def test_an_idle_client_of_a_quiet_table_resumes(database: str, tmp_path: Path) -> None:
    """Other tables are busy, so the horizon moves on; the time of the last change does not."""
    with lives(tmp_path, database_url=database, source="poll", resume=0.05) as brains:
        async with brains.brain.connect() as client:
            execute(database, "INSERT INTO runs VALUES ('a', 'running')")
            last = await message(client)
        execute(database, "CREATE TABLE other (id int)")
        for _ in range(3):
            for _ in range(20):
                execute(database, "INSERT INTO other VALUES (1)")
            brains.end(signal.SIGKILL)
            brains.begin()
        execute(database, "UPDATE runs SET status = 'completed'")
        async with brains.brain.connect(f"?since={last['timestamp']}") as client:
            assert (await until(client, "a", "completed"))[0]["timestamp"] >= last["timestamp"]


async def test_a_client_that_has_what_the_api_said_resumes(database: str, tmp_path: Path) -> None:
    with lives(tmp_path, database_url=database) as brains:
        execute(database, "INSERT INTO runs VALUES ('a', 'completed'), ('b', 'running')")
        stamp = brains.stamp()
        brains.end(signal.SIGKILL)
        execute(database, "UPDATE runs SET status = 'failed' WHERE id = 'b'")
        found = await since(brains.begin(), stamp, 1, "&status=failed&run_id=b")
        assert states(found) == [("b", "failed")]


async def test_a_since_beyond_the_last_change_is_answered(database: str, tmp_path: Path) -> None:
    """A good clock is ahead of a table in which nothing changes."""
    with lives(tmp_path, database_url=database) as brains:
        execute(database, "INSERT INTO runs VALUES ('a', 'running')")
        ahead = iso(parse_time(brains.stamp()) + 3_600_000_000)
        brains.end()
        brain = brains.begin()
        async with brain.connect(f"?since={ahead}") as client:
            execute(database, "UPDATE runs SET progress = 7")
            assert (await message(client))["data"]["progress"] == 7


async def test_time_goes_on_where_it_ended_before_the_restart(
    database: str, tmp_path: Path
) -> None:
    """As if the database's clock had been set back by a minute."""
    with lives(tmp_path, database_url=database) as brains:
        execute(database, "INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')")
        stamp = brains.stamp()
        brains.end(signal.SIGKILL)
        (file,) = (tmp_path / ".brain" / "resume").iterdir()
        data = bytearray(file.read_bytes())
        high = int.from_bytes(data[16:24], "little") + 60_000_000
        data[16:24] = high.to_bytes(8, "little")
        file.write_bytes(data)
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'b'")
        brain = brains.begin()
        (found,) = await since(brain, iso(high), 1)
        if states([found]) == [("a", "running")]:  # sent once more, as any run may be
            _, found = await since(brain, iso(high), 2)
        assert states([found]) == [("b", "completed")]
        assert found["timestamp"] == iso(high)
        assert stamp < iso(high)
        assert brains.stamp() >= iso(high)


async def test_a_since_before_the_records_is_a_gap(database: str, tmp_path: Path) -> None:
    with lives(tmp_path, database_url=database) as brains:
        early = iso(parse_time(brains.stamp()) - 60_000_000)
        brains.end()
        assert await close_code(brains.begin(), early) == GAP


async def test_without_records_a_restart_is_a_gap(database: str, tmp_path: Path) -> None:
    """They are off in the second life. What the first recorded does not count in the third."""
    with lives(tmp_path, database_url=database) as brains:
        stamp = brains.stamp()
        brains.end()
        brain = brains.begin(resume=0)
        assert await close_code(brain, stamp) == GAP
        document = brain.get("/readyz")[1]
        assert (document["resume_seconds"], document["resume_detail"]) == (0, "BRAIN_RESUME is 0")


async def test_a_second_brain_on_the_folder_works_without_records(
    database: str, tmp_path: Path
) -> None:
    folders: dict[str, Any] = {"database_url": database, "data_dir": tmp_path / "data"}
    with lives(None, **folders) as brains:
        with lives(None, **folders) as others:
            document = others.brain.get("/readyz")[1]
            assert "in use by another Brain" in document["resume_detail"]
            assert document["resume_seconds"] == 0
            async with others.brain.connect() as client:
                execute(database, "INSERT INTO runs VALUES ('a', 'running')")
                assert states([await message(client)]) == [("a", "running")]
            others.end()
        assert brains.brain.get("/readyz")[1]["resume_detail"] is None


async def test_who_lacked_the_file_takes_it_over_when_the_other_is_killed(
    database: str, tmp_path: Path
) -> None:
    """Within seconds, and not at its next start. Clients of both resume over that."""
    folders: dict[str, Any] = {"database_url": database, "data_dir": tmp_path, "source": "poll"}
    with lives(None, **folders) as brains, lives(None, **folders) as others:
        execute(database, "INSERT INTO runs VALUES ('a', 'running')")
        stamp = brains.stamp()
        assert "in use by another" in others.brain.get("/readyz")[1]["resume_detail"]
        brains.end(signal.SIGKILL)

        def taken_over() -> bool:
            execute(database, "UPDATE runs SET progress = 1 WHERE id = 'a'")
            return others.brain.get("/readyz")[1]["resume_detail"] is None

        await eventually(taken_over, pause=0.1)
        assert others.brain.log().count("no resume over restarts") == 1
        assert parse_time(others.stamp()) >= parse_time(stamp)
        stamp = others.stamp()
        others.end(signal.SIGKILL)
        execute(database, "UPDATE runs SET status = 'completed'")
        (found,) = await since(others.begin(), stamp, 1, "&status=completed")
        assert states([found]) == [("a", "completed")]


YEAR = 365 * 86_400_000_000
CLOCK = (
    "CREATE SCHEMA ahead; CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
    " AS $$ SELECT pg_catalog.clock_timestamp() + interval '365 days' $$"
)


def database_setting(url: str, change: str) -> None:
    """For sessions that begin later."""
    ((name,),) = execute(url, "SELECT current_database()")
    execute(url, f'ALTER DATABASE "{name}" {change}')


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
async def test_a_clock_that_was_far_ahead_ends_with_a_restart(
    database: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Who has a time of the future starts over, once. Others have times of now."""
    execute(database, CLOCK)
    execute(database, "INSERT INTO runs VALUES ('a', 'running')")
    with lives(tmp_path, database_url=database, source="poll") as brains:
        early = brains.stamp()
        brains.end(number)
        database_setting(database, "SET search_path = ahead, pg_catalog, public")
        brain = brains.begin()
        async with brain.connect(f"?since={early}") as client:
            execute(database, "UPDATE runs SET progress = 4")
            ahead = (await at_progress(client, 4))["timestamp"]
        assert parse_time(ahead) - parse_time(early) > YEAR - 3600_000_000
        brains.end(number)
        database_setting(database, "RESET search_path")
        brain = brains.begin()
        stamp = brains.stamp()
        assert parse_time(stamp) - parse_time(early) < YEAR / 2
        assert "s ahead" in brain.get("/readyz")[1]["since_detail"]
        assert brain.metric("brain_resume_voids_total") == 1
        assert await close_code(brain, ahead) == GAP
        assert await close_code(brain, early) == GAP
        # From now on all is well, also over a restart.
        brains.end(number)
        execute(database, "UPDATE runs SET progress = 5")
        brain = brains.begin()
        async with brain.connect(f"?since={stamp}") as client:
            found = await at_progress(client, 5)
        assert parse_time(found["timestamp"]) - parse_time(early) < YEAR / 2
        assert brain.metric("brain_resume_voids_total") == 0
        assert await close_code(brain, ahead) == GAP


SETTINGS: dict[str, dict[str, str]] = {
    "BRAIN_MAX_TEXT changed": {"max_text": "100"},
    "BRAIN_STATUS_MAP changed": {"status_map": "paused=queued"},
    "BRAIN_TIMEZONE changed": {"timezone": "Asia/Shanghai"},
    "the columns that Brain reads changed": {"column_map": "agent=task_id,task_id=agent"},
    "the role changed": {},
}


@pytest.mark.parametrize("detail", SETTINGS)
async def test_a_setting_that_changes_messages_is_a_gap_and_is_named(
    database: str, superuser_url: str, tmp_path: Path, detail: str
) -> None:
    execute(database, "INSERT INTO runs VALUES ('a', 'running')")
    settings: dict[str, Any] = SETTINGS[detail] or {"database_url": superuser_url}
    with lives(tmp_path, database_url=database) as brains:
        stamp = brains.stamp()
        brains.end()
        brain = brains.begin(**settings)
        assert await close_code(brain, stamp) == GAP
        document = brain.get("/readyz")[1]
        assert (document["since_detail"], document["resume_detail"]) == (detail, None)
        (line,) = re.findall(r".*clients from before start over.*", brain.log())
        assert detail in line
        assert brain.metric("brain_resume_voids_total") == 1
        # The next start, with the same settings, is none.
        stamp = brains.stamp()
        brains.end()
        brain = brains.begin(**settings)
        assert brain.get("/readyz")[1]["since_detail"] is None
        async with brain.connect(f"?since={stamp}") as client:
            execute(database, "UPDATE runs SET progress = 5")
            await at_progress(client, 5)


@pytest.mark.parametrize("harm", ["truncated", "removed"])
async def test_a_brain_outlives_what_others_do_to_its_file(
    database: str, tmp_path: Path, harm: str
) -> None:
    """And clients resume over its next restart."""
    execute(database, "INSERT INTO runs VALUES ('a', 'running')")
    with lives(tmp_path, database_url=database, source="poll") as brains:
        brain = brains.brain
        stamp = brains.stamp()
        (file,) = files(tmp_path)
        if harm == "truncated":
            os.truncate(file, 0)
        else:
            file.unlink()

        def repaired() -> bool:
            execute(database, "UPDATE runs SET progress = 1")
            return "the records are written again" in brain.log()

        await eventually(repaired, pause=0.1)
        brains.end(signal.SIGKILL)
        execute(database, "UPDATE runs SET status = 'completed'")
        (found,) = await since(brains.begin(), stamp, 1, "&status=completed")
        assert states([found]) == [("a", "completed")]


def mount(*arguments: str) -> bool:
    return os.geteuid() == 0 and not subprocess.run(["mount", *arguments], check=False).returncode


def unmount(data: Path) -> None:
    subprocess.run(["umount", "-l", data], check=False)


async def test_a_brain_outlives_a_full_disk(database: str, tmp_path: Path) -> None:
    """No room for the file: Brain works without it, says so once, and makes it when there is."""
    data = tmp_path / "data"
    os.mkdir(data)  # noqa: PTH102
    if not mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(data)):
        pytest.skip("only root may mount a disk")
    try:
        execute(database, "INSERT INTO runs VALUES ('a', 'running')")
        options: dict[str, Any] = {"database_url": database, "data_dir": data, "source": "poll"}
        with lives(tmp_path, **options) as brains:
            brain = brains.brain
            assert "No space left" in brain.get("/readyz")[1]["resume_detail"]
            async with brain.connect() as client:
                execute(database, "UPDATE runs SET progress = 5")
                await at_progress(client, 5)
            assert mount("-o", "remount,size=1m", str(data))

            def recorded() -> bool:
                execute(database, "UPDATE runs SET progress = 6")
                return brain.get("/readyz")[1]["resume_detail"] is None

            await eventually(recorded, pause=0.1)
            assert brain.log().count("no resume over restarts") == 1
            stamp = brains.stamp()
            brains.end(signal.SIGKILL)
            execute(database, "UPDATE runs SET status = 'completed'")
            (found,) = await since(brains.begin(), stamp, 1, "&status=completed")
            assert states([found]) == [("a", "completed")]
    finally:
        unmount(data)


async def test_a_folder_that_cannot_be_written_is_said_once_and_harms_nothing(
    database: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with lives(tmp_path, database_url=database, data_dir=tmp_path / "file") as brains:
        brain = brains.brain
        async with brain.connect() as client:
            execute(database, "INSERT INTO runs VALUES ('a', 'running')")
            assert states([await message(client)]) == [("a", "running")]
        assert brain.log().count("no resume over restarts") == 1
        assert "cannot be written" in brain.get("/readyz")[1]["resume_detail"]


async def test_clients_of_the_embedded_postgresql_resume() -> None:
    postgres_port = free_port()
    with lives(None, follows="replication", postgres_port=postgres_port) as brains:
        url = f"postgresql://cecelia@127.0.0.1:{postgres_port}/cecelia"
        execute(url, "INSERT INTO runs VALUES ('a', 'running')")
        stamp = brains.stamp()
        brains.end(signal.SIGKILL)
        brain = brains.begin()
        execute(url, "UPDATE runs SET status = 'completed'")
        async with brain.connect(f"?since={stamp}") as client:
            await until(client, "a", "completed")
        brains.end()
        names = {path.name for path in (brain.folder / ".brain").iterdir()}
        assert names >= {"resume", "lock", "postgres"}


# Crashes of PostgreSQL. A commit that is not flushed is lost, and its transaction's id is given to
# another.

LOSSY = {"fsync": "on", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
LOST = "UPDATE runs SET progress = 50 WHERE id = 'a'"


@contextmanager
def crashing(version: int) -> Iterator[tuple[Postgres, str]]:
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with running(version, **LOSSY) as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        execute(url, "INSERT INTO runs VALUES ('a', 'running'), ('b', 'running')")
        yield server, url


def commit_unflushed(url: str, statement: str) -> None:
    execute(url, f"BEGIN; SET LOCAL synchronous_commit = off; {statement}; COMMIT")


async def until_durable(brains: Lives, url: str) -> None:
    """Until a mark has been passed since the last rows that a query read.

    Commits to another table flush the log.
    """
    execute(url, "CREATE TABLE IF NOT EXISTS other ()")

    def is_durable() -> bool:
        execute(url, "INSERT INTO other DEFAULT VALUES")
        (file,) = (brains.brain.folder / ".brain" / "resume").iterdir()
        return any(file.read_bytes()[24:32])

    await eventually(is_durable, pause=0.05)


@pytest.mark.parametrize("version", [18, 15])
@pytest.mark.parametrize("source", ["auto", "poll"])
async def test_clients_stay_when_postgresql_crashes_and_nothing_was_lost(
    tmp_path: Path, source: str, version: int
) -> None:
    with (
        crashing(version) as (server, url),
        lives(tmp_path, database_url=url, source=source) as brains,
    ):
        brain = brains.brain
        if source == "auto":
            brain.wait_ready("replication")
        async with brain.connect() as client:
            execute(url, "UPDATE runs SET progress = 5 WHERE id = 'a'")
            last = await at_progress(client, 5)
            await until_durable(brains, url)
            await asyncio.to_thread(server.crash)
            execute(url, "UPDATE runs SET status = 'completed' WHERE id = 'b'")
            while (found := await message(client))["data"]["id"] == "a":
                assert found["data"] == last["data"]
            assert states([found]) == [("b", "completed")]
        # And so does who comes back after another crash, and a restart of Brain.
        await until_durable(brains, url)
        brains.end(signal.SIGKILL)
        await asyncio.to_thread(server.crash)
        execute(url, "UPDATE runs SET status = 'failed' WHERE id = 'a'")
        found = (await since(brains.begin(), last["timestamp"], 1, "&status=failed&run_id=a"))[0]
        assert states([found]) == [("a", "failed")]


@pytest.mark.parametrize("alive", [True, False], ids=["Brain lives", "Brain is killed too"])
async def test_who_saw_a_change_that_a_crash_of_postgresql_lost_starts_over(
    tmp_path: Path, *, alive: bool
) -> None:
    with (
        crashing(18) as (server, url),
        lives(tmp_path, database_url=url, source="poll") as brains,
    ):
        await until_durable(brains, url)
        brain = brains.brain
        async with brain.connect() as client:
            commit_unflushed(url, LOST)
            lost = await at_progress(client, 50)
            if not alive:
                brains.end(signal.SIGKILL)
            await asyncio.to_thread(server.crash)
            assert execute(url, "SELECT progress FROM runs WHERE id = 'a'") == [(None,)]
            if alive:
                with pytest.raises(ConnectionClosed):
                    await message(client)
                assert client.close_code == GAP
        if not alive:
            brain = brains.begin()
            assert "crashed" in brain.log()
        assert await close_code(brain, lost["timestamp"]) == GAP


async def test_a_poll_finds_what_took_the_id_of_a_lost_transaction(tmp_path: Path) -> None:
    with (
        crashing(18) as (server, url),
        lives(tmp_path, database_url=url, source="poll") as brains,
    ):
        brain = brains.brain
        commit_unflushed(url, LOST)
        async with brain.connect("?snapshot=true") as client:
            await at_progress(client, 50)
        await asyncio.to_thread(server.crash)
        execute(url, "UPDATE runs SET progress = 7 WHERE id = 'b'")
        async with asyncio.timeout(PATIENCE):
            while await progress_of(brain, "b") != 7:
                await asyncio.sleep(0.05)


async def progress_of(brain: Brain, run_id: str) -> object:
    """As the board has it."""
    with contextlib.suppress(ConnectionClosed):
        async with brain.connect(f"?snapshot=true&run_id={run_id}") as client:
            return (await message(client))["data"].get("progress")
    return None
