"""A running Brain, as its own process, and what tests ask it."""

import asyncio
import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect

from tests.support.patience import LIFETIME, PATIENCE, eventually
from tests.support.ports import free_port

Message: TypeAlias = dict[str, Any]

BRAIN = [sys.executable, "-m", "brain"]


def _folder() -> Path:
    """Until this process ends: those of one `make test` take 330 MB together."""
    made = Path(tempfile.mkdtemp(prefix="brain-served-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class Brain:
    """`brain serve` with these settings.

    Unless `wait` is false, the constructor returns once Brain follows the database by the source
    that `follows` names, or by any if that is "". `shell` is a command that starts it as "$@".
    """

    def __init__(
        self,
        *,
        wait: bool = True,
        follows: str = "replication",
        folder: Path | None = None,
        shell: str = "",
        errors: int = subprocess.STDOUT,
        **settings: object,
    ) -> None:
        self.folder = folder or _folder()
        self.folder.chmod(0o755)  # under root, the embedded PostgreSQL runs as `nobody`
        self.log_file = self.folder / "log"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")
        }
        environment.pop("DATABASE_URL", None)
        environment |= {"BRAIN_PORT": str(free_port()), "BRAIN_MAX_CONNECTIONS_PER_IP": "0"}
        environment |= {f"BRAIN_{name.upper()}": str(value) for name, value in settings.items()}
        within = ["/bin/sh", "-c", shell, "sh"] if shell else []
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, *BRAIN, "serve"],
                stdout=log,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.folder,
            )
        self.port = 0
        if wait:
            self.wait_for("on port (\\d+)\\. Paste")
            self.port = int(re.findall(r"on port (\d+)\. Paste", self.log())[-1])
            self.wait_ready(follows)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Until the log matches, for as long as the process lives."""
        deadline = time.monotonic() + LIFETIME
        while True:
            ended = self.process.poll() is not None  # before the last look at the log
            if re.search(pattern, self.log()):
                return
            if ended:
                raise AssertionError(
                    f"brain serve exited with {self.process.returncode}:\n{self.log()}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r}:\n{self.log()}")
            time.sleep(0.02)

    def wait_ready(self, source: str = "", seconds: float = LIFETIME) -> None:
        """Until /readyz says so, and names this source if one is given.

        A Brain that has just been started may not listen yet.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                status, document = self.get("/readyz")
            except OSError as error:
                assert self.process.poll() is None, self.log()
                status, document = 0, error
            if status == 200 and source in ("", document["source"]):
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready: {document}\n{self.log()}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    # HTTP

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={} if body is None else {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, _decoded(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error)

    def get(self, path: str) -> tuple[int, Any]:
        return self.request("GET", path)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    # WebSocket

    def url(self, query: str = "", host: str = "127.0.0.1") -> str:
        return f"ws://{host}:{self.port}/ws{query}"

    async def knows(self, run_id: str, status: str = "queued") -> None:
        """Wait until Brain has read this change: whoever connects from now on finds it there."""
        path = f"/api/runs?order=changed&run_id={quote(run_id, safe='')}"

        def known() -> bool:
            return [run["status"] for run in self.get(path)[1]["runs"]] == [status]

        await eventually(known)

    def connect(self, query: str = "", **options: Any) -> connect:
        return connect(self.url(query), **{"compression": None, "proxy": None} | options)


def _decoded(answer: Any) -> Any:
    body = answer.read().decode()
    return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body


@contextmanager
def served(**settings: Any) -> Iterator[Brain]:
    """A Brain that is stopped at the end, and must exit with 0 and without a traceback."""
    brain = Brain(**settings)
    try:
        yield brain
        assert brain.stop() == 0, brain.log()
        assert "Traceback" not in brain.log(), brain.log()
    finally:
        if brain.process.poll() is None:
            brain.process.kill()
            brain.process.wait()


async def messages(client: ClientConnection, count: int) -> list[Message]:
    """The next messages, decoded."""
    return [await message(client) for _ in range(count)]


async def message(client: ClientConnection) -> Message:
    text = await asyncio.wait_for(client.recv(), PATIENCE)
    decoded: Message = json.loads(text)
    return decoded


async def silent(client: ClientConnection, seconds: float = 0.3) -> bool:
    """Whether no message arrives in this time."""
    try:
        await asyncio.wait_for(client.recv(), seconds)
    except TimeoutError:
        return True
    return False


async def until(client: ClientConnection, run_id: str, status: str) -> list[Message]:
    """Messages up to the first in which this run has this status."""
    seen: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        async for text in client:
            seen.append(json.loads(text))
            if seen[-1]["data"]["id"] == run_id and seen[-1]["data"]["status"] == status:
                return seen
    raise AssertionError(f"the connection ended before {run_id} was {status}: {seen[-3:]}")


async def stream(client: ClientConnection) -> AsyncIterator[Message]:
    async for text in client:
        yield json.loads(text)
