"""What the fault tests share: a server to harm, a Brain with clients, and scenarios that mostly
wait.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from inspect import Signature, signature
from typing import Any

import pytest

from tests.support.fleet import Fleet, sound
from tests.support.patience import within
from tests.support.postgres import Postgres, execute, running
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE, with_template

WITHIN = within(30)
"""Seconds until a client receives what it missed: fifteen times the promise for an idle machine."""


@contextmanager
def fresh(version: int = 18, **settings: str) -> Iterator[tuple[Postgres, str]]:
    """A server for this test alone, and the URL of a database on it."""
    with running(version, **settings) as server:
        with_template(server)
        yield server, server.url(server.create_database(TEMPLATE, ROLE), ROLE)


@contextmanager
def followed(
    url: str,
    follows: str = "replication",
    *,
    clients: int = 3,
    growth: int = 48 << 20,
    reload: bool = False,
    **settings: Any,
) -> Iterator[tuple[Brain, Fleet]]:
    """A Brain, and clients that stay connected to the end, when nothing is left behind."""
    with (
        served(database_url=url, follows=follows, **settings) as brain,
        sound(brain, growth),
        Fleet(brain, clients, reload=reload) as fleet,
    ):
        yield brain, fleet


def sources(brain: Brain) -> list[str]:
    """The log lines about the source, one for each change."""
    return re.findall(r"^.*\bsource\b.*\bnow=.*$", brain.log(), re.MULTILINE)


def detail(brain: Brain, *words: str, seconds: float = WITHIN) -> None:
    """Wait until `detail` and `hint` of /readyz contain these words."""
    found: dict[str, Any] = {}

    def said() -> bool:
        found.update(brain.get("/readyz")[1])
        return all(word in f"{found['detail']} {found['hint']}" for word in words)

    Fleet.until(said, seconds, lambda: f"not {words}, but {found}")


def walsenders(url: str) -> list[tuple[int, str]]:
    """The walsenders and slots of this database."""
    query = """
        SELECT pid, backend_type FROM pg_stat_activity
        WHERE backend_type = 'walsender' AND datname = current_database()
        UNION ALL
        SELECT 0, slot_name FROM pg_replication_slots WHERE database = current_database()"""
    return [(int(pid), str(what)) for pid, what in execute(url, query)]


def aside(scenario: Callable[..., None]) -> Callable[..., None]:
    """Decorates a test that mostly waits: conftest's `begun` runs all of a module at the same
    time.
    """

    def test(request: pytest.FixtureRequest, begun: dict[str, Future[None]], **_: object) -> None:
        begun[request.node.name].result(within(600))

    test.scenario = scenario  # type: ignore[attr-defined]
    test.__name__, test.__doc__, test.__module__ = (
        scenario.__name__,
        scenario.__doc__,
        scenario.__module__,
    )
    fixtures = [parameter for name, parameter in signature(test).parameters.items() if name != "_"]
    test.__signature__ = Signature([*fixtures, *signature(scenario).parameters.values()])  # type: ignore[attr-defined]
    return test
