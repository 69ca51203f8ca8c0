"""The process of the embedded PostgreSQL: found, started, supervised, stopped.

`postgres` is a child of Brain in a session of its own. So Ctrl-C in a terminal does not reach it,
and it survives a Brain that is killed; the next Brain adopts it.
"""

import asyncio
import contextlib
import math
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from brain.contract.back_off import BackOff
from brain.embedded.ports import candidates, claim, is_free
from brain.embedded.processes import POLL_INTERVAL, postmaster_folder, processes
from brain.embedded.programs import ALTERNATIVE, EmbeddedError, last_lines, spawn, until

log = structlog.get_logger()

RESTART = BackOff(first=0.2, longest=5.0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    start: float = 300.0
    """Recovery after a crash replays up to 1 GB of WAL. A clean start takes 0.15 s."""
    stop: tuple[tuple[signal.Signals, float], ...] = (
        (signal.SIGINT, 3.0),  # fast shutdown
        (signal.SIGQUIT, 1.0),  # immediate shutdown
        (signal.SIGKILL, 1.0),
    )
    """How long each signal is given. In sum, less than a service manager gives Brain."""
    orphans: float = 30.0
    """How long a start waits for backends of a killed postmaster to end."""
    steady: float = 10.0
    """A postmaster that ran for so long counts as started: the back-off begins again."""
    restart: BackOff = RESTART


TIMING = Timing()


@dataclass(frozen=True, slots=True)
class PidFile:
    """What Brain reads in postmaster.pid."""

    pid: int
    port: int
    status: str
    """starting, ready or stopping"""


def find_postmaster(cluster: Path) -> PidFile | None:
    """The running postmaster of this folder. The file alone proves nothing: pids are reused."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        status = lines[7].strip() if len(lines) > 7 else "starting"
        found = PidFile(int(lines[0]), int(lines[3]), status)
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None
    return found if _serves(found.pid, cluster) else None


def _serves(pid: int, cluster: Path) -> bool:
    folder = postmaster_folder(pid)
    try:
        return folder is not None and cluster.samefile(folder)
    except OSError:
        return False


@dataclass(slots=True)
class Postmaster:
    """The postmaster of one cluster."""

    cluster: Path
    binaries: Path
    account: pwd.struct_passwd | None
    timing: Timing = TIMING
    port: int = 0
    pid: int = 0
    child: subprocess.Popen[bytes] | None = None
    """None if it was adopted from a Brain that was killed."""

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return bool(self.pid) and _serves(self.pid, self.cluster)

    async def run(self, port: int | None) -> None:
        """Adopt the postmaster that is already running, or start one."""
        found = find_postmaster(self.cluster)
        if found is not None:
            self.pid, self.port = found.pid, found.port
            if port in {None, found.port} and found.status != "stopping" and await self._ready():
                self._report("embedded postgres adopted")
                return
            await self.stop()
        await self._start([port] if port else candidates(self.cluster))
        self._report("embedded postgres started")
        if port is None and self.port != 5432:
            log.info(
                "embedded postgres uses another port",
                port=self.port,
                detail="port 5432 is in use",
                hint=f"psql -p {self.port}",
            )

    async def stop(self) -> None:
        for number, seconds in self.timing.stop:
            if not self.alive():
                break
            self._signal(number)
            try:
                if await until(lambda: not self.alive(), seconds):
                    log.info("embedded postgres stopped", signal=number.name, pid=self.pid)
            except asyncio.CancelledError:  # a second signal to Brain: do not wait any longer
                self._signal(signal.SIGQUIT)
                raise

    async def supervise(self) -> None:
        """Start it again, on the same port, whenever it dies."""
        failures = 0
        while True:
            since = time.monotonic()
            every = POLL_INTERVAL if self.child is None else 0.1
            await until(lambda: not self.alive(), math.inf, every)
            log.warning("embedded postgres died", pid=self.pid)
            if time.monotonic() - since > self.timing.steady:
                failures = 0
            failures = await self._restart(failures)
            log.info("embedded postgres is back", port=self.port, pid=self.pid)

    async def _restart(self, failures: int) -> int:
        """Try until it starts. Returns the failures so far, this death included."""
        detail = ""
        while True:
            if failures:
                await asyncio.sleep(self.timing.restart.delay(failures))
            failures += 1
            try:
                await self._start([self.port])
            except (EmbeddedError, OSError) as error:
                if str(error) != detail:  # not the same line again and again
                    detail = str(error)
                    log.error("embedded postgres does not start", detail=detail)  # noqa: TRY400 - no traceback
            else:
                return failures

    async def _start(self, ports: Iterable[int]) -> None:
        tried = 0
        for tried in ports:
            with contextlib.ExitStack() as stack:
                if claim(tried, stack) and await self._start_on(tried):
                    return
        raise EmbeddedError(
            f"Port {tried} of 127.0.0.1 or ::1 is taken: set BRAIN_POSTGRES_PORT to a free one, "
            f"or unset it, {ALTERNATIVE}."
        )

    async def _start_on(self, port: int) -> bool:
        """False: another program took the port before PostgreSQL could."""
        deadline = time.monotonic() + self.timing.orphans
        while True:
            detail = await self._try_start_on(port)
            if detail is None:
                return True
            if "pre-existing shared memory block" in detail and time.monotonic() < deadline:
                self._kill_orphans()
                await asyncio.sleep(0.2)
            elif not is_free(port):
                return False
            else:
                raise EmbeddedError(
                    f"PostgreSQL did not start in {self.cluster} ({detail}): "
                    f"fix that, {ALTERNATIVE}."
                )

    async def _try_start_on(self, port: int) -> str | None:
        """None if PostgreSQL is ready, otherwise what it printed last."""
        settings = (
            f"port={port}",
            "listen_addresses=127.0.0.1,::1",  # `localhost` resolved to IPv4 only
            "unix_socket_directories=",
            f"cluster_name={self._name()}",
        )
        arguments = [str(self.binaries / "postgres"), "-D", str(self.cluster)]
        for setting in settings:
            arguments += ["-c", setting]
        with tempfile.TemporaryFile() as output:
            self._take_over()
            self.child = spawn(arguments, self.account, output)
            self.pid, self.port = self.child.pid, port
            if await self._ready():
                return None
            detail = last_lines(output)
        # After this message, everything else is in the log file.
        return self._last_logged() if "redirecting log output" in detail else detail

    async def _ready(self) -> bool:
        """False: it has died. Like pg_ctl, wait for the word `ready` in the pid file."""

        def settled() -> bool:
            found = find_postmaster(self.cluster)
            return not self.alive() or (
                found is not None and found.pid == self.pid and found.status == "ready"
            )

        if not await until(settled, 5):
            log.warning("embedded postgres is recovering", pid=self.pid)
            if not await until(settled, self.timing.start):
                await self.stop()
                raise EmbeddedError(
                    f"PostgreSQL (pid {self.pid}) accepts no connections after "
                    f"{self.timing.start:.0f} s: see {self.cluster}/log, {ALTERNATIVE}."
                )
        return self.alive()

    def _take_over(self) -> None:
        """Delete a stale pid file, and make `account` the owner of a cluster from elsewhere."""
        if found := find_postmaster(self.cluster):
            raise EmbeddedError(
                f"PostgreSQL (pid {found.pid}) of {self.cluster} does not stop: "
                f"kill -9 {found.pid}, {ALTERNATIVE}."
            )
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        if self.account and self.cluster.stat().st_uid != self.account.pw_uid:
            for path in (self.cluster, *self.cluster.rglob("*")):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def _name(self) -> str:
        """In the title of each of its processes. It stays the same when the folder is moved."""
        status = self.cluster.stat()
        return f"brain-{status.st_dev:x}-{status.st_ino:x}"

    def _kill_orphans(self) -> None:
        # A busy backend does not notice that its postmaster is dead, and keeps the shared memory.
        title = f"postgres: {self._name()}: "
        owner = self.cluster.stat().st_uid
        for process in processes():
            if process.uid == owner and process.command.startswith(title):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    log.warning("embedded postgres orphan killed", pid=process.pid)

    def _last_logged(self) -> str:
        newest = max((self.cluster / "log").iterdir(), key=lambda path: path.stat().st_mtime)
        with newest.open("rb") as lines:
            return f"{newest}: {last_lines(lines)}"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.child is not None:
                self.child.send_signal(number)
            else:
                os.kill(self.pid, number)

    def _report(self, event: str) -> None:
        log.info(event, port=self.port, pid=self.pid, cluster=str(self.cluster))
