"""How Brain stops: by SIGTERM in the middle of a storm, and by SIGKILL."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.support.crowd import Crowd, Member, frames
from tests.support.fleet import sound
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import execute
from tests.support.served import Brain
from tests.support.wire import CLOSE, Control, memory

CLIENTS, QUIET, STALLED = 800, 100, 100


def embedded_url(brain: Brain) -> str:
    """The URL of the embedded PostgreSQL, from the psql command that Brain prints."""
    port = re.findall(r"-p (\d+) ", brain.log())
    return f"postgresql://cecelia@127.0.0.1:{port[-1] if port else 5432}/cecelia"


@contextmanager
def storming(url: str) -> Iterator[threading.Event]:
    """All running runs change as fast as possible, until the block ends or the event is set."""
    stop = threading.Event()

    def work() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                while not stop.is_set():
                    conn.execute(
                        """UPDATE runs
                           SET progress = random() * 100, error = repeat(md5(random()::text), 100)
                           WHERE status = 'running'"""
                    )
        except psycopg.OperationalError:
            pass  # the database has stopped

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(PATIENCE)


def farewell(member: Member) -> int:
    """The code of the close frame, if that is the last frame; 0 if not. No frame may be cut."""
    found = frames(member.data)
    heads = (2 if len(payload) < 126 else 4 if len(payload) < 65536 else 10 for _, payload in found)
    assert sum(heads) + sum(len(payload) for _, payload in found) == len(member.data)
    opcode, payload = found[-1]
    return int.from_bytes(payload[:2]) if opcode == CLOSE else 0


def test_sigterm_during_a_broadcast_closes_every_client_that_reads_with_1012(
    tmp_path: Path,
) -> None:
    """With the embedded PostgreSQL, which stops too."""
    brain = Brain(folder=tmp_path, max_connections=0, postgres_port=free_port())
    try:
        url = embedded_url(brain)
        execute(
            url, "INSERT INTO runs (id, status) SELECT i, 'running' FROM generate_series(1, 100) i"
        )
        control = Control(brain, url, "?status=queued")
        used = memory(brain.process.pid)
        with (
            Crowd.clients(brain.port, CLIENTS, "/ws?run_id=1&run_id=2") as healthy,
            Crowd.clients(brain.port, QUIET, "/ws?status=failed") as quiet,
            Crowd.clients(brain.port, STALLED, rcvbuf=4096),  # they never read
            storming(url) as storm,
        ):
            with control.undisturbed():
                assert healthy.pump(
                    PATIENCE, lambda: brain.metric("brain_clients_lagging") >= STALLED
                )
                healthy.pump(0.5)
            grown = memory(brain.process.pid) - used
            assert grown < 64 * 1024 * (CLIENTS + QUIET + STALLED), f"{grown / 1024:.0f} KB more"
            began = time.monotonic()
            brain.process.send_signal(signal.SIGTERM)
            storm.set()  # or Brain would be so busy that everything is spread out
            assert healthy.pump(
                PATIENCE, lambda: not quiet.pump(0) and not quiet.present and not healthy.present
            )
            # Of the quiet clients: the others first have to read what was sent before.
            closed = [member.ended - began for member in quiet.members]
            status = brain.process.wait(PATIENCE)
            took = time.monotonic() - began
            print(
                f"closed within {min(closed):.2f} to {max(closed):.2f} s;"
                f" with {STALLED} of {CLIENTS + QUIET + STALLED} stalled,"
                f" exit {status} in {took:.2f} s"
            )
            assert status == 0
            assert {farewell(member) for member in (*healthy.members, *quiet.members)} == {1012}
            assert control.farewell() == 1012
            # That they are closed 100 at a time is tested where nothing else keeps Brain busy:
            # test_listener.py.
        assert "Traceback" not in brain.log(), brain.log()
        server = next(tmp_path.glob(".brain/**/postmaster.pid"), None)
        assert server is None, "the embedded PostgreSQL was stopped"
    finally:
        if brain.process.poll() is None:
            brain.process.kill()
            brain.process.wait()


def test_after_sigkill_the_next_start_adopts_postgresql_and_reuses_the_port(tmp_path: Path) -> None:
    """The embedded PostgreSQL has kept running and is adopted. The old slot is gone."""
    postgres_port = free_port()
    first = Brain(folder=tmp_path, postgres_port=postgres_port, port=free_port())
    url = embedded_url(first)
    with Crowd.clients(first.port, 20) as crowd:
        execute(url, "INSERT INTO runs (id) VALUES ('a')")
        assert crowd.pump(PATIENCE, lambda: all(member.data for member in crowd.members))
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        assert crowd.pump(PATIENCE, lambda: not crowd.present)
    execute(url, "UPDATE runs SET status = 'running'")  # it is still running
    began = time.monotonic()
    second = Brain(folder=tmp_path, wait=False, postgres_port=postgres_port, port=first.port)
    try:
        second.port = first.port
        ready(second)
        print(f"ready again in {time.monotonic() - began:.1f} s")
        slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'brain%'"
        assert execute(url, slots) == [(1,)], "the slot of the new Brain"
        control = Control(second, url)
        with (
            sound(second, 6 << 20),
            control.undisturbed(),
            Crowd.clients(second.port, 20, "/ws?snapshot=true") as crowd,
        ):
            assert crowd.pump(
                PATIENCE, lambda: all(b'"status":"running"' in each.data for each in crowd.members)
            )
            time.sleep(0.5)
        control.stop()
        assert second.stop() == 0
        assert not list(tmp_path.glob(".brain/**/postmaster.pid"))
    finally:
        if second.process.poll() is None:
            second.process.kill()
            second.process.wait()


def ready(brain: Brain) -> None:
    """Wait until it listens and follows the stream. The log does not tell: its predecessor wrote
    there.
    """
    while True:
        try:
            brain.wait_ready("replication")
        except OSError:
            assert brain.process.poll() is None, brain.log()
            time.sleep(0.02)
        else:
            return
