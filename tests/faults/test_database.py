"""The database is killed, down, silent or blocked: running.md, "When the database fails".

Brain, PostgreSQL and the clients are real. At the end of each test every client is still connected
and holds what SELECT shows.
"""

import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.support.fleet import Fleet, Load, sound
from tests.support.postgres import VERSIONS, Postgres, available, execute, running
from tests.support.proxy import Proxy
from tests.support.scenarios import WITHIN, aside, fresh, sources, walsenders
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = pytest.mark.usefixtures("begun")  # the scenarios that mostly wait start first


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"pg{version}")
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that the tests may kill."""
    if not available(request.param):
        pytest.skip(f"PostgreSQL {request.param} is not installed")
    with running(request.param) as server:
        yield with_template(server)


@pytest.fixture
def own(server: Postgres) -> str:
    """The URL of a database on that server, which is removed with it."""
    return server.url(server.create_database(TEMPLATE, ROLE), ROLE)


def test_clients_converge_after_postgresql_is_killed_under_load(
    server: Postgres, own: str, record_property: Callable[..., None]
) -> None:
    count = 500 if server.version == VERSIONS[0] else 20
    with served(database_url=own) as brain, sound(brain, 96 << 20), Fleet(brain, count) as fleet:
        with Load(own) as load:
            Fleet.until(lambda: len(load.commits) > 300)
            before = len(load.commits)
            server.kill()
            Fleet.until(lambda: brain.get("/readyz")[0] == 503)
            assert brain.get("/healthz")[0] == 200
            server.start()
            began = time.monotonic()
            # A run that is finished and never changes again: a query for unfinished runs does not
            # find it.
            execute(own, "INSERT INTO runs (id, status) VALUES ('back', 'completed')")
            fleet.received('"back"', WITHIN)
            took = time.monotonic() - began
            brain.wait_ready("replication")
            time.sleep(0.3)
        assert len(load.commits) > before
        fleet.check(own)
        record_property("seconds from the first connection to convergence", round(took, 3))
        print(
            f"{count} clients converge {took:.2f} s after"
            f" PostgreSQL {server.version} takes connections"
        )


def test_brain_is_not_ready_and_backs_off_while_the_database_is_down(database: str) -> None:
    with (
        Proxy(database) as proxy,
        served(database_url=proxy.url) as brain,
        sound(brain),
        Fleet(brain) as fleet,
    ):
        execute(database, "INSERT INTO runs (id) SELECT 'run-' || i FROM generate_series(1, 20) i")
        fleet.check(database)
        before, lines = proxy.connections, len(sources(brain))
        proxy.refuse()
        time.sleep(6)
        Fleet.until(lambda: proxy.connections >= before + 4)
        tries = proxy.connections - before
        # Changes that happen now reach the clients when the database is back.
        execute(
            database,
            """UPDATE runs SET status = 'failed' WHERE id < 'run-15';
               INSERT INTO runs (id) VALUES ('while');
               DELETE FROM runs WHERE id = 'run-3'""",
        )
        assert brain.get("/healthz")[0] == 200
        status, document = brain.get("/readyz")
        assert (status, document["ready"], document["source"]) == (503, False, "none")
        assert document["detail"]
        assert 'brain_source{source="none"} 1.0' in brain.get("/metrics")[1]
        status, problem = brain.get("/api/runs")
        assert (status, problem["status"]) == (503, 503)
        # One log line for each problem, not for each attempt.
        said = [re.sub(r"^\S+ ", "", line) for line in sources(brain)[lines:]]
        assert len(said) == len(set(said)) < tries, "\n".join(sources(brain))
        proxy.refuse(False)
        fleet.received('"while"', WITHIN)
        brain.wait_ready("replication")
        fleet.check(database)
        # Slower and slower, up to 1.5 s: at the pace of the first it would be hundreds.
        assert tries <= 14, tries


def test_changes_arrive_by_poll_when_the_walsender_is_terminated(own: str) -> None:
    with (
        served(database_url=own) as brain,
        sound(brain),
        Fleet(brain) as fleet,
        Load(own, 300) as load,
    ):
        for number in range(3):
            Fleet.until(lambda: brain.get("/readyz")[1]["source"] == "replication", WITHIN)
            execute(
                own,
                """SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                   WHERE database = current_database()""",
            )
            execute(own, f"INSERT INTO runs (id) VALUES ('after-{number}')")
            fleet.received(f'"after-{number}"', WITHIN)
        load.stop()
        brain.wait_ready("replication")
        fleet.check(own)
        assert brain.metric("brain_streams_lost_total") == 3
        assert sum("the stream was lost" in line for line in sources(brain)) == 3
        assert len(walsenders(own)) == 2  # a walsender and its slot


def test_a_writer_is_not_slowed_by_a_brain_that_is_suspended_or_killed(
    database: str, record_property: Callable[..., None]
) -> None:
    took: dict[str, float] = {}

    def write(when: str) -> None:
        with Load(database, 0, writers=1, runs=50) as load:
            time.sleep(0.7)
        latencies = sorted(seconds for _, seconds in load.commits)
        assert latencies, f"{when}: a writer waits, and waits"
        median, last = statistics.median(latencies), latencies[int(len(latencies) * 0.99)]
        took[when] = median
        record_property(when, f"p50 {median * 1e3:.2f} ms, p99 {last * 1e3:.2f} ms")
        print(
            f"{when}: p50 {median * 1e3:.2f} ms, p99 {last * 1e3:.2f} ms, {len(latencies)} commits"
        )

    # More than the socket buffers hold.
    fill = "SET lock_timeout = '5s'; UPDATE runs SET error = repeat('x', 1000)"
    execute(database, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 10000) i")
    write("absent")
    with Proxy(database) as proxy, Fleet(brain := Brain(database_url=proxy.url)) as fleet:
        try:
            fleet.received('"1"')
            brain.process.send_signal(signal.SIGSTOP)
            execute(database, fill)
            write("suspended")
            brain.process.send_signal(signal.SIGCONT)
            fleet.check(database)
            proxy.fall_silent()
            execute(database, fill)
            write("its network stalled")
            brain.process.kill()
            write("killed")
            brain.process.wait()
        finally:
            brain.process.kill()
            brain.process.wait()
    write("absent again")


# Scenarios that mostly wait, all at the same time


@aside
def test_brain_reconnects_when_packets_to_the_database_vanish() -> None:
    """As when a firewall forgets its connections: only new ones are passed."""
    with ExitStack() as stack:
        _, url = stack.enter_context(fresh())
        proxy = stack.enter_context(Proxy(url))
        brains = [
            stack.enter_context(served(database_url=proxy.url, follows="replication")),
            stack.enter_context(served(database_url=proxy.url, follows="poll", source="poll")),
        ]
        fleets = [stack.enter_context(Fleet(brain, 3)) for brain in brains]
        execute(url, "INSERT INTO runs (id) VALUES ('before')")
        for fleet in fleets:
            fleet.check(url)
        assert [brain.get("/api/runs")[0] for brain in brains] == [200, 200]
        proxy.forget()
        began = time.monotonic()
        execute(url, "INSERT INTO runs (id) VALUES ('unheard')")
        for brain, fleet in zip(brains, fleets, strict=True):
            fleet.received('"unheard"', 15 + WITHIN)
            print(f"silence ends after {time.monotonic() - began:.1f} s")
            brain.wait_ready()
            fleet.check(url)
            assert any(
                "nothing was heard" in line or "kept Brain waiting" in line
                for line in sources(brain)
            )
            status, _ = brain.get("/api/runs")  # its pool had a connection that is as dead
            assert status in (200, 503)
            assert brain.get("/api/runs")[0] == 200
        brains[0].wait_ready("replication")


@pytest.mark.parametrize("source", ["auto", "poll"])
def test_brain_stops_while_the_database_is_silent(database: str, source: str) -> None:
    with Proxy(database) as proxy:
        brain = Brain(
            database_url=proxy.url,
            source=source,
            follows="replication" if source == "auto" else "poll",
        )
        try:
            assert brain.get("/api/runs")[0] == 200
            proxy.fall_silent()
            time.sleep(0.5)  # a poll is waiting for its answer
            assert brain.stop() == 0
            assert "Traceback" not in brain.log()
        finally:
            brain.process.kill()
            brain.process.wait()


@aside
def test_clients_converge_after_brain_was_suspended_longer_than_wal_sender_timeout() -> None:
    with (
        fresh() as (_, url),
        served(database_url=url) as brain,
        sound(brain),
        Fleet(brain) as fleet,
    ):
        execute(url, "INSERT INTO runs (id) SELECT i FROM generate_series(1, 1000) i")
        fleet.check(url)
        brain.process.send_signal(signal.SIGSTOP)
        try:
            with Load(url, 300):
                time.sleep(11.5)
            assert walsenders(url) == [], "wal_sender_timeout should have ended it"
            execute(url, "DELETE FROM runs WHERE id = '7'")
        finally:
            brain.process.send_signal(signal.SIGCONT)
        execute(url, "INSERT INTO runs (id) VALUES ('awake')")
        fleet.received('"awake"', WITHIN)
        brain.wait_ready("replication")
        fleet.check(url)


@aside
def test_polls_while_a_write_transaction_blocks_the_slot() -> None:
    with fresh() as (_, url), psycopg.connect(url) as conn:
        conn.execute("INSERT INTO runs (id) VALUES ('open')")
        with served(database_url=url, follows="poll") as brain:
            with sound(brain), Fleet(brain) as fleet, Load(url, 200) as load:
                Fleet.until(lambda: len(load.commits) > 50)
                Fleet.until(
                    lambda: "writing transaction is open" in str(brain.get("/readyz")[1]["detail"])
                )
                execute(url, "INSERT INTO runs (id) VALUES ('meanwhile')")
                fleet.received('"meanwhile"', WITHIN)
                conn.commit()
                brain.wait_ready("replication")
                fleet.received('"open"')
                # And again, when it reconnects.
                conn.execute("UPDATE runs SET status = 'running' WHERE id = 'open'")
                execute(url, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
                execute(url, "INSERT INTO runs (id) VALUES ('again')")
                fleet.received('"again"', WITHIN)
                Fleet.until(lambda: brain.get("/readyz")[1]["source"] == "poll")
                load.stop()
                fleet.check(url)  # which says nothing of what is open either
                assert fleet.state(bytes(fleet._received[0]))["open"]["status"] == "queued"
            # A Brain that goes while its slot is waiting leaves no walsender that waits on.
            Fleet.until(lambda: any(what == "walsender" for _, what in walsenders(url)))
            assert brain.stop() == 0
            Fleet.until(lambda: walsenders(url) == [])
            conn.rollback()
