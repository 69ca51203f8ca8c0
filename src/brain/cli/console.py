"""What a person reads and what a command needs: the welcome, errors, settings, the database."""

import asyncio
import atexit
import re
import shutil
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
import uvloop
from websockets.exceptions import InvalidURI

from brain import __version__
from brain.config import Settings, SettingsError
from brain.contract.errors import BrainError
from brain.embedded.server import running
from brain.log import Log, configure_logging, set_log_level
from brain.postgres.connection import error_line

if TYPE_CHECKING:
    from brain.app import Started

STDOUT, STDERR = 1, 2

EXPECTED = (BrainError, psycopg.Error, OSError, InvalidURI)
"""Errors that a person can fix: one sentence without a traceback, and exit status 2."""


def note(text: str) -> None:
    """Print a line to standard error."""
    print(f"brain: {text}", file=sys.stderr)


def fail(error: BaseException | str) -> NoReturn:
    note(error_line(error) if isinstance(error, psycopg.Error) else str(error))
    raise SystemExit(2)


def run(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BrokenPipeError:
        # The reader of our output has closed it (`head`). Typer handles that.
        raise
    except EXPECTED as error:
        fail(error)


def run_until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C is the normal end of `work`: exit status 130, without a word."""
    try:
        run(work)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def output(descriptor: int) -> Log:
    log = Log(descriptor)
    atexit.register(log.close)
    return log


def load_settings(**given: object) -> Settings:
    """Start the log, then read the settings. Exits with 2 if they are invalid."""
    configure_logging(output(STDERR))
    try:
        settings = Settings.load(**given)
    except SettingsError as error:
        fail(error)
    set_log_level(settings.log_level)
    return settings


def database_url(settings: Settings) -> str:
    """The configured database, or the embedded one that runs in BRAIN_DATA_DIR."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    server = running(settings.data_dir)
    if server is None:
        fail(
            f"no embedded PostgreSQL runs in {settings.data_dir}: start `brain serve` there, or "
            "set BRAIN_DATABASE_URL"
        )
    return server.url


def welcome(started: "Started", settings: Settings) -> str:
    """Three commands to paste, with the ports in use."""
    address = f"localhost:{started.port}"
    requires_tokens = settings.jwt_secret or settings.jwt_jwks
    bearer = ' -H "Authorization: Bearer $BRAIN_TOKEN"' if requires_tokens else ""
    update = f"UPDATE {_sql_name(settings)} SET status='running' WHERE id='test-run-1'"
    if started.embedded_port is None:
        psql = f'psql "{started.database}" -c "{update}"'
    else:
        port = "" if started.embedded_port == 5432 else f" -p {started.embedded_port}"
        psql = f'psql -h localhost{port} -U cecelia cecelia -c "{update}"'
    brain = "brain" if shutil.which("brain") else sys.argv[0]
    table = f"{settings.table} of {started.database}"
    if started.detail is None:
        first = (
            f"Brain {__version__} follows {table} on port {started.port}. "
            "Paste, each in a terminal:"
        )
    else:
        first = (
            f"Brain {__version__} does not follow {table} yet: {started.detail}. "
            f"Run `{brain} doctor` to see what to do. Brain keeps trying, on port {started.port}. "
            "Paste, once it follows, each in a terminal:"
        )
    npx = f"npx -y wscat -c ws://{address}/ws{bearer}"
    body = """-H 'Content-Type: application/json' -d '{"id":"test-run-1"}'"""
    lines = [
        "",
        first,
        "",
        f"  see it      http://{address}/",
        f"  watch it    {npx}       (or: {brain} watch ws://{address}/ws)",
        f"  create one  curl -s http://{address}/api/runs{bearer} {body}",
        f"  change it   {psql}",
        f'              (no psql? {brain} psql -c "…")',
    ]
    if requires_tokens:
        lines.append("  Brain requires tokens: set BRAIN_TOKEN to one in each of these terminals")
    return "\n".join([*lines, ""])


def _sql_name(settings: Settings) -> str:
    """The table as it is typed in SQL: quoted only where it must be."""
    table = settings.table
    names = (table.name,) if table.schema == "public" else (table.schema, table.name)
    if all(re.fullmatch("[a-z_][a-z0-9_]*", name) for name in names):
        return ".".join(names)
    return table.sql.as_string().replace('"', '\\"')
