"""One PostgreSQL for the session, and for each test a fresh database with an empty table `runs`."""

import contextlib
import gc
import os
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from psycopg import conninfo

from tests.support import measuring, prefork, script
from tests.support.databases import Databases
from tests.support.issuer import SECRET
from tests.support.nats import NatsServer, nats_running
from tests.support.nats import available as nats_available
from tests.support.postgres import EXTREMES, NEWEST, Postgres, available, clusters, hang_up, running
from tests.support.served import Brain, served
from tests.support.template import ROLE, with_template
from tests.support.wire import Baseline, Control, baseline, settled

if TYPE_CHECKING:
    from brain.postgres.polling import Mode

# A shell's background job ignores SIGINT, and its children inherit that: tests that send SIGINT
# would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# And nohup lets them ignore SIGHUP.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

prefork.install()

# A test that takes long on a busy machine is not wrong.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

FAULTS = (Path(__file__).parent / "faults", Path(__file__).parent / "oracle" / "test_torture.py")
"""Whose tests are those of `make faults`, but for the `cheap` ones."""


def _left_out(items: list[pytest.Item]) -> set[pytest.Item]:
    """Each case of a test runs on one of the versions, and about half of the cases on each: so does
    a test that has one case besides the version. What differs between versions is marked.
    BRAIN_TEST_POSTGRES runs each on all that it names.
    """
    tests: dict[tuple[Path, str], dict[str, list[tuple[int, pytest.Item]]]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        version = callspec.params.get("any_postgres") if callspec else None
        if version is not None and item.get_closest_marker("each_version") is None:
            case = item.nodeid.replace(f"pg{version}", "")
            test = (item.path, getattr(item, "originalname", ""))
            tests.setdefault(test, {}).setdefault(case, []).append((version, item))
    out: set[pytest.Item] = set()
    for (_, name), cases in tests.items():
        # As if drawn: not all cases of one mode on the same version.
        drawn = sorted(cases, key=lambda case: zlib.crc32(case.encode()))
        for place, case in enumerate(drawn, zlib.crc32(name.encode())):
            out.update(
                item for version, item in cases[case] if version != EXTREMES[place % len(EXTREMES)]
            )
    return out


def _chosen(config: pytest.Config) -> bool:
    """Whether the command line names tests: those run on every version."""
    return any("::" in each for each in config.args) or bool(config.option.keyword)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage meanwhile: nearly all that is made stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("BRAIN_TEST_POSTGRES") and not _chosen(config):
        out = _left_out(items)
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]
    of_faults = {path: any(map(path.is_relative_to, FAULTS)) for path in {i.path for i in items}}
    for item in items:
        if of_faults[item.path] and item.get_closest_marker("cheap") is None:
            item.add_marker(pytest.mark.faults)
    # Else the last worker has a minute's work when the others have none.
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Freeze what exists before the first test: a collection then takes 1 ms instead of 100."""
    gc.collect()
    gc.freeze()
    measuring.begin()


_clusters = clusters()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if measuring.is_measured(item):
        return (yield)
    with measuring.unmeasured():
        return (yield)


def pytest_configure() -> None:
    _clusters.__enter__()


def pytest_unconfigure() -> None:
    _clusters.__exit__(None, None, None)
    script.close()
    prefork.close()
    measuring.end()


def _clear(error: BaseException) -> None:
    """Release what a failed test held, once its report is made: it must not fail the next test."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        with contextlib.suppress(RuntimeError):  # it still runs
            frame.clear()
        frame.f_locals  # noqa: B018 - the copy that the report was made from is updated
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        _clear(part)


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Report what a test has leaked with that test, and not in the middle of another."""
    yield
    error: BaseException | None = getattr(sys, "last_value", None)
    while error is not None:
        _clear(error)
        error = error.__context__
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _collect_module() -> Iterator[None]:
    """Report what a module's fixtures have leaked with its last test, and freeze what is left.

    It lives as long as the session: imported modules, reports. Without this, the collection after
    each test took 1 ms in the first module and 40 ms in the last.
    """
    yield
    hang_up()
    gc.collect()
    gc.freeze()


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """For random tests, which run the same lines many thousand times: coverage would take more than
    half of their time, and the lines are counted by the tests that are about one rule.
    """
    with measuring.unmeasured():
        yield


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], Databases]]:
    """The server of a version, which runs to the end: pytest tears a parametrized fixture down
    whenever the next test has another parameter, so in every module.
    """
    with ExitStack() as stack:

        @cache
        def start(version: int) -> Databases:
            return Databases(with_template(stack.enter_context(running(version))))

        yield start


@pytest.fixture(scope="session")
def postgres(servers: Callable[[int], Databases]) -> Postgres:
    """The server that tests share. A test that stops or reconfigures a server starts its own, with
    `running()`.
    """
    return servers(NEWEST).server


@pytest.fixture(scope="session", params=EXTREMES, ids=lambda version: f"pg{version}")
def any_postgres(request: pytest.FixtureRequest, servers: Callable[[int], Databases]) -> Postgres:
    """The same on the newest and on the oldest version: whatever runs on this runs on both."""
    version: int = request.param
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    return servers(version).server


@pytest.fixture
def database(servers: Callable[[int], Databases], postgres: Postgres) -> Iterator[str]:
    """The URL, for the role cecelia, of a database with an empty table `runs`."""
    with servers(postgres.version).one() as name:
        yield postgres.url(name, ROLE)


@pytest.fixture
def any_database(servers: Callable[[int], Databases], any_postgres: Postgres) -> Iterator[str]:
    """`database`, once on each version of PostgreSQL."""
    with servers(any_postgres.version).one() as name:
        yield any_postgres.url(name, ROLE)


@pytest.fixture
def superuser_url(postgres: Postgres, database: str) -> str:
    """The same database as `database`, for who may do anything."""
    return postgres.url(str(conninfo.conninfo_to_dict(database)["dbname"]))


@pytest.fixture
def admin(any_postgres: Postgres, any_database: str) -> str:
    """The same database as `any_database`, for who may do anything."""
    return any_postgres.url(str(conninfo.conninfo_to_dict(any_database)["dbname"]))


@pytest.fixture(params=["replication", "poll"])
def mode(request: pytest.FixtureRequest) -> "Mode":
    """How Brain follows the database: each in turn."""
    found: Mode = request.param
    return found


SIDE_BY_SIDE = 5
"""Scenarios at a time: each has a PostgreSQL and a Brain or two of its own, and mostly waits."""


@pytest.fixture(scope="module")
def begun(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """The module's scenarios (faults.aside), under way in threads: those whose tests are to run."""
    found: dict[str, Callable[[], None]] = {}
    for item in request.session.items:
        scenario = getattr(getattr(item, "function", None), "scenario", None)
        if item.path == request.path and scenario is not None:
            callspec = getattr(item, "callspec", None)
            found[item.name] = partial(scenario, **(callspec.params if callspec else {}))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {name: pool.submit(scenario) for name, scenario in found.items()}


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """A nats-server that tests share: each has a log of its own, that of its database."""
    if not nats_available():
        pytest.skip("nats-server is not installed")
    with nats_running() as server:
        yield server


# For modules whose tests share a Brain, which each of them calls `brain`


@pytest.fixture(scope="module")
def shared(servers: Callable[[int], Databases], postgres: Postgres) -> Iterator[str]:
    """A database for the whole module."""
    with servers(postgres.version).one() as name:
        yield postgres.url(name, ROLE)


@pytest.fixture(scope="module")
def guarded(shared: str) -> Iterator[Brain]:
    """Another Brain for that database, which requires tokens and never logs one."""
    with served(database_url=shared, jwt_secret=SECRET) as brain:
        yield brain
        assert "eyJ" not in brain.log()


@pytest.fixture(scope="module")
def control(brain: Brain, shared: str) -> Iterator[Control]:
    control = Control(brain, shared)
    yield control
    control.stop()


@pytest.fixture(scope="module")
def before(brain: Brain, control: Control) -> Baseline:
    assert control.told
    return baseline(brain)


@pytest.fixture
def undisturbed(brain: Brain, control: Control, before: Baseline) -> Iterator[None]:
    """Behind the test: nobody noticed, and nothing is left."""
    with control.undisturbed():
        yield
    settled(brain, before)
