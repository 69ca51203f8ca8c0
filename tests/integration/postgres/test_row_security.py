"""Under row security, what SELECT shows is the truth."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from psycopg import AsyncConnection
from structlog.testing import capture_logs

from brain.contract.messages import ID
from brain.postgres.polling import Mode
from brain.postgres.timing import Timing
from tests.support.following import QUICK, Following
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import Postgres, committed_but_unseen, execute, running
from tests.support.template import ROLE, TEMPLATE, with_template

HIDES = "CREATE POLICY mine ON runs USING (agent IS DISTINCT FROM 'secret')"
ENABLE = "ALTER TABLE runs ENABLE ROW LEVEL SECURITY"

SELDOM = replace(QUICK, check_every=3600, watch_every=3600)
"""Only what the stream tells makes Brain look at the table."""


@pytest.fixture
def reader(any_postgres: Postgres, any_database: str, admin: str) -> Iterator[str]:
    """The URL of a role that may stream and read, and owns nothing."""
    execute(
        any_postgres.url(),
        "DROP ROLE IF EXISTS rls_reader; CREATE ROLE rls_reader LOGIN REPLICATION",
    )
    execute(any_database, "GRANT SELECT, INSERT, UPDATE ON runs TO rls_reader")
    yield any_database.replace(f"{ROLE}@", "rls_reader@")
    execute(admin, "DROP OWNED BY rls_reader")
    execute(any_postgres.url(), "DROP ROLE rls_reader")


def shown(f: Following) -> set[str]:
    """Every run that anybody was ever shown."""
    pushed = {run[ID] for run in f.pushes}
    return pushed | {run[ID] for event in f.snapshots() for run in event.rows}


@asynccontextmanager
async def streaming(reader: str, owner: str, timing: Timing = SELDOM) -> AsyncIterator[Following]:
    async with Following(reader, "auto", writer=owner, timing=timing) as f:
        await f.source("replication")
        await f.sql(
            "INSERT INTO runs (id, status, agent) VALUES ('open', 'queued', 'x'),"
            " ('hidden', 'running', 'secret'), ('ended', 'failed', 'secret')"
        )
        await f.until(lambda: len(f.board) == 3)
        yield f


async def test_rows_that_a_policy_hides_are_polled_past_and_never_shown(
    any_database: str, reader: str, admin: str
) -> None:
    execute(any_database, f"{HIDES}; {ENABLE}; INSERT INTO runs (id, agent) VALUES ('a', 'secret')")
    async with Following(reader, "auto", writer=any_database) as f:
        await f.source("poll")
        await f.until(lambda: f.follow.state.code == "row_security")
        assert "the role rls_reader may see" in f.follow.state.detail
        await f.sql("INSERT INTO runs (id, agent) VALUES ('b', 'secret'), ('c', 'x')")
        await f.pushed("c", "queued")
        await f.sql("UPDATE runs SET status = 'running'", "INSERT INTO runs (id) VALUES ('d')")
        await f.pushed("d", "queued")
        assert shown(f) == {"c", "d"}
        # A run that becomes hidden, or visible.
        await f.sql("UPDATE runs SET agent = CASE id WHEN 'c' THEN 'secret' END")
        await f.until(lambda: {"a", "b", "d"} == set(f.view()))
        # The hint works.
        execute(admin, f.follow.state.hint)
        await f.source("replication")
        await f.settled()


async def test_a_policy_that_is_switched_on_hides_rows_at_once_and_ends_the_stream(
    any_database: str, reader: str
) -> None:
    """PostgreSQL describes the table again before the next change of it."""
    async with streaming(reader, any_database) as f:
        before = len(f.snapshots())
        await f.sql(
            f"BEGIN; {HIDES}; {ENABLE}; INSERT INTO runs (id, agent) VALUES ('late', 'secret');"
            " COMMIT; UPDATE runs SET progress = 1"
        )
        await f.until(lambda: f.follow.state.code == "row_security")
        await f.sql("INSERT INTO runs (id) VALUES ('after')")
        await f.pushed("after", "queued")
        assert set(f.view()) == {"open", "after"}
        assert "late" not in shown(f)
        assert any(event.new for event in f.snapshots()[before:]), "nobody resumes from before"


async def test_a_policy_hides_rows_also_while_no_query_sees_it_yet() -> None:
    """A commit is in the log before it is visible; here until a synchronous standby answers."""
    with running(synchronous_standby_names="nobody", synchronous_commit="local") as server:
        with_template(server)
        name = server.create_database(TEMPLATE, ROLE)
        owner = server.url(name, ROLE)
        execute(server.url(), "CREATE ROLE rls_reader LOGIN REPLICATION")
        execute(owner, "GRANT SELECT ON runs TO rls_reader")
        timing = replace(SELDOM, poll=replace(SELDOM.poll, unseen=PATIENCE))
        async with (
            streaming(server.url(name, "rls_reader"), owner, timing) as f,
            await AsyncConnection.connect(owner) as writer,
        ):
            await writer.execute("SET synchronous_commit = on")
            for statement in (HIDES, ENABLE):
                await writer.execute(statement)
            await writer.execute("INSERT INTO runs (id, agent) VALUES ('late', 'secret')")
            async with committed_but_unseen(writer, server):
                (end,) = execute(server.url(), "SELECT pg_current_wal_flush_lsn()")[0]
                sent = f"SELECT sent_lsn >= '{end}' FROM pg_stat_replication"
                await eventually(lambda: execute(server.url(), sent) == [(True,)])
            await f.until(lambda: f.follow.state.code == "row_security")
            await f.sql("INSERT INTO runs (id) VALUES ('after')")
            await f.pushed("after", "queued")
            assert "late" not in shown(f)


@pytest.mark.parametrize(
    "hide",
    [
        f"{HIDES}; {ENABLE}",
        "ALTER ROLE rls_reader NOBYPASSRLS",
    ],
    ids=["policy", "role"],
)
async def test_the_watch_notices_row_security_without_a_change_of_a_row(
    any_database: str, reader: str, admin: str, hide: str
) -> None:
    if "ROLE rls" in hide:
        execute(admin, f"ALTER ROLE rls_reader BYPASSRLS; {HIDES}; {ENABLE}")
    async with streaming(reader, any_database, QUICK) as f:
        execute(admin, hide)
        await f.until(lambda: f.follow.state.code == "row_security")
        await f.until(lambda: set(f.view()) == {"open"})


async def test_rows_that_a_changed_policy_hides_or_reveals_leave_and_enter_the_board(
    any_database: str, reader: str
) -> None:
    execute(any_database, f"{HIDES}; {ENABLE}")
    execute(
        any_database,
        "INSERT INTO runs (id, agent, status) VALUES ('a', 'x', 'running'), ('b', 'x', 'failed'),"
        " ('c', 'secret', 'running')",
    )
    async with Following(reader, "auto", writer=any_database) as f:
        await f.source("poll")
        await f.sql("UPDATE runs SET progress = 1")
        await f.until(lambda: set(f.view()) == {"a", "b"})
        await f.sql("ALTER POLICY mine ON runs USING (agent = 'secret')")
        await f.until(lambda: set(f.view()) == {"c"})


async def test_rows_that_another_table_reveals_enter_the_board(
    any_database: str, reader: str
) -> None:
    execute(any_database, "CREATE TABLE members (agent text); GRANT SELECT ON members TO PUBLIC")
    execute(
        any_database,
        f"CREATE POLICY team ON runs USING (agent IN (SELECT agent FROM members)); {ENABLE}",
    )
    execute(any_database, "INSERT INTO runs (id, agent) VALUES ('a', 'x'), ('b', 'y')")
    async with Following(reader, "auto", writer=any_database) as f:
        await f.source("poll")
        assert set(f.view()) == set()
        await f.sql("INSERT INTO members VALUES ('x')")
        await f.pushed("a", "queued")
        await f.sql("DELETE FROM members")
        await f.until(lambda: set(f.view()) == set())
        assert shown(f) == {"a"}


@pytest.mark.parametrize("mode", ["auto", "poll"])
async def test_who_owns_the_table_or_bypasses_row_security_is_not_concerned(
    any_database: str, mode: Mode
) -> None:
    execute(any_database, f"{HIDES}; {ENABLE}")
    with capture_logs() as logs:
        async with Following(any_database, mode) as f:
            await f.source("replication" if mode == "auto" else "poll")
            await f.sql("INSERT INTO runs (id, agent) VALUES ('a', 'secret')")
            await f.pushed("a", "queued")
    assert "row_security" not in str(logs)
