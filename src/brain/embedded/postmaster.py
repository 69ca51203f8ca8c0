"""The process of the embedded PostgreSQL: found, started, nursed, stopped.

`postgres` is a child of ours in a session of its own: Ctrl-C in a terminal does not reach it, and it outlives a Brain
that is killed; the next Brain adopts it.
"""

import asyncio
import contextlib
import errno
import math
import os
import pwd
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger()

LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
INSTEAD = "or set BRAIN_DATABASE_URL to a PostgreSQL of your own"

START_SECONDS = (
    300.0  # recovery after a crash replays up to 1 GB of WAL; a clean start takes 0.15 s
)
STOP_STEPS = (
    (signal.SIGINT, 3.0),
    (signal.SIGQUIT, 1.0),
    (signal.SIGKILL, 1.0),
)  # fast, immediate, by force


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had. The text says why, and what to do."""


def spawn(
    arguments: list[str],
    account: pwd.struct_passwd | None,
    output: IO[bytes],
    stdin: IO[bytes] | None = None,
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


async def command(arguments: list[str], account: pwd.struct_passwd | None, text: str = "") -> None:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        process = spawn(arguments, account, output, stdin)
        try:
            done = await _until(lambda: process.poll() is not None, 120)
        finally:  # also when we are cancelled: initdb's own children are in its session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not done or process.returncode:
            name = Path(arguments[0]).name
            detail = "failed" if done else "was not done in 120 s"
            raise EmbeddedError(f"{name} {detail} ({_last_lines(output)}): cure that, {INSTEAD}.")


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
class Postmaster:
    pid: int
    port: int
    status: str  # starting, ready, stopping


def postmaster(cluster: Path) -> Postmaster | None:
    """The living postmaster of this very folder. Its pid file alone proves nothing: pids are used again."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        found = Postmaster(
            int(lines[0]), int(lines[3]), lines[7].strip() if len(lines) > 7 else "starting"
        )
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
class Postgres:
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
        found = postmaster(self.cluster)
        if found is not None:
            self.pid, self.port = found.pid, found.port
            if port in {None, found.port} and found.status != "stopping" and await self._ready():
                log.info(
                    "embedded postgres adopted",
                    port=self.port,
                    pid=self.pid,
                    cluster=str(self.cluster),
                )
                return
            await self.stop()
        await self._start([port] if port else _ports(self.cluster))
        log.info(
            "embedded postgres started", port=self.port, pid=self.pid, cluster=str(self.cluster)
        )
        if port is None and self.port != 5432:
            log.warning(
                "embedded postgres is not on port 5432", port=self.port, hint=f"psql -p {self.port}"
            )

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
                self.child = spawn(arguments, self.account, output)
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
            found = postmaster(self.cluster)
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
        if found := postmaster(self.cluster):
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
                if process.stat().st_uid == owner and (process / "cmdline").read_bytes().startswith(
                    title
                ):
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
        except (
            OSError
        ) as error:  # no IPv6 here, or no right to the port: PostgreSQL will say it better
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def _claimed(port: int, claim: contextlib.ExitStack) -> bool:
    """Keeps other Brains away from a free port until PostgreSQL holds it.

    PostgreSQL is content with one of its two addresses. Two that start together could get one each.
    """
    name = claim.enter_context(socket.socket(socket.AF_UNIX))
    try:
        name.bind(
            f"\0brain postgres {port}"
        )  # abstract: goes with the socket, and lives where ports live
    except OSError:
        return False
    return _free(port)
