"""A reader who does what a document says: in one empty folder, block by block, in its terminals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.docs.fences import Fence
from tests.integration.api.test_examples import timeless
from tests.support import ROOT, script
from tests.support.patience import PATIENCE, wait_until
from tests.support.ports import accepts, free_port
from tests.support.postgres import _readable, execute
from tests.support.proxy import Proxy
from tests.support.served import Brain

NODE = ROOT / "tests" / "support" / "node" / "node_modules"

GOES_ON = re.compile(
    r"npx -y wscat|\S*brain (?:serve|watch|demo)\b(?!.*\| head)|python3 -m http\.|nginx "
)
"""Commands that end by Ctrl-C. Such a command is alone in its block."""

_TERMINAL = re.compile(r"# (?:Terminal|终端) (\d)")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00)?")


class Running:
    """A command that goes on in a terminal, until the reader presses Ctrl-C there."""

    def __init__(self, command: str, log: Path, **options: Any) -> None:
        self.command = command
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )

    def output(self) -> str:
        return self.log.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def interrupt(self) -> None:
        """Ctrl-C goes to all processes of the terminal."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.stdin
        self.process.stdin.close()
        try:
            status = self.process.wait(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        assert status in (0, 1, 130, -signal.SIGINT), f"{self.command}: {status}\n{self.output()}"
        assert "Traceback" not in self.output() or "http.server" in self.command, self.output()


class Reader:
    """Follows one document. Its `localhost:5221` is the Brain of the tests, or one that it starts
    itself, on `port`.
    """

    def __init__(self, folder: Path, brain: Brain, database: str, *, own_brain: bool) -> None:
        self.folder = folder
        self.brain = brain
        self.database = database
        self.port = free_port() if own_brain else brain.port
        self.ports = {number: free_port() for number in ("8000", "8443")}
        self.running: dict[str, Running] = {}
        self.output = ""
        """What the last command printed that has ended."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BRAIN_")}
        kept.pop("DATABASE_URL", None)
        path = f"{script.folder()}:{Path(sys.prefix) / 'bin'}:{_readable(18)}:{kept['PATH']}"
        self.environment = kept | {"PATH": path, "NO_PROXY": "*", "TERM": "dumb"}
        if own_brain:
            self.environment["BRAIN_PORT"] = str(self.port)
        else:
            self.environment |= {
                "BRAIN_URL": f"http://localhost:{brain.port}",
                "BRAIN_DATABASE_URL": database,
                "BRAIN_PORT": "0",
            }
        _link_environment(folder / ".venv")
        (folder / "deploy").symlink_to(ROOT / "deploy")
        if NODE.exists():
            (folder / "node_modules").symlink_to(NODE)

    def here(self, text: str, port: int = 0) -> str:
        """The text with the ports, the database and the mirrors of this machine."""
        text = text.replace("psql -h localhost -U cecelia cecelia", f"psql {self.database}")
        text = text.replace("postgresql://user:password@host:5432/database", self.database)
        text = text.replace("<mirror URL>", "https://mirror.example/simple")
        for number, free in self.ports.items():
            text = re.sub(rf"\b{number}\b", str(free), text)
        return re.sub(r"\b5221\b", str(port or self.port), text)

    # What the reader does with a block

    def save(self, fence: Fence) -> None:
        (self.folder / fence.name).write_text(self.here(fence.text))

    def sh(self, fence: Fence) -> None:
        terminal = found[1] if (found := _TERMINAL.match(fence.text)) else "1"
        if terminal in self.running:
            self.running.pop(terminal).interrupt()
        script = self.here(fence.text)
        self._caught_up()
        going_on = [command for command in fence.commands if GOES_ON.match(command)]
        state = self.folder / f".terminal-{terminal}"
        with_state = f"[ -f {state} ] && . {state}\n{script}"
        where: dict[str, Any] = {"cwd": self.folder, "env": self.environment}
        if going_on:
            assert len(fence.commands) == 1, f"{fence.place}: a command that goes on is alone"
            self._begin(Running(with_state, state.with_suffix(".log"), **where), terminal)
            return
        ended = f"set -e\n{with_state}\n{{ export -p; echo cd $PWD; }} >{state}"
        self._run(fence, ["bash", "-c", ended], **where)

    def _run(
        self, fence: Fence, command: Sequence[str | Path], *, seconds: float = PATIENCE, **how: Any
    ) -> None:
        """The command succeeds, and what it prints is `output`."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, **how
        )
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{fence.place}\n{self.here(fence.text)}\n{said}"
        self.output = done.stdout

    def _begin(self, running: Running, terminal: str) -> None:
        """Returns once a reader would see that the command has begun."""
        self.running[terminal] = running
        clients = self._clients()

        def begun() -> bool:
            assert not running.ended(), f"{running.command} has ended:\n{running.output()}"
            if " serve" in running.command:
                return "Paste" in running.output() and "now=replication" in running.output()
            if "wscat" in running.command:
                return self._clients() > clients
            if " watch" in running.command:  # the one before it may not have left yet
                return "brain: connected to" in running.output()
            if "nginx" in running.command:
                return accepts(self.ports["8443"])
            return " demo" not in running.command or "playing" in running.output()

        wait_until(begun, running.output)

    def _caught_up(self) -> None:
        """A reader is slower than Brain: what they wrote has been pushed when they go on."""

        def runs(query: str) -> list[Any]:
            answer = self.brain.get(f"/api/runs?limit=1000{query}")[1]
            return sorted(answer.get("runs", ()), key=lambda run: str(run["id"]))

        if self.port == self.brain.port:
            wait_until(lambda: runs("") == runs("&order=changed"))

    def _clients(self) -> int:
        return int(self._ready().get("clients", 0))

    def _ready(self) -> Any:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).json()
        except httpx.TransportError:
            return {}

    def sql(self, fence: Fence) -> None:
        command = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", self.database]
        self._run(fence, command, input=self.here(fence.text), env=self.environment)

    def python(self, fence: Fence, prelude: str) -> None:
        """Run it while runs change, and while its connection is cut now and then."""
        file = self.folder / f"line-{fence.line}.py"
        with Proxy(self.port) as proxy, self._changes(proxy):
            file.write_text(self.here(prelude + fence.text, proxy.port))
            self._run(
                fence,
                [sys.executable, "-m", "tests.docs.run_python", file, str(PATIENCE)],
                seconds=2 * PATIENCE,
                cwd=self.folder,
                env=self.environment | {"PYTHONPATH": str(ROOT)},
            )

    @contextmanager
    def _changes(self, proxy: Proxy) -> Iterator[None]:
        over = threading.Event()

        def change() -> None:
            while not over.is_set():
                execute(
                    self.database,
                    """
                    INSERT INTO runs (id, agent, task_id)
                    VALUES ('run-1', 'agent-1', 'task-1'), ('gone', 'agent-1', 'task-1')
                    ON CONFLICT (id) DO UPDATE SET status = 'running', progress = random();
                    UPDATE runs SET status = 'completed' WHERE id = 'run-1';
                    DELETE FROM runs WHERE id = 'gone';
                    """,
                )
                over.wait(0.3)
                proxy.cut()

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # What the document says that the reader sees

    def sees_json(self, fence: Fence) -> None:
        """The answer of the command before it, or lines of commands that go on."""
        expected = timeless(documents(self.here(fence.text)))
        assert expected, fence.place
        if printed := documents(self.output):
            assert timeless(printed) == expected, fence.place
            return

        def missing() -> list[Any]:
            shown = [each for run in self.running.values() for each in documents(run.output())]
            return [each for each in expected if each not in timeless(shown)]

        wait_until(lambda: not missing(), lambda: f"{fence.place}: never shown: {missing()}")

    def sees(self, fence: Fence) -> None:
        """Each line, but for times."""

        def missing() -> list[str]:
            shown = [self.output, *(each.output() for each in self.running.values())]
            lines = {_plain(line) for text in shown for line in text.splitlines()}
            expected = {_plain(line) for line in self.here(fence.text).splitlines()}
            return sorted(expected - lines)

        wait_until(
            lambda: not missing(), lambda: f"{fence.place}: not in {self.output!r}: {missing()}"
        )

    def leaves(self) -> None:
        """Ctrl-C in each terminal."""
        with ExitStack() as terminals:
            for running in self.running.values():
                terminals.callback(running.interrupt)


def _link_environment(folder: Path) -> None:
    """Our virtual environment, but for its script `brain`."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "brain").symlink_to(script.folder() / "brain")
    for each in (*Path(sys.prefix).iterdir(), *(Path(sys.prefix) / "bin").iterdir()):
        link = folder / each.relative_to(sys.prefix)
        if not link.exists():
            link.symlink_to(each)


def _plain(line: str) -> str:
    return " ".join(_TIME.sub("time", line).split())


def documents(text: str) -> list[Any]:
    """The JSON in a text: all of it, or whole lines, behind the `< ` of wscat too."""
    with suppress(ValueError):
        return [json.loads(text)]
    lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|^< ", "", line) for line in text.splitlines())
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(re.sub("^< ", "", line.strip())))
    return [each for each in found if isinstance(each, dict)]
