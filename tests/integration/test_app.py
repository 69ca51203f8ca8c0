"""The wiring as an operator sees it: which source is in use, and why not a better one."""

import re
import signal
import socket
import time
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from brain.app import report_lost
from brain.contract.close_codes import GAP
from tests.support.following import QUICK, Following
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.served import Brain, served
from tests.support.template import own
from tests.support.wire import Peer


def codes(brain: Brain) -> list[str]:
    """The labels of brain_source_code that are 1."""
    found = re.findall(
        r'^brain_source_code\{code="(\w+)"\} (\S+)$', brain.get("/metrics")[1], re.MULTILINE
    )
    assert len(found) > 20
    return [code for code, value in found if float(value) == 1]


def until(brain: Brain, code: str | None) -> dict[str, Any]:
    """/readyz, once its code is this one."""
    deadline = time.monotonic() + PATIENCE
    while (document := brain.get("/readyz")[1])["code"] != code:
        assert time.monotonic() < deadline, document
        time.sleep(0.02)
    return dict(document)


def sources(brain: Brain) -> list[str]:
    return re.findall(r"event=source (.*)", brain.log())


def test_readyz_metrics_and_log_agree_on_the_source_and_its_code() -> None:
    """Through poll, none and replication."""
    with (
        own(wal_level="replica") as (server, url),
        served(database_url=url, follows="poll") as brain,
    ):
        document = until(brain, "wal_level")
        assert (document["ready"], document["source"]) == (True, "poll")
        assert document["detail"].startswith("wal_level is not logical: ")
        assert codes(brain) == ["wal_level"]
        assert brain.metric('brain_source{source="poll"}') == 1
        assert sum("wal_level" in line for line in sources(brain)) == 1
        execute(server.url(), document["hint"].partition(";")[0])
        server.stop()
        document = until(brain, "away")
        assert (document["ready"], document["source"]) == (False, "none")
        assert codes(brain) == ["away"]
        server.start()
        brain.wait_ready("replication")
        document = until(brain, None)
        assert (document["detail"], document["hint"]) == (None, None)
        assert codes(brain) == []
        lines = sources(brain)
        assert lines[-1] == "now=replication"
        assert len(lines) == len(
            [a for a, b in zip(lines, [*lines[1:], ""], strict=True) if a != b]
        ), lines


def test_polling_by_choice_has_a_code_of_its_own(database: str) -> None:
    with served(database_url=database, source="poll", follows="poll") as brain:
        document = until(brain, "chosen")
        assert (document["detail"], document["hint"]) == (
            "BRAIN_SOURCE is poll",
            "BRAIN_SOURCE=auto",
        )
        assert codes(brain) == ["chosen"]


async def test_repeated_refusals_of_a_stream_are_logged_once() -> None:
    timing = replace(QUICK, promote_every=0.02)
    with own(wal_level="replica") as (server, url):
        tries = len(re.findall("logical decoding requires", server.log()))
        with capture_logs() as logs:
            async with Following(url, "auto", timing=timing) as f:
                await f.until(
                    lambda: len(re.findall("logical decoding requires", server.log())) >= tries + 5
                )
        details = [line["detail"].partition(":")[0] for line in logs if line["event"] == "source"]
        assert details == ["wal_level is not logical"]


async def test_a_replaced_table_closes_every_client_with_4410(database: str) -> None:
    """No Snapshot of a replaced table contains the runs that ended while the stream was lost."""
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
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = current_database()",
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
async def test_a_client_shown_a_run_before_any_poll_receives_its_change(
    database: str, before: list[str], query: str, becomes: str
) -> None:
    """The API reads the table: it shows a state of the run that no poll has seen."""
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


def test_only_the_look_up_of_a_connection_that_was_given_up_is_not_reported() -> None:
    """Uvloop goes on with it, and nobody awaits what it finds."""
    reported: list[Any] = []
    loop = Mock(default_exception_handler=reported.append)
    for error in (socket.gaierror(-3, "no answer"), OSError("another")):
        report_lost(loop, {"message": "Future exception was never retrieved", "exception": error})
    assert [str(context["exception"]) for context in reported] == ["another"]
