"""The commands that `brain serve` prints fit the table: each is pasted into a shell."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from httpx import AsyncClient
from psycopg import conninfo

import brain
from brain.cli.console import in_shell, welcome
from brain.config import Settings
from brain.postgres.connection import redact
from brain.postgres.database_url import parse_url
from brain.postgres.decoder import Decoder
from brain.postgres.example import look
from brain.started import Started
from tests.support.api import serving
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute

OK = "create one", "change it", "no psql?"


@pytest.fixture(autouse=True)
def _called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m brain`."""
    monkeypatch.setattr(sys, "argv", [str(Path(brain.__file__).with_name("__main__.py"))])


def printed(url: str, port: int, settings: Settings, decoder: Decoder) -> dict[str, list[str]]:
    """The commands by their label, and under "" what is said besides."""
    example = asyncio.run(look(url, settings.table, decoder))
    text = welcome(Started(port, url, None, example), settings)
    found: dict[str, list[str]] = {}
    for line in text.splitlines()[3:]:
        found.setdefault(line[2:12].strip(), []).append(line[14:])
    return found


def paste(command: str, url: str) -> str:
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        env={**os.environ, "BRAIN_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


class Shell:
    """What is printed for a table, and what happens when it is pasted."""

    def __init__(self, url: str, client: AsyncClient, **settings: str) -> None:
        self.url = url
        self.port = client.base_url.port or 0
        self.settings = Settings.load(
            **{name: value for name, value in settings.items() if name != "statuses"}
        )
        self.decoder = Decoder(self.settings.status_map, 100)
        self.commands: dict[str, list[str]] = {}

    async def look(self) -> None:
        self.commands = await asyncio.to_thread(
            printed, self.url, self.port, self.settings, self.decoder
        )

    async def paste(self, label: str) -> str:
        (*_, command) = self.commands[label]
        return await asyncio.to_thread(paste, command, self.url)


TABLES = {
    "text": ("CREATE TABLE jobs (id text PRIMARY KEY, status text)", {}),
    "short text": ("CREATE TABLE jobs (id varchar(4) PRIMARY KEY, status text)", {}),
    "char": ("CREATE TABLE jobs (id char(20) PRIMARY KEY, status char(12))", {}),
    "bigint identity": (
        "CREATE TABLE jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status text)",
        {},
    ),
    "serial": ("CREATE TABLE jobs (id serial PRIMARY KEY, status text)", {}),
    "bigint": (
        "CREATE TABLE jobs (id bigint PRIMARY KEY, status text); INSERT INTO jobs VALUES (41)",
        {},
    ),
    "numeric": ("CREATE TABLE jobs (id numeric(9, 2) PRIMARY KEY, status text)", {}),
    "uuid": ("CREATE TABLE jobs (id uuid PRIMARY KEY, status text)", {}),
    "uuid with a default": (
        "CREATE TABLE jobs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), status text)",
        {},
    ),
    "domain": (
        (
            "CREATE DOMAIN key AS bigint CHECK (VALUE > 0);"
            " CREATE TABLE jobs (id key PRIMARY KEY, status text)"
        ),
        {},
    ),
    "enum": (
        (
            "CREATE TYPE state AS ENUM ('Waiting', 'Active', 'Done');"
            " CREATE TABLE jobs (id text PRIMARY KEY, status state NOT NULL)"
        ),
        {},
    ),
    "enum without a queued word": (
        (
            "CREATE TYPE state AS ENUM ('Active', 'Done');"
            " CREATE TABLE jobs (id text PRIMARY KEY, status state NOT NULL)"
        ),
        {},
    ),
    "status map": (
        "CREATE TABLE jobs (id text PRIMARY KEY, status text CHECK (status IN ('a', 'b b', 'c')))",
        {"status_map": "a=queued,b b=running,c=completed"},
    ),
    "camel case": (
        'CREATE TABLE jobs ("runId" bigserial PRIMARY KEY, "jobState" text, "startedAt" timestamp)',
        {"column_map": "id=runId,status=jobState,started_at=startedAt"},
    ),
    "reserved words": (
        'CREATE TABLE "order" ("user" text PRIMARY KEY, "end" text, "from" text NOT NULL)',
        {"table": "order", "column_map": "id=user,status=end,agent=from"},
    ),
    "odd names": (
        (
            'CREATE SCHEMA "My $HOME!"; CREATE TABLE "My $HOME!"."`ls` ""%s"" \\ {0}"'
            ' ("i d" text PRIMARY KEY, "%s" text, "x""y" int NOT NULL)'
        ),
        {
            "table": '"My $HOME!"."`ls` ""%s"" \\ {0}"',
            "column_map": 'id="i d",status="%s"',
        },
    ),
    "columns of the contract that need a value": (
        (
            "CREATE TABLE jobs (id text PRIMARY KEY, status text NOT NULL, progress int NOT NULL,"
            " task_id uuid NOT NULL, agent varchar(3) NOT NULL, started_at timestamptz NOT NULL)"
        ),
        {},
    ),
    "other columns that need a value": (
        (
            "CREATE TYPE color AS ENUM ('red', 'green');"
            " CREATE TABLE owner (key int PRIMARY KEY); INSERT INTO owner VALUES (7);"
            " CREATE TABLE jobs (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
            " status text NOT NULL, owner int NOT NULL REFERENCES owner, color color NOT NULL,"
            " name varchar(6) NOT NULL UNIQUE, number smallint NOT NULL UNIQUE, flag bool NOT NULL,"
            " at timestamptz NOT NULL, day date NOT NULL, clock time NOT NULL,"
            " gap interval NOT NULL,"
            " data jsonb NOT NULL, bytes bytea NOT NULL, list text[] NOT NULL, ip inet NOT NULL,"
            " span int4range NOT NULL, key uuid NOT NULL, cost money NOT NULL,"
            " word text NOT NULL CHECK (word IN ('one', 'two')),"
            " filled text NOT NULL DEFAULT 'x', twice int NOT NULL GENERATED ALWAYS AS (1) STORED)"
        ),
        {},
    ),
    "partitioned": (
        (
            "CREATE TABLE jobs (id text PRIMARY KEY, status text) PARTITION BY HASH (id);"
            " CREATE TABLE jobs_0 PARTITION OF jobs FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ),
        {},
    ),
    "view": (
        (
            "CREATE TABLE base (id text PRIMARY KEY, status text);"
            " CREATE VIEW jobs AS SELECT * FROM base"
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", ["camel case", "other columns that need a value"])
async def test_each_printed_command_works_on_each_version(any_database: str, name: str) -> None:
    await check(any_database, name)


@pytest.mark.parametrize("name", TABLES)
async def test_each_printed_command_works(database: str, name: str) -> None:
    await check(database, name)


async def check(url: str, name: str) -> None:
    create, given = TABLES[name]
    execute(url, create)
    settings = {"table": "jobs", **given}
    async with serving(
        url,
        table=settings["table"],
        columns=settings.get("column_map", ""),
        statuses=Settings.load(**settings).status_map,
    ) as client:
        shell = Shell(url, client, **settings)
        first = "running" if name == "enum without a queued word" else "queued"
        later = "completed" if first == "running" else "running"
        for number in range(2):  # with an id that is free, each time
            await shell.look()
            await shell.paste("create one")
            assert statuses(await runs(client)) == sorted([first, *[later] * number])
            assert await shell.paste("change it") == "UPDATE 1\n"
            assert statuses(await runs(client)) == [later] * (number + 1)
        (change,), (*_, same) = shell.commands["change it"], shell.commands["no psql?"]
        assert change.partition(" -c ")[2] == same.partition(" psql -c ")[2]
        if name in ("text", "odd names"):  # it takes a second
            assert await shell.paste("no psql?") == "UPDATE 1\n"


async def runs(client: AsyncClient) -> list[dict[str, str]]:
    found: list[dict[str, str]] = (await client.get("/api/runs")).json()["runs"]
    return found


def statuses(found: list[dict[str, str]]) -> list[str]:
    return sorted(run["status"] for run in found)


UNFIT = {
    "an id of a type for which Brain makes none up": (
        "CREATE TABLE jobs (id inet PRIMARY KEY, status text)",
        "INSERT INTO jobs VALUES ('10.0.0.1', 'running'), ('10.0.0.2', 'queued')",
        "(the column id needs an id of your own)",
    ),
    "a column of such a type": (
        'CREATE TABLE jobs (id text PRIMARY KEY, status text, "where" point NOT NULL)',
        "INSERT INTO jobs VALUES ('it''s', 'queued', '(1, 2)')",
        "(the column where needs a value)",
    ),
    "a reference to an empty table": (
        (
            "CREATE TABLE owner (id int PRIMARY KEY); CREATE TABLE jobs (id text PRIMARY KEY,"
            " status text, owner int NOT NULL REFERENCES owner DEFERRABLE)"
        ),
        (
            "INSERT INTO owner VALUES (1); INSERT INTO jobs VALUES ('a', 'queued', 1);"
            " ALTER TABLE owner ENABLE ROW LEVEL SECURITY;"
            " ALTER TABLE owner FORCE ROW LEVEL SECURITY"
        ),
        "(the column owner needs a value)",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_without_an_insert_the_update_is_of_a_row_that_exists(
    database: str, name: str
) -> None:
    create, insert, says = UNFIT[name]
    execute(database, create)
    async with serving(database, table="jobs") as client:
        shell = Shell(database, client, table="jobs")
        await shell.look()
        assert not shell.commands.keys() & set(OK)
        assert says in shell.commands[""]
        execute(database, insert)
        await shell.look()
        assert "create one" not in shell.commands
        assert f"{says[:-1]}: this changes a row that exists)" in shell.commands[""]
        assert await shell.paste("change it") == "UPDATE 1\n"
        assert set(statuses(await runs(client))) == {"running"}


async def test_a_role_that_may_only_read_is_told_so(
    postgres: Postgres, database: str, superuser_url: str
) -> None:
    info = conninfo.conninfo_to_dict(database)
    execute(superuser_url, "CREATE ROLE welcome_reader LOGIN")
    try:
        execute(database, "GRANT SELECT ON runs TO welcome_reader")
        url = postgres.url(str(info["dbname"]), "welcome_reader")
        async with serving(url) as client:
            shell = Shell(url, client)
            await shell.look()
            assert not shell.commands.keys() & set(OK)
            assert "(this role may not insert into public.runs)" in shell.commands[""]
            execute(database, "GRANT INSERT ON runs TO welcome_reader")
            await shell.look()
            await shell.paste("create one")
            assert "change it" not in shell.commands
            assert "(this role may not update public.runs)" in shell.commands[""]
    finally:
        execute(superuser_url, "DROP OWNED BY welcome_reader; DROP ROLE welcome_reader")


async def test_a_table_that_another_schema_hides_is_named_with_its_schema(database: str) -> None:
    execute(
        database,
        "CREATE SCHEMA cecelia; CREATE TABLE cecelia.runs (id int PRIMARY KEY, status int)",
    )
    async with serving(database) as client:
        shell = Shell(database, client)
        await shell.look()
        await shell.paste("create one")
        assert "UPDATE public.runs SET" in shell.commands["change it"][0]
        assert await shell.paste("change it") == "UPDATE 1\n"


async def test_a_database_of_any_name_is_named_in_the_commands(postgres: Postgres) -> None:
    name = "my db/é?a=%41&'$HOME'#\\"
    execute(postgres.url(), 'CREATE DATABASE "{}"'.format(name.replace('"', '""')))
    url = postgres.url(quote(name, safe=""))
    try:
        execute(url, "CREATE TABLE runs (id text PRIMARY KEY, status text)")
        async with serving(url) as client:
            shell = Shell(redact(parse_url(url)), client)
            await shell.look()
            await shell.paste("create one")
            assert await shell.paste("change it") == "UPDATE 1\n"
    finally:
        execute(postgres.url(), 'DROP DATABASE "{}" WITH (FORCE)'.format(name.replace('"', '""')))


@pytest.mark.parametrize("text", ['a "b" `c` $d \\ e', "it's!", "plain", "", "two\nlines"])
def test_a_word_in_a_shell_is_one_word(text: str) -> None:
    assert paste(f"printf %s {in_shell(text)}", "") == text


def test_the_usual_commands_name_the_table_and_its_columns() -> None:
    """Those that are printed while the table cannot be looked at."""
    settings = Settings.load(table="jobs", column_map="id=runId")
    text = welcome(Started(5221, "postgresql://h/d", None, None, "no answer"), settings)
    assert re.search(
        r"""change it   psql "postgresql://h/d" -c "UPDATE \\"jobs\\" SET status='running'"""
        r""" WHERE \\"runId\\"='test-run-1'\"""",
        text,
    )


@pytest.mark.parametrize("folder", [None, "/srv/a folder"])
def test_brain_psql_is_printed_with_the_folder_of_the_embedded_database(folder: str | None) -> None:
    """Another terminal has no BRAIN_DATA_DIR."""
    settings = Settings.load() if folder is None else Settings.load(data_dir=folder)
    text = welcome(Started(5221, "postgresql://cecelia@127.0.0.1/cecelia", 5432, None), settings)
    (line,) = (line for line in text.splitlines() if "no psql?" in line)
    prefix = "" if folder is None else "BRAIN_DATA_DIR='/srv/a folder' "
    assert line.startswith(f"  no psql?    {prefix}{sys.executable} -m brain psql -c ")
    assert "in its terminal" not in text


@pytest.mark.parametrize("variable", ["BRAIN_DATABASE_URL", "DATABASE_URL"])
def test_brain_psql_is_said_to_need_the_database_url(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("BRAIN_DATABASE_URL", raising=False)
    monkeypatch.setenv(variable, "postgresql://h/d")
    text = welcome(Started(5221, "postgresql://h/d", None, None), Settings.load())
    assert f"-m brain psql needs {variable} in its terminal, too)" in text
