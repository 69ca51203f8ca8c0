"""`brain watch` on a real pseudo-terminal, and into a pipe."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.faulty import FaultyProxy
from tests.support.patience import PATIENCE, eventually, wait_until
from tests.support.postgres import execute
from tests.support.served import BRAIN, Brain, served
from tests.support.terminal import terminal

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


def start(shared: str, agent: str, count: int) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status, progress, agent, task_id, started_at)"
        f" SELECT '{agent}-' || i, 'running', i, '{agent}', 'task-' || i,"
        f" now() - i * interval '1 min' FROM generate_series(1, {count}) i",
    )


def finish(shared: str, run_id: str, status: str, error: str = "") -> None:
    execute(
        shared,
        f"UPDATE runs SET status = '{status}', error = nullif('{error}', ''), completed_at = now()"
        f" WHERE id = '{run_id}'",
    )


# A table.


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 8), (1, 1)])
def test_the_table_fits_the_terminal(brain: Brain, shared: str, columns: int, lines: int) -> None:
    agent = f"fits-{columns}"
    start(shared, agent, 70)
    with terminal("watch", brain.url(), "--agent", agent, columns=columns, lines=lines) as it:
        wait_until(lambda: it.screen.alternate and it.screen.rows)
        if columns >= 40:
            it.shows("live", f"{agent}-1 ", "▶ running", "66 more" if lines == 8 else " more")
        it.resize(80, 24)
        it.shows("live", f"{agent}-20 ", "task-20", "20m 0", "and 50 more")
        it.resize(100, 30)
        it.shows(f"{agent}-26 ", "and 44 more")
        it.type(b"q")
        assert it.ends() == 0


def test_failed_and_quiet_runs_come_first(brain: Brain, shared: str) -> None:
    start(shared, "first", 30)
    with terminal("watch", brain.url(), "--agent", "first", "--quiet", "1") as it:
        # All are quiet after a second, until one of them changes.
        it.shows("live", "‖ running", "quiet ")
        finish(shared, "first-30", "failed", "bad luck")
        it.shows("first-30 ", "✖ failed", "bad luck")
        rows = it.screen.text().splitlines()
        assert rows[3].startswith("first-30 ")
        assert rows[4].strip() == "bad luck"
        execute(
            shared,
            "UPDATE runs SET status = 'completed' WHERE agent = 'first' AND status = 'running'",
        )
        it.shows("○ 0 queued   ▶ 0 running   ✔ 29 completed   ✖ 1 failed")
        it.type(b"q")
        assert it.ends() == 0


def test_a_deleted_run_leaves_the_table(brain: Brain, shared: str) -> None:
    start(shared, "deleted", 2)
    with terminal("watch", brain.url(), "--agent", "deleted") as it:
        it.shows("deleted-1", "deleted-2")
        execute(shared, "DELETE FROM runs WHERE id = 'deleted-1'")
        it.shows("▶ 1 running")
        assert "deleted-1" not in it.screen.text()
        it.type(b"q")
        it.ends()


def test_a_summary_stays_and_the_terminal_is_as_before(brain: Brain, shared: str) -> None:
    start(shared, "summary", 3)
    with terminal("watch", brain.url(), "--agent", "summary") as it:
        it.shows("summary-1")
        finish(shared, "summary-1", "failed", "bad\tluck\x1b[31m")
        finish(shared, "summary-2", "completed")
        it.shows("1 completed", "1 failed")
        it.type(b"\x03")
        assert it.ends() == 130
        assert (it.screen.alternate, it.screen.cursor) == (False, True)
        assert it.screen.left[0].endswith(": seen 1 completed and 1 failed; 1 running and 0 queued")
        assert it.screen.left[1] == "  failed: summary-1: bad luck\\x1b[31m"


def test_a_signal_leaves_the_terminal_as_it_was(brain: Brain) -> None:
    with terminal("watch", brain.url()) as it:
        it.shows("live")
        assert it.attributes_now() != it.attributes
        it.process.send_signal(signal.SIGTERM)
        it.process.wait(PATIENCE)
        assert it.attributes_now() == it.attributes
        assert it.ends() == 143
        assert (it.screen.alternate, it.screen.cursor) == (False, True)


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(brain: Brain, shared: str) -> None:
    start(shared, "suspended", 1)
    with terminal("watch", brain.url(), "--agent", "suspended") as it:
        it.shows("live", "suspended-1")
        it.process.send_signal(signal.SIGTSTP)
        wait_until(lambda: not it.screen.alternate)
        wait_until(lambda: it.state() == "T")
        assert it.attributes_now() == it.attributes
        finish(shared, "suspended-1", "completed")
        it.process.send_signal(signal.SIGCONT)
        it.shows("live", "✔ completed")
        it.type(b"q")
        assert it.ends() == 0


def test_what_a_run_contains_does_not_reach_the_terminal(brain: Brain, shared: str) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status, agent, task_id, error) VALUES"
        " (E'evil\\x1b]0;owned\\x07\\n\\u202e', 'failed', 'evil', '任务 é 😀',"
        " E'[red]\\u009b2J\\r\\n:smile:')",
    )
    with terminal("watch", brain.url("?agent=evil"), columns=100) as it:
        it.shows("live")
        execute(shared, "UPDATE runs SET progress = 1 WHERE agent = 'evil'")
        it.shows("evil\\x1b]0;", "任务 é 😀", "[red]\\x9b2J  :smile:")
        it.type(b"q")
        it.ends()
    assert b"\x1b]" not in it.raw
    assert b"\xc2\x9b" not in it.raw


def test_elapsed_is_by_the_clock_of_the_database(brain: Brain, shared: str) -> None:
    """The process believes that it is another year, and a start lies in the future."""
    execute(
        shared,
        "INSERT INTO runs (id, status, agent, started_at) VALUES"
        " ('past', 'running', 'clock', now() - interval '2 h'),"
        " ('future', 'running', 'clock', now() + interval '1 h')",
    )
    program = "import time; time.time = lambda: 1e9; from brain.__main__ import main; main()"
    with terminal("watch", brain.url("?agent=clock"), program=program) as it:
        it.shows("live", "2h 00m", " 0s ")
        it.type(b"q")
        it.ends()


async def test_an_outage_freezes_what_elapses(brain: Brain, shared: str) -> None:
    start(shared, "outage", 2)
    async with FaultyProxy(brain.port) as proxy:
        with terminal("watch", proxy.url, "--agent", "outage") as it:
            await eventually(lambda: "outage-2" in it.screen.text())
            proxy.target = 1
            proxy.cut()
            await eventually(lambda: re.search("disconnected for [12]s", it.screen.text()))
            frozen = re.search(r"≥ 1m \d\ds", it.screen.text())
            assert frozen
            await eventually(lambda: re.search("disconnected for [3-9]s", it.screen.text()))
            assert frozen[0] in it.screen.text()
            finish(shared, "outage-1", "completed")
            proxy.target = brain.port
            await eventually(lambda: "live" in it.screen.text())
            await eventually(lambda: "✔ 1 completed" in it.screen.text())
            assert "≥" not in it.screen.text()
            it.type(b"q")
            assert await asyncio.to_thread(it.ends) == 0


def test_a_refusal_ends_the_table_with_its_reason(brain: Brain) -> None:
    with terminal("watch", brain.url("?nonsense=1")) as it:
        assert it.ends() == 2
        assert not it.screen.alternate
        assert "unknown parameter 'nonsense'" in it.screen.left[0], "and no summary of nothing"


def test_it_is_not_drawn_more_than_four_times_a_second(brain: Brain, shared: str) -> None:
    start(shared, "storm", 1)
    with terminal("watch", brain.url(), "--agent", "storm") as it:
        it.shows("storm-1")
        drawn, received = it.raw.count(b"\x1b[1;1H"), brain.metric("brain_deliveries_total")
        execute(
            shared,
            "DO $$ BEGIN FOR i IN 1..200 LOOP UPDATE runs SET progress = i / 2.0"
            " WHERE id = 'storm-1'; COMMIT; PERFORM pg_sleep(0.005); END LOOP; END $$",
        )
        it.shows("100 %")
        received = brain.metric("brain_deliveries_total") - received
        assert received > 20
        assert it.raw.count(b"\x1b[1;1H") - drawn < received / 2
        it.type(b"q")
        it.ends()


# Lines.


@contextmanager
def piped(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")}
    process = subprocess.Popen(
        [*BRAIN, "watch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_pipe_gets_a_message_a_line_in_utf_8(brain: Brain, shared: str) -> None:
    with piped(f"127.0.0.1:{brain.port}", "--agent", "代理", LC_ALL="POSIX", TERM="xterm") as it:
        assert it.stdout
        assert it.stderr
        assert it.stderr.readline().decode() == f"brain: connected to {brain.url()}\n"
        execute(shared, "INSERT INTO runs (id, agent, error) VALUES ('é', '代理', E'a\\nb\\x1b')")
        line = it.stdout.readline()
        assert '"id":"é"'.encode() in line
        assert '"agent":"代理","error":"a\\nb\\u001b"'.encode() in line
        assert json.loads(line)["type"] == "run_update"
        it.send_signal(signal.SIGINT)
        assert it.wait(PATIENCE) == 130
        assert it.stdout.read() == b""
        assert it.stderr.read() == b""


def test_a_terminal_gets_lines_where_a_table_is_not_wanted(brain: Brain, shared: str) -> None:
    with terminal("watch", brain.url(), "--agent", "lines", "--json", columns=500) as it:
        wait_until(lambda: "connected to" in it.screen.left[0])
        execute(shared, "INSERT INTO runs (id, agent) VALUES ('lines', 'lines')")
        wait_until(lambda: len(it.screen.left) > 2)
        assert json.loads(it.screen.left[1])["data"]["id"] == "lines"
        it.type(b"\x03")
        assert it.ends() == 130
    assert b"\x1b" not in it.raw


def test_a_reader_that_leaves_ends_it_at_once(brain: Brain, shared: str) -> None:
    """Though no other message comes: `brain watch | head -1`."""
    with piped(brain.url(), "--agent", "head") as it:
        assert it.stdout
        assert it.stderr
        it.stderr.readline()
        execute(shared, "INSERT INTO runs (id, agent) VALUES ('head', 'head')")
        it.stdout.readline()
        it.stdout.close()
        assert it.wait(PATIENCE) == 0
        assert it.stderr.read() == b""
        it.stdout = None


def test_a_message_into_a_closed_pipe_ends_it(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id, agent) VALUES ('closed', 'closed')")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*BRAIN, "watch", brain.url("?agent=closed&snapshot=true")],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_an_error(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id, agent) VALUES ('full', 'full')")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*BRAIN, "watch", brain.url("?agent=full&snapshot=true")],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr


def test_filters_of_the_command_line_add_to_those_of_the_url(brain: Brain, shared: str) -> None:
    execute(
        shared,
        "INSERT INTO runs (id, status, agent, task_id) VALUES ('f1', 'running', 'f', 't1'),"
        " ('f2', 'queued', 'f', 't1'), ('f3', 'queued', 'f', 't2'), ('f4', 'queued', 'g', 't1')",
    )
    with piped(brain.url("?agent=f"), "--snapshot", "--status", "queued", "--task", "t1") as it:
        assert it.stdout
        assert json.loads(it.stdout.readline())["data"]["id"] == "f2"
        execute(shared, "UPDATE runs SET progress = 1 WHERE id LIKE 'f_'")
        assert json.loads(it.stdout.readline())["data"] == {
            "id": "f2",
            "status": "queued",
            "progress": 1.0,
            "agent": "f",
            "task_id": "t1",
        }


def test_brain_is_found_by_its_port(brain: Brain, shared: str) -> None:
    execute(shared, "INSERT INTO runs (id, agent) VALUES ('found', 'found')")
    with piped("--snapshot", "--agent", "found", BRAIN_PORT=str(brain.port)) as it:
        assert it.stdout
        assert json.loads(it.stdout.readline())["data"]["id"] == "found"


def test_a_wrong_url_is_one_clear_error() -> None:
    with piped("ftp://me:secret@host") as it:
        _, error = it.communicate(timeout=PATIENCE)
        assert it.returncode == 2
        assert error.startswith(b"brain: 'ftp://***@host' is not where Brain is: ")
        assert error.count(b"\n") == 1
