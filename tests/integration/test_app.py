"""The wiring, as who runs Brain sees it: which source is in use, and why it is not a better one."""

import re
import signal
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.contract.close_codes import GAP
from brain.postgres import follow
from tests.support.following import Following
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.served import Brain, served
from tests.support.template import own
from tests.support.wire import Peer


def causes(brain: Brain) -> list[str]:
    """Those that are 1."""
    found = re.findall(
        r'^brain_source_code\{code="(\w+)"\} (\S+)$', brain.get("/metrics")[1], re.MULTILINE
    )
    assert len(found) > 20
    return [cause for cause, value in found if float(value) == 1]


def until(brain: Brain, cause: str | None) -> dict[str, Any]:
    """/readyz, once it says so."""
    deadline = time.monotonic() + PATIENCE
    while (document := brain.get("/readyz")[1])["code"] != cause:
        assert time.monotonic() < deadline, document
        time.sleep(0.02)
    return dict(document)


def sources(brain: Brain) -> list[str]:
    return re.findall(r"event=source (.*)", brain.log())


def test_the_source_and_its_cause_are_said_in_three_places() -> None:
    """/readyz, the metrics and the log; through poll, none and replication."""
    with (
        own(wal_level="replica") as (server, url),
        served(database_url=url, follows="poll") as brain,
    ):
        document = until(brain, "wal_level")
        assert (document["ready"], document["source"]) == (True, "poll")
        assert document["detail"].startswith("wal_level is not logical: ")
        assert causes(brain) == ["wal_level"]
        assert brain.metric('brain_source{source="poll"}') == 1
        assert sum("wal_level" in line for line in sources(brain)) == 1
        execute(server.url(), document["hint"].partition(";")[0])
        server.stop()
        document = until(brain, "away")
        assert (document["ready"], document["source"]) == (False, "none")
        assert causes(brain) == ["away"]
        server.start()
        brain.wait_ready("replication")
        document = until(brain, None)
        assert (document["detail"], document["hint"]) == (None, None)
        assert causes(brain) == []
        said = sources(brain)
        assert said[-1] == "now=replication"
        assert len(said) == len(
            [a for a, b in zip(said, [*said[1:], ""], strict=True) if a != b]
        ), said


def test_polling_by_choice_is_said_to_be_one(database: str) -> None:
    with served(database_url=database, source="poll", follows="poll") as brain:
        document = until(brain, "chosen")
        assert (document["detail"], document["hint"]) == (
            "BRAIN_SOURCE is poll",
            "BRAIN_SOURCE=auto",
        )
        assert causes(brain) == ["chosen"]


async def test_a_stream_that_is_refused_again_and_again_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "PROMOTE_EVERY", 0.02)
    with own(wal_level="replica") as (server, url):
        tries = len(re.findall("logical decoding requires", server.log()))
        with capture_logs() as logs:
            async with Following(url, "auto") as f:
                await f.until(
                    lambda: len(re.findall("logical decoding requires", server.log())) >= tries + 5
                )
        causes = [line["detail"].partition(":")[0] for line in logs if line["event"] == "source"]
        assert causes == ["the stream is being prepared", "wal_level is not logical"]


async def test_when_the_table_begins_anew_everyone_is_told_to_come_back(database: str) -> None:
    """What ended while the stream was lost is in no Snapshot that starts from nothing."""
    execute(database, "INSERT INTO runs (id, status) VALUES ('active', 'running')")
    with served(database_url=database) as brain:
        brain.wait_ready("replication")
        peers = [
            await Peer.upgraded(brain.port, target)
            for target in ("/ws", "/ws?run_id=a", "/ws?snapshot=true")
        ]
        brain.process.send_signal(signal.SIGSTOP)
        execute(
            database,
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()",
        )
        execute(database, "INSERT INTO runs (id) VALUES ('new')")
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = 'new'")
        execute(database, "ALTER TABLE runs ALTER agent TYPE varchar(100)")
        brain.process.send_signal(signal.SIGCONT)
        for peer in peers:
            assert (await peer.frames())[-1].code == GAP.code
            await peer.close()
        again = await Peer.upgraded(brain.port)
        execute(database, "UPDATE runs SET progress = 1 WHERE id = 'active'")
        assert (await again.message())["data"]["progress"] == 1
        await again.close()


@pytest.mark.parametrize(
    ("before", "query", "becomes"),
    [
        ([], "agent=b", "agent = 'c'"),
        ([], "status=running", "status = 'completed'"),
        (["INSERT INTO runs (id, agent) VALUES ('r', 'a')"], "agent=b", "agent = 'c'"),
        (
            ["INSERT INTO runs (id, agent) VALUES ('r', 'a')"],
            "agent=b",
            "agent = 'a', status = 'queued'",
        ),
    ],
)
async def test_who_was_shown_a_run_ahead_of_a_poll_hears_what_becomes_of_it(
    database: str, before: list[str], query: str, becomes: str
) -> None:
    """The API shows the table, and no poll has ever found the run as it was shown."""
    for statement in before:
        execute(database, statement)
    with served(database_url=database, source="poll", follows="poll", poll_interval=2) as brain:
        shown = """INSERT INTO runs (id, status, agent) VALUES ('r', 'running', 'b')
                   ON CONFLICT (id) DO UPDATE SET status = 'running', agent = 'b'"""
        execute(database, shown)
        page = brain.get(f"/api/runs?{query}")[1]
        assert [run["id"] for run in page["runs"]] == ["r"]
        execute(database, f"UPDATE runs SET {becomes}")
        async with await Peer.upgraded(
            brain.port, f"/ws?{query}&since={page['timestamp']}"
        ) as peer:
            run = (await peer.message())["data"]
            assert brain.get("/api/runs/r")[1] == run
            assert [run["agent"], run["status"]] != ["b", "running"]
