"""Starts the command `brain` by a fork of a process that has imported it, at a fifth of the cost.

`install()` makes every start of exactly `BRAIN` with arguments such a fork, or of a script `brain`
by this interpreter, through subprocess and asyncio alike. tests/support/script.py does so for
shells. What it starts is a process like any other: it has its own arguments, environment, folder,
streams, session and limits. It runs `brain.__main__.main()` at the top level of an interpreter, and
ends as that does, but for the modules, which are not cleared. It is a child of the caller, who
waits for it as for any other (`subprocess.Popen` does not know the difference):

    caller                   sends the start, with its three streams; a subreaper until it is done
      └── prefork server     forks twice; the process between the two ends at once
            └── (ended)
                  └── brain  its parent has ended, so the kernel gives it to the caller

What a fork cannot imitate starts as usual: another interpreter or another program, such as the
script `.venv/bin/brain` by itself, and an environment that Python or a library reads while it
starts (PYTHON*, a locale). With BRAIN_TEST_PREFORK=0 everything does. Linux only.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from tests.support import ROOT, measuring
from tests.support.patience import LIFETIME
from tests.support.served import BRAIN

MODULES: Final = (
    "brain.__main__",
    "brain.access.jwks",
    "brain.access.tokens",
    "brain.app",
    "brain.cli.commands",
    "brain.cli.wait",
    "brain.cli.watch",
    "brain.client.api",
    "encodings.idna",
    "importlib.readers",
    "pprint",
    "uvicorn.lifespan.off",
    "xml.dom.minidom",
)
"""Those that the commands import, some of them late."""

AT_START: Final = ("PYTHON", "LC_", "LANG", "PSYCOPG_", "TYPER_", "_TYPER_")
"""How the names of variables begin that the interpreter or a library reads only as it starts."""

WITHOUT_EFFECT: Final = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER")
"""Of those, the ones that no test of a command is about."""

PLAIN_LOCALES: Final = ("", "C", "POSIX", "C.UTF-8", "C.utf8")
"""Python takes each of them for C.UTF-8 (PEP 538), unless PYTHONCOERCECLOCALE forbids it."""

REQUEST: Final = 1 << 17
"""Bytes of the largest start: a datagram of a Unix socket holds 200 KiB."""

_PR_SET_CHILD_SUBREAPER: Final = 36


# The caller

_environment: dict[str, str] = {}
"""That of the caller, before a test changes it, and of the server."""

_servers: list["_Server"] = []
_lock = threading.Lock()


def install() -> None:
    """From now on, every start of `BRAIN` in this process is a fork."""
    if sys.platform == "linux" and os.environ.get("BRAIN_TEST_PREFORK") != "0":
        _environment.update(os.environ)
        subprocess.Popen = _Popen  # type: ignore[misc]


def installed() -> bool:
    return subprocess.Popen is _Popen


def close() -> None:
    """End the server, and wait until it has written what coverage measured."""
    for server in _servers:
        server.connection.close()
        server.process.wait(LIFETIME)
    _servers.clear()


PARAMETERS: Final = tuple(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]  # type: ignore[attr-defined]
PIPES: Final = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


class _Popen(subprocess.Popen[Any]):
    def _execute_child(self, *values: Any) -> None:
        given = dict(zip(PARAMETERS, values, strict=True))
        start = _start(given)
        if start is None:
            super()._execute_child(*values)  # type: ignore[misc]
            return
        streams = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        with _lock:
            if not _servers:
                _servers.append(_Server())
            self.pid = _servers[0].fork(
                start, [own if given == -1 else given for own, given in enumerate(streams)]
            )
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]


def _start(given: dict[str, Any]) -> bytes | None:
    """What the server needs to know, or None if it cannot start this."""
    arguments = given["args"]
    if isinstance(arguments, str | bytes | os.PathLike):
        return None
    words = _command([os.fsdecode(each) for each in arguments])
    given_environment = os.environ if given["env"] is None else given["env"]
    environment = {os.fsdecode(k): os.fsdecode(v) for k, v in given_environment.items()}
    before = given["preexec_fn"]
    if (
        not words
        or given["executable"] is not None
        or given["shell"]
        or given["pass_fds"]
        or not given["close_fds"]
        or before not in (None, take_terminal)
        or (given["gid"], given["gids"], given["uid"]) != (None, None, None)
        or given["umask"] != -1
        or given["process_group"] != -1
        or not like_ours(environment)
    ):
        return None
    measured = _is_measured(words, environment)
    if measured:  # so are the workers that it starts
        environment |= measuring.variables
    start = json.dumps(
        {
            "program": words[0],
            "arguments": words[1:],
            "measured": measured,
            "environment": environment,
            "folder": os.fsdecode(given["cwd"] or Path.cwd()),
            "session": given["start_new_session"],
            "terminal": before is take_terminal,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
    ).encode()
    return start if len(start) <= REQUEST else None


def _command(command: list[str]) -> list[str]:
    """`sys.argv[0]` of the script `brain`, or "" for `python -m brain`, and the arguments. Nothing
    for another command.
    """
    if command[: len(BRAIN)] == BRAIN:
        return ["", *command[len(BRAIN) :]]
    if command[:1] == BRAIN[:1] and command[1:] and Path(command[1]).name == "brain":
        return command[1:]
    return []


def _is_measured(words: list[str], environment: Mapping[str, str]) -> bool:
    """For coverage: the first `serve` with these settings, and of a test the first command with
    these words, whatever their numbers. To measure a Brain takes as much time again as it does, and
    the second of a kind runs few lines that the first has not run. Modules about the server have
    clients of their own kind.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    module, _, function = test.partition("::")
    if words[1:2] == ["serve"]:
        about = module if "/server/" in module else ""
    else:
        about = f"{module}::{re.split(r'[ [(]', function)[0]}"
    settings = (name for name in environment if name.startswith("BRAIN_"))
    return measuring.is_first(about, *sorted(settings), re.sub(r"\d+", "", " ".join(words)))


def like_ours(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter that starts there is like this one."""
    return _read_at_start(environment) == _read_at_start(_environment)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    found = {
        name: text
        for name, text in environment.items()
        if name.startswith(AT_START) and name not in WITHOUT_EFFECT
    }
    locale = found.get("LC_ALL") or found.get("LC_CTYPE") or found.get("LANG") or ""
    if locale in PLAIN_LOCALES and "PYTHONCOERCECLOCALE" not in found:
        found = {name: text for name, text in found.items() if not name.startswith(("LC_", "LANG"))}
    return found


def take_terminal() -> None:
    """The `preexec_fn` of a command on a terminal: its standard input is that of its session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Server:
    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(LIFETIME)
        with theirs:
            ours = {k: v for k, v in _environment.items() if not k.startswith("BRAIN_")}
            imports = "measured" if measuring.is_first("the imports") else "unmeasured"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.prefork", str(theirs.fileno()), imports],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=ours | measuring.asked,
            )
        self._receive()

    def fork(self, start: bytes, streams: list[int]) -> int:
        """Returns the process id of a child of this process."""
        self._subreaper(True)
        try:
            socket.send_fds(self.connection, [start], streams)
            return int(self._receive())
        finally:
            self._subreaper(False)

    def _receive(self) -> bytes:
        answer = self.connection.recv(64)
        if not answer:
            raise AssertionError(f"the prefork server ended with {self.process.wait(LIFETIME)}")
        return answer

    def _subreaper(self, on: bool) -> None:
        if self._prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


# The server, and what it forks


def _next_start(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for every start. Returns None when the caller has closed the connection, and in each
    forked process what it is to run.
    """
    while True:
        request, streams, _, _ = socket.recv_fds(connection, REQUEST, 3)
        if not request:
            return None
        reader, writer = os.pipe()
        if between := os.fork():
            os.close(writer)
            os.waitpid(between, 0)
            connection.send(os.read(reader, 64))
            for each in (reader, *streams):
                os.close(each)
        elif os.fork():
            os._exit(0)
        else:
            start: dict[str, Any] = json.loads(request)
            if start["session"]:  # before the caller knows whom it has started
                os.setsid()
            os.write(writer, str(os.getpid()).encode())
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            connection.detach()
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            return start


def _become(start: dict[str, Any]) -> None:
    if start["terminal"]:
        take_terminal()
    resource.setrlimit(resource.RLIMIT_NOFILE, start["files"])
    os.chdir(start["folder"])
    if start["measured"]:
        atexit.register(measuring.end)
    else:
        _stop_coverage()
    os.environ.clear()
    os.environ.update(start["environment"])
    time.tzset()
    program = importlib.import_module("brain.__main__")
    assert program.__file__ is not None
    sys.argv = [start["program"] or program.__file__, *start["arguments"]]
    sys.modules[__spec__.name] = sys.modules["__main__"]
    # Whose package, or else sys.argv[0], the help calls the program.
    sys.modules["__main__"] = ModuleType("__main__") if start["program"] else program
    sys.path[0] = start["folder"]
    # As Python opens them when it starts.
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w", "backslashreplace")  # type: ignore[misc]


def _text(descriptor: int, mode: str, errors: str = "surrogateescape") -> Any:
    return open(
        descriptor,
        mode,
        buffering=1 if descriptor == 2 else -1,
        encoding="utf-8",
        errors=errors,
        newline="\n",
        closefd=False,
    )


def _serve(descriptor: int, imports: str) -> bool:
    """Whether this is a forked process, which has become what it is to run."""
    if imports == "measured":
        measuring.begin()
    for module in MODULES:
        importlib.import_module(module)
    _warm_up()
    if imports == "measured":
        _save_coverage()
    else:
        measuring.begin()
    gc.collect()
    gc.freeze()
    connection = socket.socket(fileno=descriptor)
    connection.send(b"ready")
    start = _next_start(connection)
    if start is None:
        return False
    _become(start)
    return True


def _warm_up() -> None:
    """Make and ask for what every Brain does: what that imports and compiles late takes 75 ms."""
    from brain.api.routes import create_api
    from brain.config import Settings
    from brain.page.routes import add_page

    Settings.load(database_url="postgresql://user@host/database")
    add_page(create_api(cast("Any", None)))
    inspect.getsourcelines(create_api)  # as FastAPI does for each route that is asked


def _save_coverage() -> None:
    """Else each forked process would save again what ran here, which takes 40 ms."""
    if running := measuring.current():
        running.stop()
        running.save()
        running.start()


def _stop_coverage() -> None:
    """Measure nothing from here on, and save nothing on SIGTERM."""
    if running := measuring.current():
        running.stop()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(status: int) -> None:
    """End as an interpreter does, but leave its modules: to clear them takes 40 ms, because it
    copies every page that this process shares with the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__" and _serve(int(sys.argv[1]), sys.argv[2]):
    try:
        importlib.import_module("brain.__main__").main()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            with contextlib.suppress(OSError, ValueError):  # Python itself says why it cannot flush
                _end(end.code or 0)
        raise
    _end(0)
