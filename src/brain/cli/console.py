"""What the commands share: the welcome, errors, settings, and the database."""

import asyncio
import atexit
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
import uvloop
from psycopg import conninfo
from pydantic import ValidationError
from websockets.exceptions import InvalidURI

from brain import __version__
from brain.cli.lines import STDERR, printable
from brain.config import Settings, SettingsError
from brain.contract.errors import BrainError
from brain.embedded.server import running
from brain.log import Log, configure_logging, set_log_level
from brain.postgres.connection import error_line
from brain.postgres.example import usual

if TYPE_CHECKING:
    from brain.started import Started

EXPECTED = (BrainError, psycopg.Error, OSError, InvalidURI)
"""Errors that a person can fix: one sentence without a traceback, and exit status 2."""


def note(text: str) -> None:
    """Print a line to standard error. A server may have written a part of it."""
    lines = "\n".join(map(printable, text.split("\n")))
    print(f"brain: {lines}", file=sys.stderr)


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
        # HTTP's status, or a close code: WatchError has it.
        lacks_token = getattr(error, "code", None) in (401, 4401)
        fail(f"{error}; {_token_hint()}" if lacks_token else error)


def _token_hint() -> str:
    return (
        f"set BRAIN_TOKEN to a valid token: `{program()} token` prints one where BRAIN_JWT_SECRET"
        " is set"
    )


def run_until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C is the normal end of `work`: exit status 130, and no message."""
    try:
        run(work)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def output(descriptor: int) -> Log:
    log = Log(descriptor)
    atexit.register(log.close)
    return log


def load_settings(*, worker: int | None = None, **given: object) -> Settings:
    """Start the log, then read the settings. Exits with 2 if they are invalid. `worker`: its number
    if this is one of several.
    """
    configure_logging(output(STDERR), worker)
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
            f"no embedded PostgreSQL runs in {settings.data_dir}: start `{program()} serve` there,"
            " or set BRAIN_DATABASE_URL"
        )
    return server.url


def serving_url(settings: Settings) -> str:
    """The URL by which `brain serve` will connect to the database that the settings name.

    A command may be given another URL, that of the table's owner. The role of `brain serve` is that
    of the environment, if it names the same database.
    """
    url = database_url(settings)
    try:
        ours = Settings().database_url
    except ValidationError:
        return url
    if ours is None or _place(ours.get_secret_value()) != _place(url):
        return url
    return ours.get_secret_value()


def _place(url: str) -> tuple[str, ...]:
    info = conninfo.conninfo_to_dict(url)
    host, port = info.get("host") or info.get("hostaddr"), info.get("port") or 5432
    return tuple(map(str, (host, port, info.get("dbname") or info.get("user"))))


def welcome(started: "Started", settings: Settings) -> str:
    """What to open and to paste, with the ports in use, for the table as it is."""
    address = f"localhost:{started.port}"
    requires_tokens = settings.jwt_secret or settings.jwt_jwks
    bearer = ' -H "Authorization: Bearer $BRAIN_TOKEN"' if requires_tokens else ""
    if started.embedded_port is None:
        psql = f"psql {in_shell(started.database)}"
    else:
        port = "" if started.embedded_port == 5432 else f" -p {started.embedded_port}"
        psql = f"psql -h localhost{port} -U cecelia cecelia"
    brain = program()
    table = f"{settings.table} of {started.database}"
    if started.detail is None:
        first = (
            f"Brain {__version__} follows {table} on port {started.port}. "
            "Paste the URL into a browser, and each command into a terminal:"
        )
    else:
        first = (
            f"Brain {__version__} does not follow {table} yet: {started.detail}. "
            f"Run `{brain} doctor` to see what to do. Brain keeps trying, on port {started.port}. "
            "Paste, once it follows, the URL into a browser, and each command into a terminal:"
        )
    npx = f"npx -y wscat -c ws://{address}/ws{bearer}"
    example = started.example or usual(settings.table)
    lines = [
        "",
        first,
        "",
        f"  see it      http://{address}/",
        f"  watch it    {npx}       (or: {brain} watch ws://{address}/ws)",
    ]
    if example.body is not None:
        body = shlex.quote(json.dumps(example.body, separators=(",", ":")))
        header = "-H 'Content-Type: application/json'"
        lines.append(f"  create one  curl -s http://{address}/api/runs{bearer} {header} -d {body}")
    by_brain = _brain_psql(started, settings, brain)
    lines += _by_psql("create one", example.insert, psql, by_brain)
    lines += _by_psql("change it", example.update, psql, by_brain)
    if example.lacks:
        existing = example.update and example.body is None and not example.insert
        what = f"{example.lacks}: this changes a row that exists" if existing else example.lacks
        lines.append(f"              ({what})")
    if started.embedded_port is None and (example.insert or example.update):
        name = "BRAIN_DATABASE_URL" if os.environ.get("BRAIN_DATABASE_URL") else "DATABASE_URL"
        lines.append(f"              ({brain} psql needs {name} in its terminal, too)")
    if requires_tokens:
        lines.append("  Brain requires tokens: set BRAIN_TOKEN to one in each of these terminals.")
    if settings.jwt_secret:
        made = f"{brain} token --scope read,write"
        lines.append(f"              Where BRAIN_JWT_SECRET is set, `{made}` prints one")
    return "\n".join([*lines, ""])


def _by_psql(what: str, statement: str, psql: str, by_brain: str) -> list[str]:
    if not statement:
        return []
    command = f"-c {in_shell(statement)}"
    return [f"  {what:10}  {psql} {command}", f"  no psql?    {by_brain} {command}"]


def _brain_psql(started: "Started", settings: Settings, brain: str) -> str:
    """`brain psql` for a terminal that has none of the variables by which Brain was started.

    It needs the folder of the embedded PostgreSQL, if that is not the usual one. The URL of another
    database has a password, which is not printed: see `welcome`.
    """
    folder = settings.data_dir
    if started.embedded_port is None or folder == Settings.model_fields["data_dir"].default:
        return f"{brain} psql"
    return f"BRAIN_DATA_DIR={shlex.quote(str(folder))} {brain} psql"


def in_shell(text: str) -> str:
    """One word for a shell. In double quotes, because SQL is full of the other ones."""
    if "!" in text:  # in double quotes, an interactive shell takes it for a line of its history
        return shlex.quote(text)
    return '"{}"'.format(re.sub(r'([\\"$`])', r"\\\1", text))


def program() -> str:
    """How to call this very Brain from the folder in which it runs."""
    called, found = sys.argv[0], shutil.which("brain")
    if Path(called).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m brain"
    if found and os.path.realpath(found) == os.path.realpath(called):
        return "brain"
    return shlex.quote(called)
