"""The hints of parts besides the doctor's checks: the situation, the hint as printed, and after."""

import json
from collections.abc import Iterator

import pytest

from brain.doctor.checks import examine
from brain.postgres.decoder import Decoder
from tests.integration.doctor.test_publication_rule import ABOUT_TABLES, CASES, TABLE
from tests.support.api import problem, serving
from tests.support.following import Following
from tests.support.hints import followed, follows, paste, shell
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

pytestmark = pytest.mark.long


@follows(
    "{} SET LOGGED;",
    "ALTER TABLE {} SET LOGGED;",
    "{} ADD PRIMARY KEY ({});",
    "ALTER TABLE {} REPLICA IDENTITY DEFAULT;",
    "ALTER TABLE {} REPLICA IDENTITY FULL;",
    "{}; -- Brain creates it again",
    "{}; {}",
)
async def test_every_table_that_sql_can_repair_is_streamed_after_its_hints(
    any_postgres: Postgres, any_database: str, admin: str
) -> None:
    execute(admin, f"CREATE SCHEMA odd AUTHORIZATION {ROLE}")
    repaired = 0
    for name, case in CASES.items():
        if case.code in (None, "view", "inheritance", "virtual", "generated", "row_security"):
            continue  # nothing to repair, or for a person or a superuser to decide
        if any_postgres.version < case.since:
            continue
        execute(
            admin,
            f"DROP SCHEMA odd CASCADE; CREATE SCHEMA odd AUTHORIZATION {ROLE};"
            f"DROP PUBLICATION IF EXISTS {TABLE.publication}",
        )
        execute(f"{any_database}?options=-csearch_path%3Dodd", case.create)
        if case.superuser:
            execute(admin, case.superuser)
        for _ in range(3):
            report = await examine(any_database, TABLE, Decoder({}, 8192))
            found = [each for each in report.findings if each.check in ABOUT_TABLES]
            for each in found:
                paste(each.hint, admin if case.superuser else any_database)
            if not found:
                break
        assert report.source == "replication", f"{name}: {report.text()}"
        execute(any_database, "UPDATE odd.jobs SET status = status; DELETE FROM odd.jobs")
        repaired += 1
    assert repaired >= 15


@follows("give the run an id", "give the run a status", "give the run a shorter one")
async def test_a_rejected_row_appears_once_its_hint_is_followed(any_database: str) -> None:
    async with Following(any_database, "auto") as f:
        await f.sql(
            "ALTER TABLE runs DROP CONSTRAINT runs_id_check",
            "ALTER TABLE runs ALTER status DROP NOT NULL",
        )
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, status) VALUES ('', 'running'), ('b', NULL),"
            " (repeat('x', 1025), 'running')"
        )
        await f.until(lambda: len(f.decoder.reasons) == 3)
        for reason in f.decoder.reasons:
            followed(reason.hint)
        await f.sql(
            "UPDATE runs SET id = 'a' WHERE id = ''",
            "UPDATE runs SET id = 'c' WHERE id LIKE 'xx%'",
            "UPDATE runs SET status = 'queued'",
        )
        for id_ in "abc":
            await f.until(lambda: id_ in f.board)  # noqa: B023 - it is called in this round


@follows(
    "run {} has the status {}, which Brain does not know and does not change: map it with",
    "the row has the status {} or an id that has no place in the contract: map the table's",
)
async def test_the_api_names_the_setting_that_maps_a_status(any_database: str) -> None:
    execute(
        any_database,
        "ALTER TABLE runs DROP CONSTRAINT runs_status_check;"
        "ALTER TABLE runs ALTER status SET DEFAULT 'paused';"
        "INSERT INTO runs (id) VALUES ('a')",
    )
    execute(
        any_database,
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.status = 'paused'; RETURN NEW; END $$;"
        "CREATE TRIGGER pause BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION pause()",
    )
    async with serving(any_database) as api:
        change = await api.patch("/api/runs/a", json={"progress": 1})
        followed(problem(change, 409)["detail"])
        made = await api.post("/api/runs", json={"id": "b"})
        followed(problem(made, 409)["detail"])
    async with serving(any_database, statuses={"paused": "queued"}) as api:
        assert (await api.patch("/api/runs/a", json={"progress": 1})).is_success
        assert (await api.post("/api/runs", json={"id": "c"})).is_success


@pytest.fixture
def nobody(any_database: str, admin: str) -> Iterator[str]:
    """A role that may not even read the table."""
    execute(admin, "DROP ROLE IF EXISTS hints_nobody; CREATE ROLE hints_nobody LOGIN")
    yield any_database.replace(f"{ROLE}@", "hints_nobody@")
    execute(admin, "DROP OWNED BY hints_nobody; DROP ROLE hints_nobody")


@follows(
    "GRANT USAGE ON SCHEMA {} TO {};",
    "GRANT SELECT ON {} TO {};",
    "GRANT INSERT, UPDATE ON {} TO {};",
    "GRANT USAGE ON SEQUENCE {} TO {};",
)
async def test_the_api_prints_the_grants_that_its_role_lacks(admin: str, nobody: str) -> None:
    execute(
        admin,
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
        "ALTER TABLE runs ADD n serial, ADD m int GENERATED ALWAYS AS IDENTITY",
    )
    async with serving(nobody) as api:
        for method, path, body in (
            ("GET", "/api/runs", None),
            ("POST", "/api/runs", {"id": "a"}),
            ("PATCH", "/api/runs/a", {"progress": 1}),
        ):
            execute(admin, "REVOKE ALL ON runs, runs_n_seq FROM hints_nobody")
            execute(admin, "REVOKE ALL ON SCHEMA public FROM hints_nobody")
            refused = problem(await api.request(method, path, json=body), 503)
            message, _, grants = refused["detail"].partition(": run ")
            assert message.startswith("permission denied for ")
            paste(grants, admin)
            assert (await api.request(method, path, json=body)).is_success


@follows("GRANT USAGE ON SCHEMA {} TO {}; GRANT SELECT ON {} TO {};")
async def test_a_brain_that_may_not_read_the_table_reads_it_once_its_hint_is_followed(
    admin: str, nobody: str
) -> None:
    execute(admin, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    async with Following(nobody, "poll", writer=admin) as f:
        await f.until(lambda: f.follow.state.source == "none" and f.follow.state.hint != "")
        assert "permission denied" in f.follow.state.detail
        paste(f.follow.state.hint, admin)
        await f.source()


@follows("brain doctor lists some of them")
async def test_words_beyond_the_bound_are_in_the_doctors_list(any_database: str) -> None:
    execute(any_database, "ALTER TABLE runs DROP CONSTRAINT runs_status_check")
    async with Following(any_database, "poll") as f:
        await f.source()
        await f.sql(
            "INSERT INTO runs (id, status) SELECT i, 'word' || i FROM generate_series(1, 30) i"
        )
        await f.until(lambda: f.decoder.rejected == 30)
        followed(f.decoder.reasons[-1].hint)
    report = await examine(any_database, f.table, f.decoder)
    assert report.text().count("'word") >= 10


@follows("BRAIN_COLUMN_MAP={}", "{} # if that is what they mean")
def test_columns_with_other_names_are_found_once_the_hints_are_followed(any_database: str) -> None:
    execute(any_database, "DROP TABLE runs CASCADE; DROP PUBLICATION brain_public_runs")
    execute(
        any_database,
        'CREATE TABLE runs (run_id text PRIMARY KEY, state text NOT NULL, "startedAt" timestamptz)',
    )
    settings = {"BRAIN_DATABASE_URL": any_database}
    broken = json.loads(shell("", "brain doctor --json || true", **settings))
    (found,) = broken["findings"]
    assert found["level"] == "broken"
    better = json.loads(shell(found["hint"], "brain doctor --json || true", **settings))
    assert better["source"] == "replication"
    (found,) = (each for each in better["findings"] if each["check"] == "columns")
    said = shell(found["hint"], "brain doctor", **settings)
    assert "started_at" not in said
    assert "Brain streams public.runs." in said
