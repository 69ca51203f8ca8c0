import os
import subprocess
import sys
import traceback
from datetime import UTC
from ipaddress import ip_network
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from brain import config
from brain.access.addresses import NETWORKS
from brain.access.policy import Policy
from brain.config import Settings, SettingsError
from brain.contract.messages import STATUSES
from brain.environment import unknown
from brain.postgres.column_map import ColumnMap
from brain.postgres.names import Name
from brain.postgres.table import Table
from brain.postgres.time_zone import DEFAULT, TimeZone
from tests.support import ROOT

PAGE = ROOT / "docs" / "reference" / "settings.md"
PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BRAIN_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def refused(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **environment)
    return str(caught.value)


def test_defaults() -> None:
    settings = Settings.load()
    assert settings.host == ()
    assert settings.port == 5221
    assert settings.database_url is None
    assert settings.embedded is True
    assert settings.data_dir == Path(".brain")
    assert settings.postgres_port is None
    assert settings.table == Table("public", "runs")
    assert settings.source == "auto"
    assert settings.status_map == {}
    assert settings.push_unchanged is True
    assert settings.flush_interval == 0.025
    assert settings.allowed_networks == NETWORKS
    assert (settings.allowed_origins, settings.allowed_hosts, settings.trusted_proxies) == (
        (),
        (),
        (),
    )
    assert (settings.max_connections, settings.max_connections_per_ip) == (10_000, 100)
    assert (settings.max_text, settings.board_memory) == (8192, 128 * 1024 * 1024)
    assert (settings.ping_interval, settings.ping_timeout, settings.poll_interval) == (30, 75, 0.1)
    assert settings.log_level == "info"


READ = [
    ("BRAIN_HOST", "127.0.0.1, ::1", "host", ("127.0.0.1", "::1")),
    ("BRAIN_HOST", "[::1]", "host", ("::1",)),
    ("BRAIN_HOST", "0.0.0.0", "host", ("0.0.0.0",)),
    ("BRAIN_HOST", "fe80::1%eth0,localhost", "host", ("fe80::1%eth0", "localhost")),
    ("BRAIN_PORT", "0", "port", 0),
    ("BRAIN_POSTGRES_PORT", "5433", "postgres_port", 5433),
    ("BRAIN_DATA_DIR", "/srv/brain", "data_dir", Path("/srv/brain")),
    ("BRAIN_DATA_DIR", "~/brain", "data_dir", Path.home() / "brain"),
    ("BRAIN_TABLE", "jobs", "table", Table("public", "jobs")),
    ("BRAIN_TABLE", "work.Jobs", "table", Table("work", "Jobs")),
    ("BRAIN_TABLE", '"App"."Runs"', "table", Table("App", "Runs")),
    ("BRAIN_TABLE", '"a.b" . "c""d"', "table", Table("a.b", 'c"d')),
    (
        "BRAIN_COLUMN_MAP",
        ' id = run_id , error="a,b",started_at=startedAt,',
        "column_map",
        ColumnMap(
            (
                ("id", Name("run_id", quoted=False)),
                ("error", Name("a,b")),
                ("started_at", Name("startedAt", quoted=False)),
            )
        ),
    ),
    ("BRAIN_SOURCE", "poll", "source", "poll"),
    (
        "BRAIN_STATUS_MAP",
        "pending=queued, done=completed,",
        "status_map",
        {"pending": "queued", "done": "completed"},
    ),
    ("BRAIN_EMBEDDED", "false", "embedded", False),
    ("BRAIN_PUSH_UNCHANGED", "false", "push_unchanged", False),
    ("BRAIN_FLUSH_INTERVAL", "0", "flush_interval", 0.0),
    (
        "BRAIN_ALLOWED_NETWORKS",
        "10.1.0.0/16, 192.168.1.7",
        "allowed_networks",
        (ip_network("10.1.0.0/16"), ip_network("192.168.1.7/32")),
    ),
    (
        "BRAIN_ALLOWED_ORIGINS",
        "https://a.example/,NULL,file://,*",
        "allowed_origins",
        ("https://a.example", "null", "file://", "*"),
    ),
    (
        "BRAIN_ALLOWED_HOSTS",
        "brain.example,b.example:8080,[fd00::1],*",
        "allowed_hosts",
        ("brain.example", "b.example:8080", "[fd00::1]", "*"),
    ),
    (
        "BRAIN_TRUSTED_PROXIES",
        "127.0.0.1,::1",
        "trusted_proxies",
        (ip_network("127.0.0.1/32"), ip_network("::1/128")),
    ),
    ("BRAIN_MAX_CONNECTIONS", "0", "max_connections", 0),
    ("BRAIN_MAX_CONNECTIONS_PER_IP", "0", "max_connections_per_ip", 0),
    ("BRAIN_MAX_TEXT", "64", "max_text", 64),
    ("BRAIN_BOARD_MEMORY", "1048576", "board_memory", 1_048_576),
    ("BRAIN_PING_INTERVAL", "1.5", "ping_interval", 1.5),
    ("BRAIN_PING_TIMEOUT", "60", "ping_timeout", 60.0),
    ("BRAIN_POLL_INTERVAL", "0.01", "poll_interval", 0.01),
    ("BRAIN_RESUME", "0", "resume", 0),
    ("BRAIN_LOG_LEVEL", "DEBUG", "log_level", "debug"),
    ("BRAIN_PORT", "", "port", 5221),
    ("BRAIN_TIMEZONE", "", "timezone", DEFAULT),
    ("BRAIN_TIMEZONE", "utc", "timezone", TimeZone("UTC", UTC)),
    (
        "BRAIN_TIMEZONE",
        "America/New_York",
        "timezone",
        TimeZone("America/New_York", ZoneInfo("America/New_York")),
    ),
    ("BRAIN_ALLOWED_NETWORKS", "", "allowed_networks", NETWORKS),
    ("DATABASE_URL", "", "database_url", None),
]


@pytest.mark.parametrize(("variable", "text", "field", "value"), READ)
def test_reads(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: object
) -> None:
    assert getattr(load(monkeypatch, **{variable: text}), field) == value


REFUSED = [
    ("BRAIN_PORT", "99999", "a port is 0 to 65535"),
    ("BRAIN_PORT", "-1", "a port is 0 to 65535"),
    ("BRAIN_PORT", "http", "a port is 0 to 65535"),
    ("BRAIN_HOST", "localhost:5221", "without a port"),
    ("BRAIN_HOST", "[::1]:5221", "without a port"),
    ("BRAIN_HOST", "http://localhost", "is not an address to listen on"),
    ("BRAIN_POSTGRES_PORT", "0", "a port to listen on is 1 to 65535"),
    ("BRAIN_TABLE", "a.b.c", "is not the name of a table"),
    ("BRAIN_TABLE", ".", "is not the name of a table"),
    ("BRAIN_TABLE", '"App.Runs', "is not closed; write schema.name, such as public.runs"),
    ("BRAIN_COLUMN_MAP", "finished_at=x", "'finished_at' is no field of the contract"),
    ("BRAIN_SOURCE", "trigger", "a source is auto, replication or poll"),
    (
        "BRAIN_STATUS_MAP",
        "pending",
        "is not word=status with a status of queued, running, completed, failed",
    ),
    ("BRAIN_STATUS_MAP", "pending=waiting", "'pending=waiting' is not word=status"),
    ("BRAIN_STATUS_MAP", "=queued", "is not word=status"),
    ("BRAIN_STATUS_MAP", "a=queued,a=failed", "'a' cannot mean both queued and failed"),
    ("BRAIN_EMBEDDED", "no database", "it is true or false"),
    ("BRAIN_TIMEZONE", "europe/berlin", "did you mean Europe/Berlin?"),
    ("BRAIN_TIMEZONE", "Berlin", "did you mean Europe/Berlin?"),
    ("BRAIN_TIMEZONE", "+02:00", "a time zone is UTC or a name such as Europe/Berlin"),
    ("BRAIN_TIMEZONE", "../../etc/passwd", "a time zone is UTC or a name such as Europe/Berlin"),
    ("BRAIN_TIMEZONE", "localtime", "a time zone is UTC or a name such as Europe/Berlin"),
    ("BRAIN_PUSH_UNCHANGED", "maybe", "it is true or false"),
    ("BRAIN_FLUSH_INTERVAL", "10.1", "a flush interval is 0 to 10 seconds"),
    ("BRAIN_FLUSH_INTERVAL", "nan", "a flush interval is 0 to 10 seconds"),
    ("BRAIN_ALLOWED_NETWORKS", "10.0.0.1/8", "did you mean 10.0.0.0/8?"),
    ("BRAIN_ALLOWED_NETWORKS", "127.0.0.0/8,lan", "'lan' is not a network, such as 192.168.0.0/16"),
    ("BRAIN_ALLOWED_NETWORKS", ",", "no client can connect"),
    ("BRAIN_ALLOWED_ORIGINS", "app.example", "is not an origin, such as"),
    ("BRAIN_ALLOWED_ORIGINS", "https://app.example/path", "is not an origin, such as"),
    ("BRAIN_ALLOWED_HOSTS", "https://app.example", "is not a host, such as"),
    ("BRAIN_TRUSTED_PROXIES", "nginx", "is not a network"),
    ("BRAIN_MAX_CONNECTIONS", "-1", "a limit is 1 or more, or 0 for no limit"),
    ("BRAIN_MAX_CONNECTIONS_PER_IP", "1.5", "a limit is 1 or more, or 0 for no limit"),
    ("BRAIN_JWT_JWKS", "ftp://idp.example/keys", "a key set is a file, or a URL of http or https"),
    ("BRAIN_JWT_JWKS", "https://user:secret@idp.example/keys", "without a password"),
    (
        "BRAIN_JWT_AUDIENCE",
        "brain",
        "no token is required: set BRAIN_JWT_SECRET or BRAIN_JWT_JWKS too",
    ),
    ("BRAIN_JWT_ISSUER", "https://idp.example", "no token is required"),
    ("BRAIN_URL", "ftp://myhost", "Brain is at host:port, such as myhost:5221, or at a URL of ws"),
    ("BRAIN_MAX_TEXT", "0", "a text has 64 to 1048576 characters"),
    ("BRAIN_BOARD_MEMORY", "128MB", "the board memory is 1048576 bytes or more"),
    ("BRAIN_PING_INTERVAL", "0", "a ping interval is 1 to 3600 seconds"),
    ("BRAIN_PING_TIMEOUT", "4", "a ping timeout is 5 to 7200 seconds"),
    ("BRAIN_POLL_INTERVAL", "0", "a poll interval is 0.01 to 60 seconds"),
    *(
        ("BRAIN_WORKERS", text, "it is 1 to 64 workers, or auto: one for each core")
        for text in ("0", "65", "-1", "many", "1.5", "²")
    ),
    ("BRAIN_RESUME", "-1", "it is 0 to 604800 seconds (a week)"),
    ("BRAIN_RESUME", "604801", "it is 0 to 604800 seconds (a week)"),
    ("BRAIN_RESUME", "nan", "it is 0 to 604800 seconds (a week)"),
    ("BRAIN_NATS_CREDENTIALS", "/x", "this Brain shares no log: set BRAIN_NATS_URL too"),
    ("BRAIN_NATS_CA", "/x", "this Brain shares no log: set BRAIN_NATS_URL too"),
    ("BRAIN_NATS_STREAM", "a.b", "the name of a stream is 1 to 64 letters, digits, - and _"),
    ("BRAIN_NATS_REPLICAS", "6", "a stream has 1 to 5 replicas"),
    ("BRAIN_NATS_STORAGE", "disk", "a storage is file or memory"),
    ("BRAIN_NATS_TAKEOVER", "0.5", "it is 1 to 60 seconds"),
    ("BRAIN_LOG_LEVEL", "loud", "a level is debug, info, warning or error"),
]


@pytest.mark.parametrize(("variable", "text", "rule"), REFUSED)
def test_an_error_names_the_variable_the_value_and_the_rule(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, rule: str
) -> None:
    message = refused(monkeypatch, **{variable: text})
    assert message.startswith(f"{variable}={text!r}: ")
    assert rule in message
    assert "\n" not in message


def test_the_table_has_the_columns_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, BRAIN_COLUMN_MAP="id=run_id", BRAIN_TABLE="jobs")
    assert settings.table == Table("public", "jobs", settings.column_map)
    assert str(settings.column_map) == "id=run_id"


def test_every_setting_has_a_rule() -> None:
    tried = {variable for variable, _, _ in REFUSED}
    assert tried == set(config.variables()) - {
        "BRAIN_DATA_DIR",  # any text is a path
        "BRAIN_DATABASE_URL",
        "BRAIN_JWT_SECRET",
        "BRAIN_NATS_URL",
        "BRAIN_TOKEN",
    }


@pytest.mark.parametrize(
    "text", ["http://h:1", "nats://", "nats://u:secret@h:x", "nats://h/secret"]
)
def test_an_error_about_nats_never_has_its_password(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    message = refused(monkeypatch, BRAIN_NATS_URL=text)
    assert message.startswith("BRAIN_NATS_URL: a NATS server is nats://host:4222")
    assert "secret" not in message


def test_several_servers_of_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, BRAIN_NATS_URL="nats://u:p@one:4222, tls://two,three:4222")
    assert [each.get_secret_value() for each in settings.nats_url] == [
        "nats://u:p@one:4222",
        "tls://two",
        "nats://three:4222",
    ]


def test_an_error_has_a_line_for_each_faulty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, BRAIN_PORT="99999", BRAIN_SOURCE="x", BRAIN_MAX_TEXT="9" * 1000)
    assert [line.partition("=")[0] for line in message.splitlines()] == [
        "BRAIN_PORT",
        "BRAIN_SOURCE",
        "BRAIN_MAX_TEXT",
    ]
    assert message.splitlines()[0] == "BRAIN_PORT='99999': a port is 0 to 65535"
    assert len(message.splitlines()[2]) < 300


def test_the_ping_timeout_is_longer_than_the_interval_even_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = refused(monkeypatch, BRAIN_PING_INTERVAL="100")
    assert message.startswith(
        "BRAIN_PING_TIMEOUT=75: it must be longer than BRAIN_PING_INTERVAL, 100 seconds"
    )
    assert (
        load(monkeypatch, BRAIN_PING_INTERVAL="100", BRAIN_PING_TIMEOUT="101").ping_timeout == 101
    )


def test_keywords_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAIN_PORT", "1")
    monkeypatch.setenv("BRAIN_DATABASE_URL", "postgresql://env/x")
    settings = Settings.load(port=2, database_url="postgresql://option/x", source=None)
    assert settings.port == 2
    assert settings.source == "auto"
    assert settings.database_url == SecretStr("postgresql://option/x")
    with pytest.raises(SettingsError, match=r"^BRAIN_PORT=70000: a port is 0 to 65535$"):
        Settings.load(port=70000)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings.load().port = 1


def test_a_dotenv_file_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BRAIN_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert Settings.load().port == 5221


def test_a_locale_without_utf8_does_not_change_the_environment() -> None:
    """With LC_ALL=POSIX and PYTHONUTF8=0, Python decodes the environment as ASCII."""
    code = "from brain.config import Settings; print(ascii(str(Settings.load().table)))"
    posix = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=posix | {"BRAIN_TABLE": "läufe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "l\\xe4ufe" in done.stdout


# The database URL


def url(settings: Settings) -> str | None:
    return None if settings.database_url is None else settings.database_url.get_secret_value()


def test_brains_own_variable_overrides_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert url(load(monkeypatch, DATABASE_URL="postgres://one/x")) == "postgresql://one/x"
    assert (
        url(load(monkeypatch, BRAIN_DATABASE_URL="postgresql+asyncpg://two/x\n"))
        == "postgresql://two/x"
    )
    assert url(load(monkeypatch, BRAIN_DATABASE_URL="")) == "postgresql://one/x"


def test_the_schema_of_the_url_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Prisma. BRAIN_TABLE overrides it, and so does a URL that overrides the other."""
    prisma = "postgresql://one/x?schema=app&pgbouncer=true"
    assert load(monkeypatch, DATABASE_URL=prisma).table == Table("app", "runs")
    assert Settings.load(database_url="postgresql://x?schema=k").table == Table("k", "runs")
    assert load(monkeypatch, BRAIN_TABLE="jobs").table == Table("public", "jobs")
    monkeypatch.delenv("BRAIN_TABLE")
    assert load(monkeypatch, BRAIN_DATABASE_URL="postgresql://two/x").table.schema == "public"


BROKEN_URLS = [
    f"mysql://u:{PASSWORD}@h/d",
    f"postgresql://u:p%zz{PASSWORD}@h/d",
    f"postgresql://u:a {PASSWORD}@h/d",
    f"postgresql://u:{PASSWORD}@[::1/d",
    f"host=h password=a {PASSWORD}",
    PASSWORD,
    " ",
]


@pytest.mark.parametrize("broken", BROKEN_URLS)
@pytest.mark.parametrize("variable", ["BRAIN_DATABASE_URL", "DATABASE_URL"])
def test_an_invalid_url_is_refused_and_never_printed(
    monkeypatch: pytest.MonkeyPatch, variable: str, broken: str
) -> None:
    monkeypatch.setenv(variable, broken)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    message = str(caught.value)
    assert message.startswith(f"{variable}: the database URL ")
    assert "postgresql://" in message
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_jwt_secret_is_long_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(monkeypatch, BRAIN_JWT_SECRET="hunter2")
    assert message == (
        "BRAIN_JWT_SECRET: a secret has 32 bytes or more (RFC 7518, 3.2): "
        "openssl rand -base64 32 makes one"
    )
    settings = load(monkeypatch, BRAIN_JWT_SECRET="hunter2" * 5, BRAIN_JWT_AUDIENCE="brain")
    assert (
        "hunter2"
        not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    )
    both = refused(monkeypatch, BRAIN_JWT_JWKS="keys.json")
    assert "set one of them" in both
    assert "hunter2" not in both


@pytest.mark.parametrize("broken", ["two hunter2", "hunter2\r\nHost: there", "hunter2é"])
def test_a_token_is_one_word_and_never_printed(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    assert refused(monkeypatch, BRAIN_TOKEN=broken) == "BRAIN_TOKEN: a token is one word of ASCII"
    settings = load(monkeypatch, BRAIN_TOKEN="hunter2\n")
    assert settings.token is not None
    assert settings.token.get_secret_value() == "hunter2"
    assert (
        "hunter2"
        not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    )


def test_a_url_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, DATABASE_URL=f"postgresql://u:{PASSWORD}@h/d")
    assert PASSWORD in (url(settings) or "")
    assert (
        PASSWORD
        not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    )
    assert PASSWORD not in refused(monkeypatch, BRAIN_PORT="x")


# Unknown variables


def test_an_unknown_variable_is_named_with_the_most_similar_setting() -> None:
    environ = [
        "BRAIN_PROT",
        "brain_allowed_origin",
        "BRAIN_ZZZ",
        "BRAIN_PORT",
        "brain_table",
        "BRAINS",
        "PATH",
    ]
    assert unknown(environ, config.variables()) == {
        "BRAIN_PROT": "BRAIN_PORT",
        "BRAIN_ZZZ": None,
        "brain_allowed_origin": "BRAIN_ALLOWED_ORIGINS",
    }


def test_an_unknown_variable_is_logged_without_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with capture_logs() as logs:
        load(monkeypatch, BRAIN_DATABASE_ULR=PASSWORD)
    assert logs == [
        {
            "event": "unknown setting ignored",
            "log_level": "warning",
            "variable": "BRAIN_DATABASE_ULR",
            "nearest": "BRAIN_DATABASE_URL",
        }
    ]


# Other modules and the docs


def test_the_policy_accepts_what_the_settings_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        BRAIN_ALLOWED_ORIGINS="https://A.example/,NULL,file://,*",
        BRAIN_ALLOWED_HOSTS="B.example:1,*",
    )
    Policy(origins=settings.allowed_origins, hosts=settings.allowed_hosts)


def test_the_status_map_reaches_every_status(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch, BRAIN_STATUS_MAP=",".join(f"x{status}={status}" for status in STATUSES)
    )
    assert settings.status_map == {f"x{status}": status for status in STATUSES}


def test_the_docs_table_equals_the_code() -> None:
    command = [sys.executable, "-m", "brain.config"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.count("\n") == 2 + len(Settings.model_fields)
    page = "".join(
        line for line in PAGE.read_text().splitlines(keepends=True) if line.startswith("|")
    )
    assert page == printed, (
        "paste the output of python -m brain.config into docs/reference/settings.md"
    )


def test_every_field_has_a_sentence_and_a_unit() -> None:
    for field in config.variables().values():
        assert (field.description or "").endswith(".")
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["unit"]
