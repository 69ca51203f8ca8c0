"""How `brain serve --workers` starts, what keeps it from starting, and what ends it."""

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from brain.workers.nats_server import NatsServerError, program
from tests.support.commands import run
from tests.support.patience import LIFETIME, PATIENCE, wait_until
from tests.support.postgres import execute
from tests.support.prefork import take_terminal
from tests.support.served import BRAIN, Brain, served
from tests.support.workers import family, settle

pytestmark = pytest.mark.long


def test_a_wrong_setting_is_said_once() -> None:
    output = run("serve", "--workers", "4", code=2, flush_interval=99)
    assert output.count("BRAIN_FLUSH_INTERVAL") == 1


MISSING = 'raise ModuleNotFoundError("no FastAPI", name="fastapi")'
"""A package that only the workers import."""


def test_what_only_a_worker_finds_is_said_once_and_ends_all(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastapi.py").write_text(MISSING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    data = tmp_path / "data"
    output = run("serve", "--workers", "4", code=2, port=0, database_url=database, data_dir=data)
    assert output.count("brain: the package fastapi is not installed") == 1, output
    assert output.count('event="worker started"') == 1
    assert not list(data.iterdir())


def test_without_nats_server_or_a_folder_for_it_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As if the wheel were not installed, and then in a file's place."""
    alternative = "or set BRAIN_NATS_URL to a NATS server of your own, or BRAIN_WORKERS to 1."
    monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    with pytest.raises(NatsServerError) as error:
        program()
    assert str(error.value) == (
        f"Several workers need nats-server: pip install 'brain-runs[nodes]', {alternative}"
    )
    (tmp_path / "file").touch()
    given = {"database_url": "postgresql://127.0.0.1:1/x", "port": 0, "workers": 2}
    output = run("serve", code=2, data_dir=tmp_path / "file", **given)
    assert f"nats-server cannot use {tmp_path}/file (File exists): set BRAIN_DATA_DIR" in output
    assert alternative in output


def test_a_port_that_another_brain_has_is_one_clear_error(database: str) -> None:
    with served(database_url=database, follows="") as other:
        output = run("serve", "--workers", "2", code=2, port=other.port, database_url=database)
    assert "cannot be listened on (Address already in use)" in output
    assert output.count("brain: ") == 1


def test_a_worker_is_not_started_by_hand() -> None:
    assert "only `brain serve` starts workers" in run("worker", "1", code=2)


def test_a_rolling_restart_whose_first_worker_fails_changes_nothing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that went wrong."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with served(database_url=database, workers=2, follows="") as brain:
        before = {each["pid"] for each in settle(brain).values()}
        (tmp_path / "fastapi.py").write_text(MISSING)
        brain.process.send_signal(signal.SIGHUP)
        wait_until(lambda: 'event="rolling restart given up" worker=' in brain.log())
        assert {each["pid"] for each in settle(brain).values()} == before
        (tmp_path / "fastapi.py").unlink()
        brain.process.send_signal(signal.SIGHUP)
        # Nobody asks for the metrics meanwhile. Each change still counts once, but for the few that
        # one worker had counted, and another not yet, when a new one was asked for the first time.
        # Those that both workers of a slot have counted are a third.
        changes = 0
        while 'event="rolling restart done"' not in brain.log():
            execute(database, "INSERT INTO runs (id) VALUES (%s)", f"{changes}")
            changes += 1
            time.sleep(0.01)  # a flood would slow the workers' starts
        settle(brain, *before)
        execute(database, "UPDATE runs SET status = 'completed' WHERE id = '0'")
        asyncio.run(brain.knows("0", "completed"))
        assert abs(brain.metric("brain_changes_total") - changes) < changes / 10
        assert asyncio.run(close_codes_of_a_stop_by_two(brain)) == [1012] * 8


async def close_codes_of_a_stop_by_two(brain: Brain) -> list[int | None]:
    """Workers are told to stop by a signal and by the supervisor, as systemd does. A single Brain
    takes a second signal for haste, and closes nobody properly.
    """
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(brain.connect()) for _ in range(8)]
        for process in family(brain):
            if "worker" in process.cmdline():
                process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(brain.stop) == 0
        await asyncio.gather(*(each.wait_closed() for each in clients))
        return [each.close_code for each in clients]


def test_a_terminal_that_is_closed_ends_all_with_one_embedded_postgres(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    kept = {name: v for name, v in os.environ.items() if not name.startswith("BRAIN_")}
    brain = Brain.__new__(Brain)
    brain.folder, brain.log_file, brain.port = tmp_path, tmp_path / "log", 0
    tmp_path.chmod(0o755)
    with brain.log_file.open("ab") as log:
        brain.process = subprocess.Popen(
            [*BRAIN, "serve", "--workers", "2", "--port", "0"],
            stdin=slave,
            stdout=log,
            stderr=log,
            env=kept,
            cwd=tmp_path,
            preexec_fn=take_terminal,  # noqa: PLW1509 - it makes one system call
            start_new_session=True,
        )
    os.close(slave)
    try:
        brain.wait_for("on port (\\d+)\\. Paste")
        brain.port = int(re.findall(r"on port (\d+)\. Paste", brain.log())[-1])
        settle(brain)
        processes = family(brain)
        assert brain.log().count('event="embedded postgres started"') == 1
        assert re.search(r"brain psql|psql -h localhost", brain.log())
        os.close(master)
        assert brain.process.wait(PATIENCE) == 0
        _, left = psutil.wait_procs(processes[1:], LIFETIME)
        assert not left
    finally:
        if brain.process.poll() is None:
            brain.process.kill()
            brain.process.wait()
    assert 'event="rolling restart"' not in brain.log()
    assert "Traceback" not in brain.log()
