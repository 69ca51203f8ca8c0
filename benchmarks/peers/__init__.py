"""What people would use instead of Brain: small programs, each written as its users write it.

All do the same job: a row of `runs` changes in PostgreSQL, and every WebSocket client of `/ws`
receives the message of docs/reference/protocol.md.

`python -m benchmarks.peers` builds what needs building, and reports what this machine cannot
build.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import quote

from benchmarks import machine
from tests.support.ports import accepts

HERE = Path(__file__).parent
BUILT = Path(__file__).parents[1] / "build"
SOCKETIFY = BUILT / "socketify"
CENTRIFUGO = "github.com/centrifugal/centrifugo/v6@v6.9.1"
CENTRIFUGO_PATH = "/connection/uni_websocket?cf_connect=" + quote('{"subs":{"runs":{}}}', safe="")


class CannotBuild(Exception):  # noqa: N818 - a reason to skip a peer, rarely an error
    """The peer cannot be built here. The text says what is missing."""


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    build: Callable[[], None]
    """Raises CannotBuild. Quick if the peer is already built."""
    command: Callable[[int, str], list[str]]
    """From a port and the URL of a database."""
    sql: str = "trigger.sql"
    """What the table needs so that the peer hears of changes."""
    path: str = "/ws"
    hello: str = ""
    ready: Callable[["Server"], bool] = lambda server: "ready" in server.log()
    """True when it listens to the database."""
    environment: dict[str, str] = field(default_factory=dict)
    feeder: Callable[[int, str], list[str]] | None = None
    """A program of its own that tells the server of changes. It does not run on its core."""


def _nothing() -> None:
    pass


def _node() -> None:
    folder = HERE / "node_ws"
    if not (shutil.which("node") and shutil.which("npm")):
        raise CannotBuild("Node.js with npm is not installed")
    if not (folder / "node_modules" / "ws").is_dir():
        _run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder)


def _floor() -> None:
    BUILT.mkdir(exist_ok=True)
    if not shutil.which("cc"):
        raise CannotBuild("a C compiler (cc) is not installed")
    source, program = HERE / "floor.c", BUILT / "floor"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)])


def _socketify() -> None:
    """Apart from the virtual environment, which no user of Brain shares with it."""
    wanted = HERE / "socketify" / "requirements.txt"
    stamp = SOCKETIFY / wanted.name
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        shutil.rmtree(SOCKETIFY, ignore_errors=True)
        install = ["install", "--quiet", "--disable-pip-version-check"]
        where = ["--no-deps", "--require-hashes", "--target", str(SOCKETIFY), "-r", str(wanted)]
        _run([sys.executable, "-m", "pip", *install, *where])
        _run(
            [sys.executable, "-c", "import socketify"],
            env=os.environ | {"PYTHONPATH": str(SOCKETIFY)},
        )
        shutil.copy(wanted, stamp)


def _centrifugo() -> None:
    if (BUILT / "centrifugo").exists():
        return
    if not shutil.which("go"):
        raise CannotBuild("Go is not installed")
    _run(["go", "install", CENTRIFUGO], env=os.environ | {"GOBIN": str(BUILT)})


def _centrifugo_command(port: int, url: str, *, consumer: bool) -> list[str]:
    """Open to everyone, one channel, one port, and no optional feature that costs time.

    `consumer`: it reads an outbox in PostgreSQL itself. Otherwise somebody calls its API.
    """
    configuration = json.loads((HERE / "centrifugo" / "config.json").read_text())
    configuration["http_server"]["port"] = port
    if consumer:
        configuration["consumers"][0]["postgresql"]["dsn"] = url
    else:
        del configuration["consumers"]
    path = BUILT / "centrifugo.json"
    path.write_text(json.dumps(configuration))
    return [str(BUILT / "centrifugo"), "-c", str(path)]


def brain(name: str, title: str, source: Path | None = None, **environment: str) -> Peer:
    """Brain with these settings; of another version, if `source` is that version's src/."""
    # The peers have no such limits, and write no line per client.
    unlimited = {
        "BRAIN_MAX_CONNECTIONS": "0",
        "BRAIN_MAX_CONNECTIONS_PER_IP": "0",
        "BRAIN_LOG_LEVEL": "warning",
    }
    other = {"PYTHONPATH": str(source)} if source else {}
    return Peer(
        name,
        title,
        _nothing,
        lambda *_: [sys.executable, "-m", "brain", "serve"],
        sql="",
        ready=lambda server: server.readiness().get("source") == "replication",
        environment=unlimited | other | environment,
    )


def _run(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr or done.stdout, file=sys.stderr)
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise CannotBuild(f"`{' '.join(command)}` failed: {last.strip()}")


PEERS = {
    peer.name: peer
    for peer in (
        brain("brain", "Brain"),
        Peer(
            "socketify",
            "socketify (uWebSockets, C++) + LISTEN",
            _socketify,
            lambda port, _: [sys.executable, str(HERE / "socketify" / "server.py"), str(port)],
            environment={"PYTHONPATH": str(SOCKETIFY)},
        ),
        Peer(
            "centrifugo",
            "Centrifugo + LISTEN",
            _centrifugo,
            partial(_centrifugo_command, consumer=False),
            path=CENTRIFUGO_PATH,
            ready=lambda server: "publishing" in server.log(),
            feeder=lambda port, _: [
                *(sys.executable, str(HERE / "centrifugo" / "publish.py")),
                str(port),
            ],
        ),
        Peer(
            "centrifugo_outbox",
            "Centrifugo, PostgreSQL consumer",
            _centrifugo,
            partial(_centrifugo_command, consumer=True),
            sql="centrifugo/outbox.sql",
            path=CENTRIFUGO_PATH,
            ready=lambda server: "consuming" in server.log() or "serving" in server.log(),
        ),
        Peer(
            "node_ws",
            "Node.js ws + pg LISTEN",
            _node,
            lambda port, _: ["node", str(HERE / "node_ws" / "server.js"), str(port)],
            environment={"NODE_ENV": "production"},
        ),
        Peer(
            "fastapi",
            "FastAPI + LISTEN",
            _nothing,
            lambda port, _: [sys.executable, str(HERE / "fastapi_listen.py"), str(port)],
        ),
        Peer(
            "websockets",
            "websockets broadcast + LISTEN",
            _nothing,
            lambda port, _: [sys.executable, str(HERE / "websockets_broadcast.py"), str(port)],
        ),
        Peer(
            "floor",
            "C floor, one send() per client and message",
            _floor,
            lambda port, _: [str(BUILT / "floor"), str(port)],
            sql="",
        ),
    )
}


class Server:
    """A peer as a running process. The floor reads on standard input what to send."""

    def __init__(self, peer: Peer, url: str, *, port: int = 0, cores: str = "") -> None:
        self.peer = peer
        self.port = port or _free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the server runs
        own = {name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")}
        addresses = {"DATABASE_URL": url, "BRAIN_PORT": str(self.port), "BRAIN_HOST": "127.0.0.1"}
        self._environment = own | addresses | peer.environment
        self.process = self._start(peer.command(self.port, url), cores)
        self.pid = self.process.pid
        self.feeder = (
            self._start(peer.feeder(self.port, url), machine.cores()[1] if cores else "")
            if peer.feeder
            else None
        )
        deadline = time.monotonic() + 30
        while not (accepts(self.port) and peer.ready(self)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{peer.name} did not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)  # between two looks

    def _start(self, command: list[str], cores: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*(["taskset", "-c", cores] if cores else []), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env=self._environment,
        )

    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def readiness(self) -> dict[str, object]:
        """What Brain itself reports."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/readyz", timeout=5
            ) as answer:
                document: dict[str, object] = json.load(answer)
                return document
        except (urllib.error.HTTPError, OSError):
            return {}

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def stop(self) -> None:
        for process in (self.process, self.feeder):
            if process:
                process.kill()  # some would first close 10 000 clients
                process.wait()
                if process.stdin:
                    process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_all() -> dict[str, str]:
    """Build all. Returns peer → why it cannot be built here."""
    missing = {}
    for peer in PEERS.values():
        try:
            peer.build()
        except CannotBuild as reason:
            missing[peer.name] = str(reason)
    return missing
