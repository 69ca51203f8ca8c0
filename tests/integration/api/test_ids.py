"""Which run an id, a filter or a cursor of a request means."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import conninfo, errors

from brain.contract.messages import MAX_ID_BYTES
from tests.support.api import problem, serving
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute
from tests.support.served import message, served, silent
from tests.support.template import ROLE

T = TypeVar("T")

# Any text is an id


class Blocking:
    """An API in a thread, for examples that are no coroutines."""

    def __init__(self, database: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._serving = serving(database)
        self.client = self._run(self._enter())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._run(self.client.request(method, path, **options))

    async def _enter(self) -> httpx.AsyncClient:
        return await self._serving.__aenter__()

    async def _leave(self) -> None:
        await self._serving.__aexit__(None, None, None)

    def close(self) -> None:
        self._run(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def blocking(any_database: str) -> Iterator[Blocking]:
    found = Blocking(any_database)
    yield found
    found.close()


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60)


@pytest.mark.usefixtures("unmeasured")
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(IDS)
@example("a\n")
@example("\na")
@example("a\nb")
@example("\r\n")
@example(".")
@example("..")
@example("../..")
@example("/")
@example("//a//")
@example("a?b#c%2F%")
@example(" ")
@example("+")
@example("\x7f\x01")
@example("🙂" * 256)
@example("é" * 512)
@example("\ufffd")
@example("docs")
def test_every_text_that_postgresql_stores_is_the_address_of_its_run(
    blocking: Blocking, run_id: str
) -> None:
    made = blocking.request("POST", "/api/runs", json={"id": run_id})
    assert made.status_code in (201, 409), made.text
    path = f"/api/runs/{quote(run_id, safe='').replace('.', '%2E')}"
    for run in (
        blocking.request("GET", path),
        blocking.request("PATCH", path, json={"progress": 1}),
    ):
        assert (run.status_code, run.json()["id"]) == (200, run_id)
    if made.status_code == 201:
        assert made.headers["location"].rpartition("/")[2] not in (".", "..")
        assert blocking.request("GET", made.headers["location"]).json()["id"] == run_id
    listed = blocking.request("GET", "/api/runs", params={"run_id": run_id}).json()["runs"]
    assert [run["id"] for run in listed] == [run_id]


async def test_a_newline_belongs_to_the_id(any_database: str) -> None:
    async with serving(any_database) as api:
        await api.post("/api/runs", json={"id": "a"})
        problem(await api.patch("/api/runs/a%0A", json={"progress": 1}), 404)
        assert "progress" not in (await api.get("/api/runs/a")).json()
        for path in ("/api/runs%0A", "/docs%0A", "/openapi.json%0A"):
            problem(await api.get(path), 404)


async def test_bytes_that_are_no_text_are_the_id_of_no_run(any_database: str) -> None:
    async with serving(any_database) as api:
        await api.post("/api/runs", json={"id": "\ufffd"})
        problem(await api.get("/api/runs/%FF"), 404)
        problem(await api.patch("/api/runs/%FF", json={"progress": 1}), 404)


# One bound


async def test_an_id_has_at_most_1024_bytes_everywhere(any_database: str) -> None:
    async with serving(any_database) as api:
        for run_id in ("x" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2)):
            assert (await api.post("/api/runs", json={"id": run_id})).status_code == 201
            assert (await api.get(f"/api/runs/{quote(run_id)}")).status_code == 200
            page = await api.get("/api/runs", params={"run_id": run_id})
            assert len(page.json()["runs"]) == 1
            longer = f"{run_id}x"
            rule = f"a text of 1 to {MAX_ID_BYTES} bytes, not {longer[:40]!a}"
            for answer in (
                await api.post("/api/runs", json={"id": longer}),
                await api.get(f"/api/runs/{quote(longer)}"),
                await api.get("/api/runs", params={"run_id": longer}),
            ):
                assert rule in problem(answer, 422)["detail"]


async def test_pages_go_past_ids_that_are_too_long(any_database: str) -> None:
    long = [letter * 1025 for letter in "aceg"] + ["e" * 6500]
    for run_id in (*"bdf", *long):
        execute(any_database, "INSERT INTO runs (id) VALUES (%s)", run_id)
    async with serving(any_database) as api:
        found, query = [], {"limit": "1"}
        while True:
            page = (await api.get("/api/runs", params=query)).json()
            found += [run["id"] for run in page["runs"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert found == [*"bdf"]


# As the column compares

U = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
SAME: dict[str, tuple[str, list[str], list[str]]] = {
    "uuid": (U, [U, U.upper(), U.replace("-", ""), "{" + U.upper() + "}"], ["x", U[:-1]]),
    "bigint": ("7", ["7", "007", "+7", " 7", "7\n"], ["x", "7.0", "8", "99999999999999999999"]),
    "smallint": ("-7", ["-7", "-007"], ["7", "65529"]),
    "numeric(10, 2)": ("7.00", ["7", "7.0", "07.00", "+7"], ["7.001", "x"]),
    "numeric": ("7", ["7", "7.0", "07."], ["7.5"]),
    "char(8)": ("ab", ["ab", "ab ", "ab" + " " * 20], [" ab", "ab\t", "AB"]),
    "varchar(40)": ("007 ", ["007 "], ["007", "7"]),
    "domain": ("7", ["7", "007"], ["x"]),
    "text": ("A0", ["A0"], ["a0", "A0 "]),
}


def table_of(database: str, kind: str) -> str:
    """The printed id of its one run, whose task_id is the same."""
    execute(database, "DROP TABLE runs; CREATE DOMAIN number AS int")
    column = "number" if kind == "domain" else kind
    execute(database, f"CREATE TABLE runs (id {column} PRIMARY KEY, status text, task_id {column})")
    run_id = SAME[kind][0]
    execute(database, f"INSERT INTO runs VALUES ('{run_id}', 'queued', '{run_id}')")
    return run_id


@pytest.mark.parametrize("kind", SAME)
async def test_the_api_finds_a_run_by_every_form_of_its_id(any_database: str, kind: str) -> None:
    run_id = table_of(any_database, kind)
    _, same, other = SAME[kind]
    async with serving(any_database) as api:
        for given_id in same:
            path = f"/api/runs/{quote(given_id, safe='')}"
            assert (await api.get(path)).json()["id"] == run_id, given_id
            running = await api.patch(path, json={"status": "running"})
            assert running.json() == {"id": run_id, "status": "running", "task_id": run_id}
            for name in ("run_id", "task_id"):
                page = await api.get("/api/runs", params={name: [given_id, "another"]})
                assert [run["id"] for run in page.json()["runs"]] == [run_id], given_id
        for given_id in other:
            path = f"/api/runs/{quote(given_id, safe='')}"
            problem(await api.get(path), 404)
            problem(await api.patch(path, json={"status": "running"}), 404)
            for name in ("run_id", "task_id"):
                page = await api.get("/api/runs", params={name: given_id})
                assert page.json()["runs"] == [], given_id


@pytest.mark.parametrize("source", ["replication", "poll"])
@pytest.mark.parametrize("kind", ["uuid", "bigint", "numeric(10, 2)", "char(8)", "domain"])
async def test_a_client_of_ws_finds_a_run_by_every_form_of_its_id(
    any_database: str, kind: str, source: str
) -> None:
    run_id = table_of(any_database, kind)
    _, same, other = SAME[kind]
    with served(database_url=any_database, source=source, follows=source) as brain:
        for name in ("run_id", "task_id"):
            for given_id in same:
                query = f"?{name}={quote(given_id, safe='')}&{name}=another&snapshot=true"
                async with brain.connect(query) as client:
                    found = (await message(client))["data"]
                    assert (found["id"], found["task_id"]) == (run_id, run_id)
        query = "&".join(f"run_id={quote(each, safe='')}" for each in other)
        async with (
            brain.connect(f"?run_id={quote(same[-1], safe='')}") as client,
            brain.connect(f"?{query}&snapshot=true") as nobody,
        ):
            execute(any_database, "UPDATE runs SET status = 'running'")
            assert (await message(client))["data"] == {
                "id": run_id,
                "status": "running",
                "task_id": run_id,
            }
            assert await silent(nobody), "what the column cannot hold matches nothing"


OTHER_TYPES = {
    # Values that are equal, and print other texts; what the column prints first.
    "citext": ("Ab", "AB"),
    "timestamptz": ("2026-11-21 09:30:00+00", "2026-11-21T10:30:00+01:00"),
    "float8": ("1.5", "1.50"),
    "oid": ("7", "007"),
    "inet": ("10.0.0.1", "10.0.0.1/32"),
    "boolean": ("t", "true"),
    "text COLLATE folding": ("Ab", "AB"),
    "numeric": ("7.50", "7.5"),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
async def test_of_other_types_the_api_and_ws_take_the_text_that_the_column_prints(
    any_database: str, any_postgres: Postgres, kind: str
) -> None:
    """Otherwise a client could change a run by one name and not be told of it by the same."""
    printed, equal = OTHER_TYPES[kind]
    admin = any_postgres.url(str(conninfo.conninfo_to_dict(any_database)["dbname"]))
    try:
        if kind == "citext":
            execute(admin, "CREATE EXTENSION citext")
        elif "folding" in kind:
            execute(
                admin,
                "CREATE COLLATION folding"
                " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            )
    except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
        pytest.skip(str(error))
    execute(
        any_database,
        f"CREATE TABLE odd (id {kind} PRIMARY KEY, status text, agent {kind});"
        f"INSERT INTO odd VALUES ('{printed}', 'queued', '{printed}')",
    )
    with served(database_url=any_database, table="public.odd") as brain:
        for text, found in ((printed, True), (equal, False)):
            path = f"/api/runs/{quote(text, safe='')}"
            assert brain.get(path)[0] == (200 if found else 404), text
            changed = brain.request("PATCH", path, {"status": "running"})
            assert changed[0] == (200 if found else 404), text
            for name in ("run_id", "agent"):
                query = f"?{name}={quote(text, safe='')}"
                listed = brain.get(f"/api/runs{query}")[1]["runs"]
                assert [run["id"] for run in listed] == ([printed] if found else []), text
                async with brain.connect(f"{query}&snapshot=true&include=ready") as client:
                    first = await message(client)
                    assert first["type"] == ("run_update" if found else "ready"), text


async def test_the_api_takes_the_filters_of_ws(any_database: str) -> None:
    execute(
        any_database,
        "INSERT INTO runs (id, status, agent) "
        "VALUES ('1', 'queued', 'a'), ('2', 'running', 'a'), ('3', 'running', 'b')",
    )
    expected = {
        "run_id=1&run_id=3&run_id=9": "13",
        "run_id=1&agent=b": "",
        "run_id=2&agent=a&status=running": "2",
    }
    async with serving(any_database) as api:
        for query, ids in expected.items():
            runs = (await api.get(f"/api/runs?{query}")).json()["runs"]
            assert "".join(run["id"] for run in runs) == ids, query


# An id of two rows


async def test_the_api_shows_and_changes_no_id_of_two_rows(any_database: str) -> None:
    execute(
        any_database,
        "CREATE TABLE jobs (agent text, id text, status text, progress int,"
        " PRIMARY KEY (agent, id));"
        "INSERT INTO jobs VALUES"
        " ('t1', 'a', 'queued'), ('t2', 'a', 'queued'), ('t1', 'b', 'queued')",
    )
    async with serving(any_database, table="jobs") as api:
        before = execute(any_database, "SELECT xmin, jobs::text FROM jobs")
        for answer in (
            await api.get("/api/runs/a"),
            await api.patch("/api/runs/a", json={"progress": 1}),
            await api.patch("/api/runs/a", json={"status": "running"}),
            await api.patch("/api/runs/a", json={"progress": 1}, headers={"If-Match": "*"}),
        ):
            detail = problem(answer, 409)["detail"]
            assert "more than one row of the table public.jobs has the id 'a'" in detail
        assert execute(any_database, "SELECT xmin, jobs::text FROM jobs") == before
        assert (await api.patch("/api/runs/b", json={"progress": 1})).json()["progress"] == 1
        await api.post("/api/runs", json={"id": "c", "agent": "t1"})
        await api.post("/api/runs", json={"id": "c", "agent": "t2"})
        problem(await api.post("/api/runs", json={"id": "c", "agent": "t2"}), 409)


@pytest.mark.parametrize(
    ("type_", "value", "lists"), [("pair", "(x,1)", True), ("json", "{}", False)]
)
def test_an_id_that_postgresql_cannot_compare_is_a_clear_error(
    database: str, type_: str, value: str, lists: bool
) -> None:
    """A composite type has an order, and no input by which a text could be compared with it."""
    execute(database, "CREATE TYPE pair AS (a text, b int)")
    execute(database, f"CREATE TABLE odd (id {type_}, status text)")
    execute(database, "INSERT INTO odd VALUES (%s, 'queued')", value)
    with served(database_url=database, table="public.odd", follows="poll") as brain:
        path = f"/api/runs/{quote(value, safe='')}"
        answers = [brain.get(path), brain.request("PATCH", path, {"status": "running"})]
        listed = brain.get("/api/runs")
        assert listed[0] == (200 if lists else 503)
        for status, problem in answers if lists else [*answers, listed]:
            assert status == 503
            assert (
                f'of the type "{"public" if lists else "pg_catalog"}"."{type_}"'
                in (problem["detail"])
            )
            assert "give the column another type" in problem["detail"]
        assert execute(database, "SELECT status FROM odd") == [("queued",)]


def test_an_id_of_an_extension_that_search_path_lacks_names_the_cure(
    any_database: str, any_postgres: Postgres
) -> None:
    name = str(conninfo.conninfo_to_dict(any_database)["dbname"])
    admin = any_postgres.url(name)
    try:
        execute(
            admin,
            "CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC;"
            " CREATE EXTENSION ltree SCHEMA ext",
        )
    except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
        pytest.skip(str(error))
    execute(any_database, "CREATE TABLE odd (id ext.ltree PRIMARY KEY, status text)")
    execute(any_database, "INSERT INTO odd VALUES ('a.b', 'queued')")
    for cured in (False, True):
        with served(database_url=any_database, table="public.odd") as brain:
            status, found = brain.get("/api/runs/a.b")
            assert status == (200 if cured else 503)
            if not cured:
                assert found["detail"].endswith(
                    'or add the schema "ext" to the search_path of the role of Brain'
                )
        execute(admin, f"ALTER ROLE {ROLE} IN DATABASE {name} SET search_path = public, ext")
