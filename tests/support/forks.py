"""Runs tests in forks of the process that has collected them: `pytest --forks 4`.

    pytest          imports the modules of tests, forks, and prints what the workers report
      ├── worker    takes a module from the queue, runs its tests, and takes the next
      └── worker

Each worker of pytest-xdist imports and collects all tests itself, which costs 5 s of a core for
each, and twice as much in a new clone: there each of them rewrites the assertions of all modules.

The queue is a pipe that holds the numbers of all modules before the first fork. A worker takes the
next one before the last test of a module, because pytest asks what follows: fixtures of the session
live on if something does.
"""

import atexit
import contextlib
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from itertools import groupby, pairwise
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Final, TypeAlias

import pytest

from tests.support import ports, prefork, script

Reports: TypeAlias = "Connection[Any, Any]"

NUMBER: Final = struct.Struct("=I")


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forks", type=int, default=0, metavar="N", help="run the tests in N processes"
    )


def run(session: pytest.Session) -> bool:
    """Returns whether it has run them, for `pytest_runtestloop`."""
    count: int = session.config.option.forks
    if not count or session.config.option.collectonly or session.testsfailed or not session.items:
        return False
    _Forks(session, count).run()
    return True


class _Forks:
    def __init__(self, session: pytest.Session, count: int) -> None:
        self._session = session
        self._config = session.config
        self._count = count
        self._left = {item.nodeid for item in session.items}
        """The tests that have not run."""
        self._workers: dict[Reports, int] = {}
        """What each reports on, and its process id."""
        self._running: dict[Reports, str] = {}

    def run(self) -> None:
        assert threading.active_count() == 1, "a fork has one thread"
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal:  # tests of several modules take turns
            terminal.showfspath = False
        prefork.save_coverage()
        sys.stdout.flush()
        sys.stderr.flush()
        before = None
        while self._left and len(self._left) != before:  # of a worker that died, others do the rest
            before = len(self._left)
            items = (item for item in self._session.items if item.nodeid in self._left)
            self._run([list(each) for _, each in groupby(items, lambda item: item.path)])
        if self._left:
            raise self._session.Failed(f"{len(self._left)} tests have not run")

    def _run(self, modules: list[list[pytest.Item]]) -> None:
        queue, filled = os.pipe()
        os.write(filled, b"".join(map(NUMBER.pack, range(len(modules)))))
        os.close(filled)
        for number in range(min(self._count, len(modules))):
            self._fork(number, queue, modules)
        os.close(queue)
        try:
            while self._workers:
                for each in wait(list(self._workers)):
                    assert isinstance(each, Connection)
                    self._hear(each)
        except KeyboardInterrupt:  # which the workers have too, from the terminal
            self._end()
            raise
        except BaseException:
            for pid in self._workers.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
            self._end()
            raise

    def _fork(self, number: int, queue: int, modules: list[list[pytest.Item]]) -> None:
        heard, reports = Pipe(duplex=False)
        factory: Any = getattr(self._config, "_tmp_path_factory", None)
        folder = factory.mktemp(f"worker-{number}-") if factory else None
        pid = os.fork()
        if pid:
            reports.close()
            self._workers[heard] = pid
            return
        status = 1
        try:
            if factory:
                factory._basetemp = folder
            ports.take_share(number)
            _Worker(self._session, queue, reports).run(modules)
            status = 0
        except KeyboardInterrupt:
            status = 2
        except BaseException:  # noqa: BLE001 - else it would go on as its parent
            traceback.print_exc()
        finally:
            os._exit(status)

    def _hear(self, worker: Reports) -> None:
        try:
            said = worker.recv()
        except EOFError:
            _, status = os.waitpid(self._workers.pop(worker), 0)
            worker.close()
            if test := self._running.pop(worker, ""):
                self._lost(test, os.waitstatus_to_exitcode(status))
            elif status:
                raise self._session.Failed(f"a worker ended with {status}") from None
            return
        if isinstance(said, str):
            self._running[worker] = said
            return
        del self._running[worker]
        self._report(said)

    def _report(self, said: dict[str, Any]) -> None:
        self._left.discard(said["test"])
        hook, test = self._config.hook, {"nodeid": said["test"], "location": said["location"]}
        hook.pytest_runtest_logstart(**test)
        for each in said["reports"]:
            report = hook.pytest_report_from_serializable(config=self._config, data=each)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(**test)
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)

    def _lost(self, test: str, status: int) -> None:
        """A worker has ended in the middle of a test."""
        self._left.discard(test)
        said = f"the worker ended with {status}"
        where = (test.partition("::")[0], None, test)
        report = pytest.TestReport(test, where, {}, "failed", said, "call")
        self._config.hook.pytest_runtest_logreport(report=report)

    def _end(self) -> None:
        """Wait until each worker has left its fixtures."""
        for pid in self._workers.values():
            os.waitpid(pid, 0)


class _Worker:
    """In the forked process."""

    def __init__(self, session: pytest.Session, queue: int, reports: Reports) -> None:
        self._session = session
        self._config = session.config
        self._queue = queue
        self._connection = reports
        self._reports: list[dict[str, Any]] = []

    def run(self, modules: list[list[pytest.Item]]) -> None:
        atexit._clear()  # that is for the parent to do
        plugins = self._config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(self, "worker")
        capture: Any = plugins.get_plugin("capturemanager")
        if capture:  # into files of its own
            capture.stop_global_capturing()
            capture.start_global_capturing()
            capture.suspend_global_capture()
        try:
            for item, following in self._tests(modules):
                self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self._session.shouldfail or self._session.shouldstop:
                    break
        finally:
            self._session._setupstate.teardown_exact(None)
            script.close()
            prefork.close()
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            prefork.save_coverage()

    def _tests(
        self, modules: list[list[pytest.Item]]
    ) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
        """Each, and the one that follows."""
        number = self._taken()
        while number is not None:
            items = modules[number]
            yield from pairwise(items)
            number = self._taken()
            yield items[-1], None if number is None else modules[number][0]

    def _taken(self) -> int | None:
        """The number of a module that nobody has run."""
        found = os.read(self._queue, NUMBER.size)
        return NUMBER.unpack(found)[0] if found else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._send(item.nodeid)
        self._reports = []
        result = yield
        self._send({"test": item.nodeid, "location": item.location, "reports": self._reports})
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        made = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._reports.append(made)

    def _send(self, said: object) -> None:
        self._connection.send(said)
