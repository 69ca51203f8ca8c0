"""In a database of any encoding, one row whose bytes are no text silences no other."""

from collections.abc import Iterator

import psycopg
import pytest

from brain.contract.messages import AGENT, STATUS
from brain.postgres.database_url import parse_url
from brain.postgres.decoder import Decoder
from brain.postgres.polling import Mode
from brain.postgres.table import Table, init_sql
from tests.support.api import serving
from tests.support.following import Following
from tests.support.postgres import Postgres, execute
from tests.support.template import ROLE

BAD = {
    "SQL_ASCII": (b"x\xe9y", "x\ufffdy"),
    "WIN1252": (b"x\x81\xe9", "x\ufffd\xe9"),
    "EUC_JP": (b"x\xf9\xfey", "x\ufffd\ufffdy"),
    "EUC_JIS_2004": (b"x\x8f\xa2\xafy", None),
    "LATIN1": (b"x\xe9y", "x\xe9y"),
}


@pytest.fixture(params=BAD)
def encoding(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def url(any_postgres: Postgres, encoding: str) -> Iterator[str]:
    name = f"in_{encoding.lower()}"
    execute(
        any_postgres.url(),
        f"CREATE DATABASE {name} OWNER {ROLE} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'",
    )
    url = any_postgres.url(name, ROLE)
    execute(url, init_sql(Table("public", "runs")))
    yield url
    any_postgres.drop_database(name)


def write(url: str, encoding: str, statement: bytes) -> None:
    with psycopg.connect(url, autocommit=True, client_encoding=encoding) as conn:
        conn.execute(statement)


@pytest.mark.parametrize("mode", ["replication", "poll"])
async def test_one_unreadable_row_never_stops_the_others(
    url: str, encoding: str, mode: Mode
) -> None:
    bad, expected = BAD[encoding]
    async with Following(url, mode) as f:
        await f.source()
        write(url, encoding, b"INSERT INTO runs (id, agent) VALUES ('a', '" + bad + b"')")
        write(url, encoding, b"INSERT INTO runs (id) VALUES ('b')")
        await f.pushed("b", "queued")
        agent = f.run("a")[AGENT]
        assert agent is not None
        assert agent.startswith("x")
        assert len(agent) < 5
        assert expected in (None, agent)
        write(url, encoding, b"UPDATE runs SET status = 'running' WHERE id = 'a'")
        await f.pushed("a", "running")
        assert (f.follow.state.connects, f.follow.state.losses) == (1, 0)
        assert f.run("a")[STATUS] == "running"
        assert (f.decoder.corrected > 0) == ("\ufffd" in agent)
    # The first read of another Brain, and the API.
    async with Following(url, mode) as other:
        await other.source()
        assert other.run("a")[AGENT] == agent
    async with serving(url) as api:
        runs = (await api.get("/api/runs")).json()["runs"]
        assert [(run["id"], run.get("agent")) for run in runs] == [("a", agent), ("b", None)]
        assert (await api.get("/api/runs/a")).json()["agent"] == agent
        answer = await api.post("/api/runs", json={"id": "c", "agent": "\U0001f642"})
        assert answer.status_code == (201 if encoding == "SQL_ASCII" else 422), answer.text


async def test_a_row_whose_id_is_no_text_is_rejected_and_others_follow(
    url: str, encoding: str
) -> None:
    bad, _ = BAD[encoding]
    if encoding in ("LATIN1", "EUC_JIS_2004"):
        pytest.skip("Python reads it")
    async with Following(url, "replication") as f:
        await f.source()
        write(url, encoding, b"INSERT INTO runs (id, status) VALUES ('" + bad + b"', 'running')")
        write(url, encoding, b"UPDATE runs SET progress = 1")
        write(url, encoding, b"INSERT INTO runs (id) VALUES ('b')")
        await f.pushed("b", "queued")
        assert list(f.view()) == ["b"]
        assert [reason.what for reason in f.decoder.reasons] == [
            "an id with bytes that are no text"
        ]


async def test_names_and_words_beyond_ascii_work_without_an_encoding(
    any_postgres: Postgres,
) -> None:
    execute(
        any_postgres.url(),
        f"CREATE DATABASE no_encoding OWNER {ROLE} ENCODING 'SQL_ASCII' TEMPLATE template0"
        " LOCALE 'C'",
    )
    url = any_postgres.url("no_encoding", ROLE)
    table = Table("public", "läufe")
    with psycopg.connect(url, autocommit=True, client_encoding="SQL_ASCII") as conn:
        conn.execute(init_sql(table).encode())
        conn.execute('ALTER TABLE "läufe" DROP CONSTRAINT "läufe_status_check"'.encode())
        conn.execute("INSERT INTO \"läufe\" (id, status) VALUES ('é', 'läuft')".encode())
        async with Following(
            parse_url(url), "auto", table=table, statuses={"Läuft": "running"}
        ) as f:
            await f.source("replication")
            assert f.run("é")[STATUS] == "running"
            conn.execute("UPDATE \"läufe\" SET status = 'done'".encode())
            await f.pushed("é", "completed")
    any_postgres.drop_database("no_encoding")


def test_a_text_that_is_no_text_is_cut_at_the_bound_like_others() -> None:
    from brain.postgres.text import unreadable

    run = Decoder({}, 10)(
        ["a", "queued", None, None, unreadable(b"\xe9" * 20, "utf-8"), None, None, None]
    )
    assert run is not None
    assert run[AGENT] == "\ufffd" * 10 + "… [cut]"
    assert type(run[AGENT]) is str
