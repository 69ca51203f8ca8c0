"""The command line as a person uses it: real processes, and what they print."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from brain import __version__
from tests.support import ROOT
from tests.support.commands import run
from tests.support.hints import follows, paste
from tests.support.issuer import SECRET, token
from tests.support.patience import PATIENCE
from tests.support.postgres import Postgres, execute
from tests.support.served import BRAIN, Brain, served
from tests.support.template import ROLE, TEMPLATE

pytestmark = pytest.mark.long


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C. Returns the output on standard error."""
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    return output or ""


@pytest.fixture(scope="module")
def embedded() -> Iterator[Brain]:
    with served() as brain:
        yield brain


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("importing", signal.SIGTERM),
        ("importing", signal.SIGINT),
        ("importing", signal.SIGHUP),
        ("postgres.new-*", signal.SIGTERM),
        ("postgres/PG_VERSION", signal.SIGINT),
        ("postgres/postmaster.pid", signal.SIGTERM),
        ("postgres/postmaster.pid", signal.SIGHUP),
        ("stopping", signal.SIGTERM),
    ],
)
def test_serve_can_be_stopped_at_any_moment(moment: str, number: signal.Signals) -> None:
    """While modules are imported and while PostgreSQL is created, started and stopped.

    The exit status is 0, and no PostgreSQL stays behind.
    """
    # A shell starts what imports its modules itself (tests/support/prefork.py).
    brain = Brain(wait=False, shell='exec "$@"' if moment == "importing" else "")
    try:
        if moment == "importing":
            while "psycopg_binary" not in Path(f"/proc/{brain.process.pid}/maps").read_text():
                time.sleep(0.001)  # psycopg has been imported; FastAPI and our own have not
        elif moment == "stopping":
            brain.wait_for("Paste")
            brain.process.send_signal(number)
            brain.wait_for(r'event=stopping clients=0 detail="at most \d+\.5 s; a second signal')
        else:
            until = time.monotonic() + PATIENCE
            while not list((brain.folder / ".brain").glob(moment)):
                assert time.monotonic() < until, brain.log()
                time.sleep(0.001)
        brain.process.send_signal(number)
        assert brain.process.wait(PATIENCE) == 0, brain.log()
    finally:
        brain.process.kill()
        brain.process.wait()
    assert "Traceback" not in brain.log()
    # A second signal does not wait for PostgreSQL, which ends at once.
    until = time.monotonic() + PATIENCE
    while left := [line for line in _processes() if str(brain.folder) in line]:
        assert time.monotonic() < until, (left, brain.log())
        time.sleep(0.01)


def test_signals_at_the_very_end_do_not_change_the_exit_status(shared: str) -> None:
    # A shell starts an interpreter that ends as usual (tests/support/prefork.py).
    brain = Brain(database_url=shared, follows="", shell='exec "$@"')
    brain.process.send_signal(signal.SIGTERM)
    brain.wait_for("event=stopped")
    while brain.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            brain.process.send_signal(number)
        time.sleep(0.001)
    assert brain.process.returncode == 0
    assert "Traceback" not in brain.log()


def test_no_import_swallows_the_signal_that_stops_serve(tmp_path: Path) -> None:
    """Psycopg takes any error of its C module as a reason for another one, with another libpq."""
    (tmp_path / "psycopg_c").mkdir()
    (tmp_path / "psycopg_c" / "__init__.py").write_text("")
    (tmp_path / "psycopg_c" / "pq.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except BaseException:\n    raise ImportError from None\n"
        "raise AssertionError('still alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "brain", "serve", "--port", "none"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_command_can_be_interrupted_while_it_starts() -> None:
    # A shell starts what imports its modules itself (tests/support/prefork.py).
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@"', "sh", *BRAIN, "doctor"], stderr=subprocess.PIPE, text=True
    )
    while "psycopg_binary" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (-signal.SIGINT, "")  # a shell calls this 130


def _processes() -> list[str]:
    """The command lines of all processes."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(each.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_the_commands_of_the_welcome_work(embedded: Brain) -> None:
    """Each of the three printed commands does what it says, with the ports in use."""
    welcome = embedded.log()
    watch, create, change = (
        found[1]
        for what in ("watch it", "create one", "change it")
        if (found := re.search(rf"{what} +(.*)", welcome))
    )
    url = re.search(r"ws://\S+", watch)
    assert url
    watching = subprocess.Popen([*BRAIN, "watch", url[0]], stdout=subprocess.PIPE, text=True)
    try:
        while not embedded.get("/readyz")[1]["clients"]:
            time.sleep(0.05)
        created = subprocess.run(create, shell=True, capture_output=True, text=True, check=True)
        assert json.loads(created.stdout) == {"id": "test-run-1", "status": "queued"}
        changed = subprocess.run(change, shell=True, capture_output=True, text=True, check=True)
        assert changed.stdout.strip() == "UPDATE 1"
        assert watching.stdout
        seen = [json.loads(watching.stdout.readline()) for _ in range(2)]
    finally:
        interrupt(watching)
    assert [m["data"]["status"] for m in seen] == ["queued", "running"]


def test_the_first_start_says_what_it_creates_and_where(embedded: Brain) -> None:
    log = embedded.log()
    cluster = (embedded.folder / ".brain/postgres").resolve()
    creating = log.index(f'event="creating embedded postgres" cluster={cluster} detail=')
    assert creating < log.index('event="embedded postgres created"')


def test_the_readme_has_the_commands_that_serve_prints(embedded: Brain) -> None:
    """But for the ports, and the path of the command."""
    readme = re.sub(r"[.]venv/bin/", "", (ROOT / "README.md").read_text())
    printed = embedded.log().replace(f"localhost:{embedded.port}", "localhost:5221")
    printed = re.sub(r"psql -h localhost -p \d+", "psql -h localhost", printed)
    commands = re.findall(
        r"  (?:watch it|create one|change it) +(.+?)(?:   .*)?$", printed, re.MULTILINE
    )
    assert len(commands) == 3
    for command in commands:
        assert f"\n{command}" in readme, command


def test_psql_opens_the_embedded_database(embedded: Brain) -> None:
    output = run(
        "psql",
        "-XAtc",
        "SELECT current_user, current_database()",
        data_dir=embedded.folder / ".brain",
    )
    assert output.strip() == "cecelia|cecelia"


def test_psql_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    assert f"start `{shlex.join(BRAIN)} serve` there, or set BRAIN_DATABASE_URL" in run(
        "psql", code=2, data_dir=tmp_path
    )


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_the_version_is_printed(argument: str) -> None:
    assert run(argument) == f"{__version__}\n"


def test_help_names_every_command() -> None:
    output = run("--help")
    for command in ("serve", "watch", "wait", "token", "demo", "doctor", "init-db", "psql"):
        assert re.search(rf"\b{command}\b", output)


def test_init_db_prints_the_sql_that_it_runs(postgres: Postgres) -> None:
    """Psql accepts what it prints, and a second run changes nothing."""
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    printed = run("init-db", "--sql", database_url=url)
    execute(url, printed)
    for _ in range(2):
        assert f"is ready: {shlex.join(BRAIN)} serve" in run("init-db", database_url=url)
    execute(url, "INSERT INTO runs DEFAULT VALUES")
    assert execute(url, "SELECT status FROM runs") == [("queued",)]
    assert execute(url, "SELECT pubname FROM pg_publication") == [("brain_public_runs",)]


def test_init_db_creates_the_table_of_the_setting(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    run("init-db", database_url=url, table='public.my "runs"')
    with served(database_url=url, table='public.my "runs"') as brain:
        execute(url, 'INSERT INTO "my ""runs""" (id) VALUES (\'r\')')
        assert brain.get("/api/runs/r") == (200, {"id": "r", "status": "queued"})


def test_a_healthy_start_does_not_sound_alarming(embedded: Brain, postgres: Postgres) -> None:
    """With the embedded database, and with a role that may only read another one."""
    name = postgres.create_database(TEMPLATE, ROLE)
    execute(postgres.url(), "CREATE ROLE reads LOGIN")
    execute(postgres.url(name), "GRANT SELECT ON runs TO reads")
    with served(database_url=postgres.url(name, "reads"), follows="poll") as reading:
        reading.wait_for('event=source now=poll detail="the role may not replicate: permission')
    assert "Brain works by polling; a stream would be sooner" in reading.log()
    started, streams, _ = embedded.log().partition("event=source now=replication")
    assert streams
    for log in (started, reading.log()):
        assert set(re.findall(r" level=(\w+) ", log)) == {"info"}
        assert not re.search("FATAL|failed|refused|error", log, re.IGNORECASE)


def test_init_db_removes_what_it_created_and_the_table_only_if_asked(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database(TEMPLATE, ROLE), ROLE)
    present = "SELECT count(*) FROM pg_publication UNION ALL SELECT count(*) FROM pg_class"
    present += " WHERE relname = 'runs'"
    assert "give --remove with it" in run("init-db", "--drop-table", code=2, database_url=url)
    printed = run("init-db", "--remove", "--drop-table", "--sql", database_url=url)
    assert (
        printed == 'DROP PUBLICATION "brain_public_runs";\nDROP TABLE IF EXISTS "public"."runs";\n'
    )
    assert execute(url, present) == [(1,), (1,)]
    said = run("init-db", "--remove", database_url=url)
    assert said.startswith('done: DROP PUBLICATION "brain_public_runs"\n')
    assert "The table public.runs stays." in said
    assert execute(url, present) == [(0,), (1,)]
    none = "has no publication that Brain created for public.runs"
    assert none in run("init-db", "--remove", database_url=url)
    execute(url, "CREATE VIEW latest AS SELECT * FROM runs")
    said = run("init-db", "--remove", "--drop-table", code=2, database_url=url)
    assert "other objects depend on it (2BP01): view latest depends on table runs" in said
    execute(url, "DROP VIEW latest")
    assert "stays" not in run("init-db", "--remove", "--drop-table", database_url=url)
    assert execute(url, present) == [(0,), (0,)]
    said = run("init-db", "--remove", "--drop-table", database_url=url)
    assert "has no table public.runs" in said


def test_init_db_removes_nothing_that_the_role_does_not_own(postgres: Postgres) -> None:
    name = postgres.create_database(TEMPLATE, ROLE)
    owner, other = postgres.url(name, ROLE), postgres.url(name, "visitor")
    execute(postgres.url(), "DROP ROLE IF EXISTS visitor; CREATE ROLE visitor LOGIN")
    said = run("init-db", "--remove", code=2, database_url=other)
    assert "name a role that owns it in --database-url" in said
    assert "done: DROP" in run("init-db", "--remove", "--database-url", owner, database_url=other)


def test_a_mapped_table_is_created_followed_examined_and_played(postgres: Postgres) -> None:
    """By each command, and with the commands that `serve` prints."""
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    settings: dict[str, Any] = {
        "database_url": url,
        "table": '"App"."Runs"',
        "column_map": 'id=run_id,status="runStatus",completed_at=endedAt',
    }
    assert 'CREATE TABLE "App"."Runs" (' in run("init-db", "--sql", **settings)
    assert '"App"."Runs" of' in run("init-db", **settings)
    assert 'Brain streams "App"."Runs".' in run("doctor", **settings)
    assert 'done: DROP PUBLICATION "brain_App_Runs"' in run("init-db", "--remove", **settings)
    with served(**settings) as brain:
        found = dict(
            re.findall(r"^  (create one|change it|no psql\?) +(.*)", brain.log(), re.MULTILINE)
        )
        for command in found.values():
            subprocess.run(
                command,
                shell=True,
                check=True,
                env=os.environ | {"BRAIN_DATABASE_URL": url},
                capture_output=True,
            )
        assert brain.get("/api/runs")[1]["runs"][0]["status"] == "running"
        # A column that needs a value which the API cannot give.
        execute(url, 'ALTER TABLE "App"."Runs" ADD kind int NOT NULL DEFAULT 1')
        execute(url, 'ALTER TABLE "App"."Runs" ALTER kind DROP DEFAULT')
        playing = subprocess.Popen(
            [*BRAIN, "demo", "--runs", "2", "--seconds", "0.2"],
            env=os.environ | {f"BRAIN_{name.upper()}": each for name, each in settings.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            until = time.monotonic() + PATIENCE
            while not brain.get("/api/runs?status=completed")[1]["runs"]:
                assert time.monotonic() < until
                assert playing.poll() is None
                time.sleep(0.1)
        finally:
            interrupt(playing)


def test_demo_says_why_it_cannot_create_a_run(database: str) -> None:
    execute(database, "ALTER TABLE runs ADD place point NOT NULL")
    assert "no run can be created: the column place needs a value" in run(
        "demo", code=2, database_url=database
    )


def test_init_db_ends_with_the_verdict_for_the_role_that_serves(
    postgres: Postgres, superuser_url: str
) -> None:
    """The owner may create everything; who serves may not read it."""
    execute(postgres.url(), "DROP ROLE IF EXISTS init_reader; CREATE ROLE init_reader LOGIN")
    server = superuser_url.replace("postgres@", "init_reader@")
    try:
        for arguments in ((), ("--database-url", superuser_url)):
            said = run("init-db", *arguments, code=2, database_url=server)
            assert "broken: the role init_reader may not read public.runs" in said
            assert "Brain cannot follow public.runs as it is." in said
            assert "is ready" not in said
        for line in said.splitlines():
            if "GRANT" in line:
                execute(superuser_url, line.partition("GRANT")[1] + line.partition("GRANT")[2])
        said = run("init-db", "--database-url", superuser_url, database_url=server)
        assert "could be better: the role may not replicate" in said
        assert "Brain follows public.runs by polling." in said
        assert f"is ready: {shlex.join(BRAIN)} serve" in said
        # Another database, or an environment that names none: the given URL serves.
        for url in (superuser_url, server.replace("init_reader@", "nobody@") + "_else"):
            said = run("init-db", "--database-url", superuser_url, database_url=url)
            assert "Brain streams public.runs." in said
        assert "is ready" in run("init-db", "--database-url", superuser_url, database_url="x://")
    finally:
        execute(superuser_url, "DROP OWNED BY init_reader; DROP ROLE init_reader")


@follows("GRANT CREATE ON SCHEMA {} TO {};", "GRANT CREATE ON DATABASE {} TO {};")
def test_init_db_for_a_role_that_may_not_create_the_table_says_what_to_grant(
    postgres: Postgres,
) -> None:
    execute(postgres.url(), "DROP ROLE IF EXISTS creator; CREATE ROLE creator LOGIN")
    name = postgres.create_database()
    admin, url = postgres.url(name), postgres.url(name, "creator")
    for table in ("public.runs", '"Ap""p".runs'):
        said = run("init-db", code=2, database_url=url, table=table)
        assert "or name a role that may create the table in --database-url" in said
        hint = re.search("run (GRANT .*;) as its owner", said)
        assert hint, said
        paste(hint[1], admin)
        assert "is ready" in run("init-db", database_url=url, table=table)
    execute(admin, "DROP OWNED BY creator; DROP ROLE creator")


def test_init_db_prints_the_map_for_a_table_with_other_names(database: str) -> None:
    execute(database, "CREATE TABLE jobs (job_id text PRIMARY KEY, state text)")
    said = run("init-db", code=2, database_url=database, table="jobs")
    assert "the table public.jobs has no column id and no column status" in said
    (column_map,) = re.findall(r"BRAIN_COLUMN_MAP=(\S+)", said)
    said = run("init-db", database_url=database, table="jobs", column_map=column_map)
    assert f"is ready: {shlex.join(BRAIN)} serve" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"column_map": "id="}, "BRAIN_COLUMN_MAP='id=': the column of 'id' is no name"),
        ({"embedded": "false"}, "BRAIN_EMBEDDED=false forbids the embedded PostgreSQL"),
        ({"port": "99999"}, "BRAIN_PORT='99999': a port is 0 to 65535"),
        (
            {"database_url": "mysql://user:secret@host/db"},
            "begins with mysql://, not with postgresql://",
        ),
        (
            {"flush_interval": "soon"},
            "BRAIN_FLUSH_INTERVAL='soon': a flush interval is 0 to 10 seconds",
        ),
        ({"host": "203.0.113.7"}, "port 5221 of 203.0.113.7 cannot be listened on"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(
    settings: dict[str, str], says: str, tmp_path: Path
) -> None:
    output = run("serve", code=2, **{"data_dir": tmp_path, **settings})
    assert says in output
    assert "secret" not in output
    assert len(output.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_one_clear_error(embedded: Brain, tmp_path: Path) -> None:
    output = run("serve", code=2, port=embedded.port, data_dir=tmp_path)
    assert (
        f"port {embedded.port} of 0.0.0.0 cannot be listened on (Address already in use)" in output
    )


def test_serve_reports_a_missing_table_and_waits_for_it(postgres: Postgres) -> None:
    """Brain keeps running: somebody may create the table later. /readyz says how."""
    url = postgres.url(postgres.create_database(owner=ROLE), ROLE)
    brain = Brain(database_url=url, wait=False)
    try:
        brain.wait_for("there is no table public.runs")
        brain.wait_for("Paste")
        brain.port = int(re.findall(r"on port (\d+)\. Paste", brain.log())[-1])
        status, ready = brain.get("/readyz")
        assert (status, ready["ready"]) == (503, False)
        assert "create it with `brain init-db`" in ready["detail"]
        assert brain.get("/healthz")[0] == 200
        run("init-db", database_url=url)
        brain.wait_ready("replication")
        states = re.findall(r"event=source (.*)", brain.log())
        assert any("there is no table" in state for state in states)
        assert all(a != b for a, b in pairwise(states)), (
            f"one line per change of state, not per try: {brain.log()}"
        )
        assert brain.stop() == 0
    finally:
        brain.process.kill()
        brain.process.wait()
    assert "Traceback" not in brain.log()


def test_serve_reports_missing_privileges(postgres: Postgres, database: str) -> None:
    execute(postgres.url(), "DROP ROLE IF EXISTS stranger")
    execute(postgres.url(), "CREATE ROLE stranger LOGIN")
    url = database.replace("cecelia@", "stranger@")
    brain = Brain(database_url=url, wait=False)
    try:
        brain.wait_for("permission denied for table runs")
        assert brain.stop() == 0
    finally:
        brain.process.kill()
        brain.process.wait()
    assert "Traceback" not in brain.log()


def test_serve_waits_for_an_unreachable_database() -> None:
    brain = Brain(database_url="postgresql://cecelia@127.0.0.1:1/cecelia", wait=False)
    try:
        brain.wait_for("source now=none|now=none")
        brain.wait_for("Paste")
        assert brain.stop() == 0
    finally:
        brain.process.kill()
        brain.process.wait()
    assert "Traceback" not in brain.log()


def test_init_db_without_a_database_is_one_clear_error(tmp_path: Path) -> None:
    output = run("init-db", code=2, database_url="postgresql://cecelia@127.0.0.1:1/cecelia")
    assert "connection failed" in output
    assert "no embedded PostgreSQL runs in" in run("init-db", code=2, data_dir=tmp_path)


def test_watch_reconnects(database: str) -> None:
    """The server restarts. `watch` prints what changed, and reports the outage once."""
    with served(database_url=database) as first:
        port = first.port
        watching = subprocess.Popen(
            [*BRAIN, "watch", f"ws://127.0.0.1:{port}/ws", "--snapshot"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout
        while not first.get("/readyz")[1]["clients"]:
            time.sleep(0.05)
        execute(database, "INSERT INTO runs (id) VALUES ('before')")
        assert json.loads(watching.stdout.readline())["data"]["id"] == "before"
    execute(database, "INSERT INTO runs (id) VALUES ('during')")
    with served(database_url=database, port=port):
        try:
            seen = {json.loads(watching.stdout.readline())["data"]["id"] for _ in range(2)}
            assert seen == {"before", "during"}, (
                "a Brain that has just started cannot answer `since`, so a snapshot follows"
            )
        finally:
            output = interrupt(watching)
    assert f"brain: connected to ws://127.0.0.1:{port}/ws\n" in output
    assert output.count("connected to") == 1
    assert output.count("; trying again") == 1
    assert output.count("connected again") == 1


def test_watch_takes_what_people_type(embedded: Brain) -> None:
    """And does not ask the proxy of the environment for this machine."""
    for url in ("localhost:{}", "http://localhost:{}/", "ws://127.0.0.1:{}", "ws://[::1]:{}/ws"):
        watching = subprocess.Popen(
            [*BRAIN, "watch", url.format(embedded.port)],
            env=os.environ | {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "", "NO_PROXY": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stderr
        assert watching.stderr.readline().startswith("brain: connected to ws://")
        interrupt(watching)


def test_watch_sends_the_token_of_the_environment(database: str) -> None:
    with served(database_url=database, jwt_secret=SECRET) as brain:
        execute(database, "INSERT INTO runs (id) VALUES ('for-bearers')")
        url = f"ws://127.0.0.1:{brain.port}/ws?snapshot=true&run_id=for-bearers"
        said = run("watch", url, code=2)
        assert "closed with 4401" in said
        hint = re.search("set BRAIN_TOKEN to a valid token: `(.*)` prints one where", said)
        assert hint, said
        command = [*shlex.split(hint[1]), "--minutes", "1"]
        environment = os.environ | {"BRAIN_JWT_SECRET": SECRET}
        printed = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        assert "for-bearers" in run(
            "wait", "for-bearers", "--status", "queued", "--url", url, token=printed.stdout.strip()
        )
        assert "refused with 401: the token is not valid" in run(
            "watch", url, code=2, token="hunter2"
        )
        for lasts in (3, 15, 60):  # a busy machine may not even have begun while a short one lasts
            output = run("watch", url, code=2, token=token(exp=time.time() + lasts))
            if "refused with 401: the token has expired" not in output:
                break
        assert json.loads(output.splitlines()[0])["data"]["id"] == "for-bearers"
        assert "closed with 4401: the token has expired" in output


def test_watch_prints_the_detail_of_a_refusal(embedded: Brain) -> None:
    output = run("watch", f"ws://127.0.0.1:{embedded.port}/ws?nonsense=1", code=2)
    assert "refused with 400" in output
    assert "unknown parameter 'nonsense'" in output


def test_doctor_finds_no_fault_in_what_brain_created(embedded: Brain) -> None:
    output = run("doctor", data_dir=embedded.folder / ".brain")
    assert output.splitlines()[2:] == ["Brain streams public.runs."]
    assert "no embedded PostgreSQL runs in" in run("doctor", code=2, data_dir=embedded.folder)


def test_demo_plays_runs(embedded: Brain) -> None:
    """They begin, progress and end."""
    data_dir = embedded.folder / ".brain"
    playing = subprocess.Popen(
        [*BRAIN, "demo", "--runs", "3", "--seconds", "0.5"],
        env=os.environ | {"BRAIN_DATA_DIR": str(data_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + PATIENCE
        while not (embedded.get("/api/runs?status=completed")[1]["runs"]):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        interrupt(playing)


def test_demo_plays_with_two_columns_and_through_an_outage(postgres: Postgres) -> None:
    """And it ends the runs that it began."""
    name = postgres.create_database(TEMPLATE, ROLE)
    url = postgres.url(name, ROLE)
    execute(url, "ALTER TABLE runs ALTER id DROP DEFAULT")
    for column in ("agent", "task_id", "error", "progress", "started_at", "completed_at"):
        execute(url, f"ALTER TABLE runs DROP COLUMN {column}")
    playing = subprocess.Popen(
        [*BRAIN, "demo", "--runs", "3", "--seconds", "0.5"],
        env=os.environ | {"BRAIN_DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def ended(least: int) -> None:
        until = time.monotonic() + PATIENCE
        while execute(url, "SELECT count(*) FROM runs WHERE status = 'completed'")[0][0] < least:
            assert time.monotonic() < until
            assert playing.poll() is None
            time.sleep(0.1)

    try:
        ended(3)
        execute(
            postgres.url(name),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'brain-api'",
        )
        ended(execute(url, "SELECT count(*) FROM runs")[0][0] + 3)
    finally:
        output = interrupt(playing)
    assert "Traceback" not in output
    assert execute(url, "SELECT count(*) FROM runs WHERE status IN ('queued', 'running')") == [(0,)]
    postgres.drop_database(name)


def test_demo_ends_while_it_connects(database: str) -> None:
    """psycopg_pool may swallow the cancellation: one of ten played on."""
    environment = os.environ | {"BRAIN_DATABASE_URL": database}
    for _ in range(3):
        with contextlib.ExitStack() as closing:
            processes = []
            for _ in range(4):
                process = subprocess.Popen(
                    [*BRAIN, "demo"],
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                closing.enter_context(process)
                closing.callback(process.kill)
                processes.append(process)
            for process in processes:
                assert process.stdout
                assert "playing" in process.stdout.readline()
            for process in processes:
                interrupt(process)


def test_demo_reports_errors_of_the_database(database: str) -> None:
    output = run("demo", code=2, database_url=database, table="nosuch")
    assert "nosuch" in output
    execute(database, "ALTER TABLE runs ADD CONSTRAINT mine CHECK (agent = 'mine')")
    assert "mine" in run("demo", code=2, database_url=database)


def test_the_welcome_says_when_the_table_is_not_followed(database: str) -> None:
    with served(follows="none", wait=False, database_url=database, table="jobs") as brain:
        brain.wait_for("Paste")
        assert "does not follow public.jobs of" in brain.log()
        assert "doctor` to see what to do" in brain.log()
        assert f"Brain {__version__} follows" not in brain.log()


def test_the_welcome_sends_a_token_where_one_is_required(database: str) -> None:
    with served(database_url=database, jwt_secret=SECRET) as brain:
        commands = [
            line for line in brain.log().splitlines() if re.match("  (watch it|create one)", line)
        ]
        assert len(commands) == 2
        made = re.search(
            "Where BRAIN_JWT_SECRET is set, `.*brain (token .*)` prints one", brain.log()
        )
        assert made
        environment = os.environ | {
            "BRAIN_TOKEN": run(*made[1].split(), jwt_secret=SECRET).splitlines()[0]
        }
        assert all("Bearer $BRAIN_TOKEN" in line for line in commands)
        command = commands[1].split("one", 1)[1]
        output = subprocess.run(
            command,
            shell=True,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout
        assert json.loads(output)["id"] == "test-run-1"


def test_a_closed_pipe_is_not_an_error(database: str) -> None:
    program = " ".join(map(shlex.quote, BRAIN))
    output = subprocess.run(
        f"{program} doctor | true",
        shell=True,
        env=os.environ | {"BRAIN_DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert output.stderr == ""


def test_library_warnings_have_the_form_of_brains_log() -> None:
    """Psycopg warns when a connection ends during a query that is being cancelled."""
    program = (
        "import logging; from brain.cli.console import load_settings; load_settings(); "
        "logging.getLogger('psycopg').warning('one\\ntwo %s', 3); "
        "logging.getLogger('psycopg').info('nothing')"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stderr
    assert re.fullmatch(r'timestamp=\S+Z level=warning event="one\\ntwo 3"\n', output), output
