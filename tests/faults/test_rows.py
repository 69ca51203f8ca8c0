"""What is written to the table and around it reaches the clients of a Brain process.

A control client stays connected throughout, and receives every run that it creates, in order and in
time.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.support.fleet import Fleet, sound, truth
from tests.support.postgres import Postgres, execute
from tests.support.scenarios import detail, followed
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE
from tests.support.wire import Control, memory

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def url(shared: str) -> str:
    return shared


@pytest.fixture(scope="module")
def brain(url: str) -> Iterator[Brain]:
    with served(database_url=url) as brain:
        yield brain


@pytest.fixture
def fleet(brain: Brain, control: Control) -> Iterator[Fleet]:
    """Clients that stay to the end of the test. The control client checks that no run is lost."""
    with sound(brain, 128 << 20), Fleet(brain, 3) as fleet, control.undisturbed():
        yield fleet


@contextmanager
def own(
    postgres: Postgres, *statements: str, **settings: Any
) -> Iterator[tuple[str, Brain, Fleet]]:
    """A database of its own, which these statements change before Brain starts."""
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    for statement in statements:
        execute(url, statement)
    try:
        with followed(url, **settings) as (brain, fleet):
            yield url, brain, fleet
    finally:
        postgres.drop_database(url.rpartition("/")[2])


def own_rows(fleet: Fleet, prefix: str) -> list[tuple[str, str]]:
    """What a client received about the runs of this test, as (id, status)."""
    data = (message["data"] for message in fleet.messages())
    return [(run["id"], run["status"]) for run in data if run["id"].startswith(prefix)]


def agrees(fleet: Fleet, url: str, prefix: str) -> None:
    """Wait until each client's state of this test's runs equals SELECT."""
    wanted = {run_id: row for run_id, row in truth(url).items() if run_id.startswith(prefix)}
    assert wanted

    def right() -> bool:
        states = [fleet.state(bytes(taken)) for taken in fleet._received]
        return all(state.get(run_id) == row for state in states for run_id, row in wanted.items())

    Fleet.until(right)
    assert not fleet.ended


@pytest.mark.cheap
def test_rows_that_are_not_committed_are_not_pushed(fleet: Fleet, url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO runs (id) VALUES ('9-no')")
        conn.rollback()
        conn.execute("INSERT INTO runs (id) VALUES ('9-yes')")
        conn.execute("SAVEPOINT s")
        conn.execute("UPDATE runs SET status = 'failed' WHERE id = '9-yes'")
        conn.execute("INSERT INTO runs (id) VALUES ('9-no')")
        conn.execute("ROLLBACK TO s")
        conn.commit()
        conn.execute("CREATE TABLE later (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        conn.commit()
        conn.execute("INSERT INTO runs (id) VALUES ('9-no')")
        conn.execute("INSERT INTO later VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.commit()
        conn.execute("INSERT INTO runs (id) VALUES ('9-last')")
        conn.commit()
    fleet.received('"9-last"')
    assert own_rows(fleet, "9-") == [("9-yes", "queued"), ("9-last", "queued")]
    agrees(fleet, url, "9-")


@pytest.mark.cheap
def test_ten_thousand_rows_in_one_transaction_are_pushed_in_order(fleet: Fleet, url: str) -> None:
    execute(url, "INSERT INTO runs (id) SELECT '10-' || i FROM generate_series(1, 10000) i")
    fleet.received('"10-10000"')
    assert own_rows(fleet, "10-") == [(f"10-{i}", "queued") for i in range(1, 10_001)]
    execute(url, "DELETE FROM runs WHERE id LIKE '10-%'")


def test_300_000_rows_in_one_transaction_need_little_memory(postgres: Postgres) -> None:
    """300 000 rows show the cost of a million: they exceed the board's memory and the sockets."""
    rows = 300_000
    fill = (
        "INSERT INTO runs (id, status)"
        f" SELECT '10-' || i, 'completed' FROM generate_series(1, {rows}) i"
    )
    with own(postgres, clients=1, growth=300 << 20) as (url, brain, fleet):
        before, most = memory(brain.process.pid), 0
        execute(url, fill)
        execute(url, "INSERT INTO runs (id) VALUES ('last')")
        while b'"last"' not in fleet._received[0]:
            most = max(most, memory(brain.process.pid) - before)
            time.sleep(0.02)
        assert most < 300 << 20
        assert fleet._received[0].count(b'"10-') == rows
        assert not fleet.ended


@pytest.mark.cheap
def test_a_large_unchanged_error_stays_in_the_next_push(fleet: Fleet, url: str) -> None:
    execute(url, "ALTER TABLE runs ALTER error SET STORAGE EXTERNAL")
    execute(url, "INSERT INTO runs (id, error) VALUES ('11-a', repeat('é', 1000000))")
    execute(url, "UPDATE runs SET status = 'failed' WHERE id = '11-a'")
    execute(url, "INSERT INTO runs (id) VALUES ('11-last')")
    fleet.received('"11-last"')
    messages = [m["data"] for m in fleet.messages() if m["data"]["id"] == "11-a"]
    assert [run["status"] for run in messages] == ["queued", "failed"]
    assert {run["error"] for run in messages} == {"é" * 8192 + "… [cut]"}


@pytest.mark.cheap
def test_delete_and_truncate_forget_runs(postgres: Postgres) -> None:
    with own(postgres) as (url, brain, fleet):
        execute(url, "INSERT INTO runs (id) SELECT '12-' || i FROM generate_series(1, 5) i")
        fleet.check(url)
        execute(url, "DELETE FROM runs WHERE id < '12-3'")
        fleet.until(lambda: brain.get("/readyz")[1]["runs"] == 3)
        execute(url, "TRUNCATE runs")
        fleet.until(lambda: brain.get("/readyz")[1]["runs"] == 0)
        execute(url, "INSERT INTO runs (id) VALUES ('12-1')")
        fleet.received('"12-1"')
        fleet.until(lambda: len(own_rows(fleet, "12-")) == 6)
        with Fleet(brain, 1) as late:
            late.until(lambda: late.state(bytes(late._received[0])) == truth(url))


@pytest.mark.cheap
@pytest.mark.parametrize(
    "definition",
    [
        (
            "id uuid PRIMARY KEY DEFAULT gen_random_uuid(), status text,"
            " extra jsonb DEFAULT '{}', b bytea, p point"
        ),
        (
            "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status varchar(20),"
            " started_at timestamp DEFAULT '2026-11-21 09:30'"
        ),
    ],
    ids=["uuid", "bigint"],
)
def test_tables_with_other_types_and_new_columns_are_followed(
    postgres: Postgres, definition: str
) -> None:
    """A new column of the contract has its default in every row: clients load the runs again."""
    statements = ("DROP TABLE runs", f"CREATE TABLE runs ({definition})")
    with own(postgres, *statements, reload=True) as (url, _, fleet):
        execute(url, "INSERT INTO runs (status) VALUES ('queued')")
        ((run_id,),) = execute(url, "SELECT id::text FROM runs")
        fleet.received(f'"{run_id}"')
        execute(url, "ALTER TABLE runs ADD more int[]")
        execute(url, "UPDATE runs SET status = 'running'")
        fleet.received('"running"')
        execute(url, "ALTER TABLE runs ADD agent text DEFAULT 'all'")
        fleet.reloaded()
        execute(url, "UPDATE runs SET status = 'completed'")
        fleet.received('"completed"')
        assert fleet.messages()[-1]["data"]["agent"] == "all"
        if "timestamp" in definition:
            assert (
                fleet.messages()[-1]["data"]["started_at"].isoformat()
                == "2026-11-21T09:30:00+00:00"
            )


def test_updates_work_again_soon_after_the_key_is_dropped(postgres: Postgres) -> None:
    """The publication makes UPDATEs fail until Brain takes the table out of it."""
    with own(postgres) as (url, brain, fleet):
        execute(
            url, "INSERT INTO runs (id) VALUES ('13-a'); ALTER TABLE runs DROP CONSTRAINT runs_pkey"
        )

        def written() -> bool:
            try:
                execute(url, "UPDATE runs SET status = 'running'")
            except psycopg.errors.ObjectNotInPrerequisiteState:
                return False
            return True

        assert not written()
        Fleet.until(written)
        fleet.received('"running"')
        detail(brain, "no replica identity", "ADD PRIMARY KEY")
        assert "taken out of the publication" in brain.log()


def test_a_table_that_others_inherit_from_is_polled(postgres: Postgres) -> None:
    with own(postgres) as (url, brain, fleet):
        execute(url, "CREATE TABLE old () INHERITS (runs); INSERT INTO old (id) VALUES ('13-old')")
        fleet.received('"13-old"')
        detail(brain, "other tables inherit from public.runs")
        execute(url, "UPDATE runs SET status = 'running'")
        fleet.received('"running"')


def test_rows_of_an_attached_partition_are_pushed(postgres: Postgres) -> None:
    with own(
        postgres,
        "DROP TABLE runs",
        "CREATE TABLE runs (id text PRIMARY KEY, status text) PARTITION BY LIST (id)",
        "CREATE TABLE part (LIKE runs INCLUDING ALL)",
        "INSERT INTO part VALUES ('13-part', 'running')",
    ) as (url, _, fleet):
        execute(url, "ALTER TABLE runs ATTACH PARTITION part DEFAULT")
        fleet.received('"13-part"')
        assert own_rows(fleet, "13-") == [("13-part", "running")]


@pytest.mark.cheap
def test_a_table_name_with_percent_signs_works_everywhere(postgres: Postgres) -> None:
    table = '"100%s of %(it)s"'
    made = (
        """CREATE TYPE "%s" AS ENUM ('a', 'b')""",
        f"ALTER TABLE runs RENAME TO {table}",
        (
            f"ALTER TABLE {table} DROP CONSTRAINT runs_id_check, ALTER id DROP DEFAULT,"
            ' ALTER id TYPE "%s" USING id::"%s"'
        ),
    )
    with own(postgres, *made, table="public.100%s of %(it)s") as (url, brain, fleet):
        assert brain.request("POST", "/api/runs", {"id": "a"})[0] == 201
        fleet.received('"a"')
        execute(url, "UPDATE \"100%s of %(it)s\" SET status = 'failed'")
        fleet.received('"failed"')
        assert brain.get("/api/runs/a")[1]["status"] == "failed"
        assert brain.request("PATCH", "/api/runs/a", {"status": "running"})[0] == 409
        assert [run["id"] for run in brain.get("/api/runs")[1]["runs"]] == ["a"]
        # A new stream begins with a poll.
        execute(
            url,
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = current_database()",
        )
        execute(url, "INSERT INTO \"100%s of %(it)s\" (id) VALUES ('b')")
        fleet.received('"b"')
        brain.wait_ready("replication")


@pytest.mark.cheap
def test_values_that_the_contract_cannot_express_are_corrected_or_rejected(
    postgres: Postgres,
) -> None:
    texts = ["😀", "\u2028", "</script>", '"\\', "\x01\x7f", "", "null"]
    made = (
        "ALTER TABLE runs DROP CONSTRAINT runs_progress_check, DROP CONSTRAINT runs_status_check",
    )
    with own(postgres, *made, status_map="paused=queued") as (url, brain, fleet):
        with psycopg.connect(url, autocommit=True) as conn:
            for i, text in enumerate(texts):
                conn.execute(
                    "INSERT INTO runs (id, agent, error) VALUES (%s, %s, %s)",
                    (f"14-{i}", text, text),
                )
        execute(
            url,
            "INSERT INTO runs (id, status) VALUES ('14-odd', 'archived'), ('14-null', 'queued')",
        )
        execute(
            url,
            "INSERT INTO runs (id, progress)"
            " VALUES ('14-nan', 'NaN'), ('14-inf', 'Infinity'), ('14-less', -5)",
        )
        execute(url, "INSERT INTO runs (id, status) VALUES ('14-last', 'paused')")
        fleet.received('"14-last"')
        state = fleet.state(bytes(fleet._received[0]))
        assert [state[f"14-{i}"]["error"] for i in range(len(texts))] == texts
        assert "14-odd" not in state
        assert state["14-last"]["status"] == "queued"
        assert state["14-null"] == {"id": "14-null", "status": "queued"}
        progress = [state[f"14-{name}"].get("progress") for name in ("nan", "inf", "less")]
        assert progress == [None, 100, 0]
        assert (
            brain.metric("brain_rows_rejected_total"),
            brain.metric("brain_values_corrected_total"),
        ) == (
            1,
            3,
        )
        json.dumps([message["data"] for message in fleet.messages()], allow_nan=False)


@pytest.mark.cheap
def test_settings_of_the_role_do_not_change_what_is_pushed(postgres: Postgres) -> None:
    odd = {
        "client_encoding": "LATIN1",
        "datestyle": "SQL, DMY",
        "timezone": "Asia/Kolkata",
        "extra_float_digits": "-15",
    }
    role = "odd_settings"
    execute(postgres.url(), f"CREATE ROLE {role} LOGIN REPLICATION IN ROLE {ROLE}")
    for name, value in odd.items():
        execute(postgres.url(), f"ALTER ROLE {role} SET {name} = '{value}'")
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    try:
        with followed(url.replace(f"{ROLE}@", f"{role}@")) as (_, fleet):
            execute(
                url,
                "INSERT INTO runs VALUES ('15-€', 'running', 33.333333, '日本', '😀',"
                " '2026-11-21 06:32:03.000001+00', NULL, '…')",
            )
            fleet.check(url)
    finally:
        postgres.drop_database(url.rpartition("/")[2])
        execute(postgres.url(), f"DROP ROLE {role}")


def test_fast_updates_of_one_row_are_conflated(fleet: Fleet, brain: Brain, url: str) -> None:
    """A hundred a second for three seconds, then as many as possible for one second."""
    execute(url, "INSERT INTO runs (id, status) VALUES ('16-a', 'running')")
    conflated = brain.metric("brain_changes_conflated_total")
    updates = 0
    with psycopg.connect(url, autocommit=True) as conn:
        begun = time.monotonic()
        while time.monotonic() - begun < 4:
            updates += 1
            conn.execute("UPDATE runs SET progress = %s WHERE id = '16-a'", (updates % 1000 / 10,))
            time.sleep(max(0.0, min(3.0, updates / 100) - (time.monotonic() - begun)))
    agrees(fleet, url, "16-")
    assert brain.metric("brain_changes_conflated_total") > conflated
    assert len(own_rows(fleet, "16-")) < updates


@pytest.mark.cheap
def test_a_large_transaction_in_another_table_delays_but_loses_nothing(
    fleet: Fleet, url: str
) -> None:
    """docs/reference/running.md gives half a second for a million rows."""
    execute(url, "CREATE TABLE elsewhere (a int, b text)")
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO elsewhere SELECT i, 'text' FROM generate_series(1, 300000) i")
        conn.commit()
    execute(url, "INSERT INTO runs (id) VALUES ('18-behind')")
    fleet.received('"18-behind"')
    agrees(fleet, url, "18-")


@pytest.mark.cheap
def test_a_prepared_transaction_is_pushed_when_it_commits(fleet: Fleet, url: str) -> None:
    for name in ("kept", "left"):
        execute(
            url,
            f"BEGIN; INSERT INTO runs (id) VALUES ('2pc-{name}');"
            f" PREPARE TRANSACTION 'brain {name}'",
        )
    execute(url, "INSERT INTO runs (id) VALUES ('2pc-now')")
    fleet.received('"2pc-now"')
    assert own_rows(fleet, "2pc-") == [("2pc-now", "queued")]
    execute(url, "ROLLBACK PREPARED 'brain left'")
    execute(url, "COMMIT PREPARED 'brain kept'")
    fleet.received('"2pc-kept"')
    agrees(fleet, url, "2pc-")
    assert len(own_rows(fleet, "2pc-")) == 2


def test_polling_a_million_rows_pushes_within_a_second(
    postgres: Postgres, record_property: Callable[..., None]
) -> None:
    """In a table of a million rows."""
    fill = "INSERT INTO runs (id, status) SELECT i, 'completed' FROM generate_series(1, 1000000) i"
    with own(postgres, fill, follows="poll", source="poll") as (url, _, fleet):
        took: list[float] = []
        for i in range(12):
            execute(url, f"INSERT INTO runs (id, status) VALUES ('p-{i}', 'running')")
            took.append(fleet.received(f'"p-{i}"'))
            execute(url, f"UPDATE runs SET status = 'failed' WHERE id = 'p-{i}'")
            execute(url, f"DELETE FROM runs WHERE id = '{i}'")
            time.sleep(0.05 * i % 0.3)
        agrees(fleet, url, "p-")
        record_property("seconds", sorted(took))
        print(f"poll, a million rows: p50 {statistics.median(took):.2f} s, most {max(took):.2f} s")
