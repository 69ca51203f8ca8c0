"""A real nats-server, from the wheel, that a test may configure, stop, kill and suspend."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE
from tests.support.ports import free_port

PROGRAM = Path(sys.executable).with_name("nats-server")


def available() -> bool:
    return PROGRAM.is_file()


class NatsServer:
    """On a port and with a store that it keeps over restarts. `settings` are those of its
    configuration file, beside JetStream's.
    """

    def __init__(self, settings: str = "", *, port: int = 0, name: str = "") -> None:
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="brain-nats-"))
        self.store = self.folder / "store"
        self._settings = settings
        self.name = name or f"test-{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f"server_name: {json.dumps(self.name)}\n"
            # Streams reserve what they may grow to.
            f"jetstream {{ store_dir: {json.dumps(str(self.store))}, max_file: 10TB }}\n"
            f"{self._settings}\n"
        )
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-c", configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        began = len(self.log())
        while "Server is ready" not in self.log()[max(0, began - 2000) :]:
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(PATIENCE)

    def lose_store(self) -> None:
        """While it is stopped."""
        shutil.rmtree(self.store, ignore_errors=True)

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def nats_running(settings: str = "", **options: Any) -> Iterator[NatsServer]:
    server = NatsServer(settings, **options)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def cluster(count: int) -> Iterator[list[NatsServer]]:
    """So many servers that share their streams."""
    routes = [free_port() for _ in range(count)]
    urls = [f"nats://127.0.0.1:{port}" for port in routes]
    with contextlib.ExitStack() as stack:
        servers = [
            NatsServer(
                f"cluster {{ name: test, listen: 127.0.0.1:{port}, routes: {json.dumps(urls)} }}"
            )
            for port in routes
        ]
        for each in servers:
            stack.callback(each.remove)
            each.start()
        yield servers
