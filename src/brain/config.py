"""The settings: read once from the environment, frozen.

`python -m brain.config` prints the table of docs/settings.md. `.env` files are not read: whoever starts Brain sets its
environment, and a file that happens to lie in the folder changes nothing.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import structlog
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from brain.access.addresses import NETWORKS, Authority, Network, Origin, parse_network
from brain.access.jwks import SHORTEST_SECRET
from brain.contract.errors import BrainError
from brain.contract.messages import STATUSES, Status
from brain.postgres.connection import parse_url
from brain.postgres.table import Table

log = structlog.get_logger()

T = TypeVar("T")
PREFIX = "BRAIN_"
UNSAID = ("BRAIN_DATABASE_URL", "BRAIN_JWT_SECRET", "BRAIN_TOKEN")
"""Their values are never said."""


class SettingsError(BrainError):
    """Settings that cannot be. The text has a line for each: the variable, its value if that is no secret, and the rule."""


def _setting(default: object, what: str, *, unit: str, rule: str = "", **bounds: Any) -> Any:
    """A field of Settings. `rule` is what is said to a value that breaks a bound or is of another type."""
    return Field(
        default, description=what, json_schema_extra={"unit": unit, "rule": rule}, **bounds
    )


def _from_text(parse: Callable[[str], T]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _each(parse: Callable[[str], T]) -> BeforeValidator:
    return _from_text(
        lambda text: tuple(parse(item.strip()) for item in text.split(",") if item.strip())
    )


def _interface(text: str) -> str:
    literal = text.strip("[]")
    try:
        Authority.parse(f"[{literal}]" if ":" in literal else literal)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address to listen on, such as 127.0.0.1 or ::1, without a port"
        ) from None
    return literal


def _host(text: str) -> str:
    if text != "*":
        Authority.parse(text)
    return text


def _origin(text: str) -> str:
    text = text.lower()
    text = text if text == "file://" else text.removesuffix("/")
    if text not in ("*", "null", "file://"):
        Origin.parse(text)
    return text


def _database_url(text: str) -> SecretStr:
    try:
        # A secret that comes out of a file often ends in a newline.
        return SecretStr(parse_url(text.strip() or "blank"))
    except ValueError:
        # Whatever a parser says about a URL may quote its password.
        raise ValueError(
            "a database URL is postgresql://user:password@host:5432/database, with %40 for an @ and %25 for a % in the password"
        ) from None


def _jwt_secret(text: str) -> SecretStr:
    text = text.strip()
    if len(text.encode()) < SHORTEST_SECRET:
        raise ValueError(
            f"a secret has {SHORTEST_SECRET} bytes or more (RFC 7518, 3.2): openssl rand -base64 32 makes one"
        )
    return SecretStr(text)


def _token(text: str) -> SecretStr:
    text = text.strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token is one word of ASCII")
    return SecretStr(text)


def _jwks(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    if colon and (scheme not in ("http", "https") or not rest or "@" in rest.partition("/")[0]):
        raise ValueError("a key set is a file, or a URL of http or https without a password")
    return text


def _status_map(text: str) -> dict[str, Status]:
    statuses: dict[str, Status] = {status: status for status in STATUSES}
    found: dict[str, Status] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        word, equals, status = (part.strip() for part in pair.partition("="))
        if not word or not equals or status not in statuses:
            raise ValueError(f"{pair!r} is not word=status with a status of {', '.join(STATUSES)}")
        if found.setdefault(word, statuses[status]) != status:
            raise ValueError(f"{word!r} cannot mean both {found[word]} and {status}")
    return found


class Settings(BaseSettings):
    """Settings.load() reads the environment; a keyword, such as an option of the command line, goes before it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        validate_default=True,
        validate_by_name=True,
        hide_input_in_errors=True,
    )

    host: Annotated[tuple[str, ...], NoDecode, _each(_interface)] = _setting(
        (),
        "The addresses to listen on. Unset: all interfaces, by IPv4 and IPv6.",
        unit="list of addresses",
    )
    port: int = _setting(
        5221,
        "The one port of the HTTP API and of /ws. 0: a free one.",
        unit="port",
        rule="a port is 0 to 65535",
        ge=0,
        le=65535,
    )
    database_url: Annotated[SecretStr | None, _from_text(_database_url)] = _setting(
        None,
        "The PostgreSQL to follow; `DATABASE_URL` counts where this is unset. Unset: the embedded one.",
        unit="URL",
        validation_alias=AliasChoices("BRAIN_DATABASE_URL", "DATABASE_URL"),
    )
    data_dir: Annotated[Path, _from_text(lambda text: Path(text).expanduser())] = _setting(
        Path(".brain"), "Where the embedded PostgreSQL keeps its data.", unit="folder"
    )
    postgres_port: int | None = _setting(
        None,
        "The port of the embedded PostgreSQL. Unset: 5432, or a free one if that is taken.",
        unit="port",
        rule="a port to listen on is 1 to 65535",
        ge=1,
        le=65535,
    )
    table: Annotated[Table, NoDecode, _from_text(Table.parse)] = _setting(
        Table("public", "runs"), "The table to follow.", unit="schema.name"
    )
    source: Literal["auto", "replication", "poll"] = _setting(
        "auto",
        "How to follow it: `replication`, `poll`, or `auto`, which is replication where the database permits it.",
        unit="word",
        rule="a source is auto, replication or poll",
    )
    status_map: Annotated[Mapping[str, Status], NoDecode, _from_text(_status_map)] = _setting(
        {},
        "The table's own words for a status, such as `pending=queued,done=completed`.",
        unit="list of word=status",
    )
    push_unchanged: bool = _setting(
        True,
        "Whether an UPDATE that changes nothing visible is pushed. `false` suits a table with a heartbeat column.",
        unit="true or false",
        rule="it is true or false",
    )
    flush_interval: float = _setting(
        0.025,
        "Changes within it leave together. 0: each at once.",
        unit="seconds",
        rule="an interval is a number of seconds, 0 to 10",
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    allowed_networks: Annotated[tuple[Network, ...], NoDecode, _each(parse_network)] = _setting(
        NETWORKS,
        "The networks from which clients may connect: loopback, private and link-local ones.",
        unit="list of networks",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode, _each(_origin)] = _setting(
        (),
        "Web pages that may connect beside those of this server, of localhost and of addresses in the allowed networks: "
        "`https://app.example`, `null`, or `*` for all.",
        unit="list of origins",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, _each(_host)] = _setting(
        (),
        "Names of this server beside localhost, its host name and its addresses: `brain.example`, or `*` for all, "
        "which gives up the protection from DNS rebinding.",
        unit="list of hosts",
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, _each(parse_network)] = _setting(
        (), "The proxies whose X-Forwarded-For is believed.", unit="list of networks"
    )
    max_connections: int = _setting(
        10_000,
        "The most WebSockets in all. 0: no limit.",
        unit="connections",
        rule="a limit is 1 or more, or 0 for none",
        ge=0,
    )
    max_connections_per_ip: int = _setting(
        100,
        "The most connections of one address. 0: no limit.",
        unit="connections",
        rule="a limit is 1 or more, or 0 for none",
        ge=0,
    )
    jwt_secret: Annotated[SecretStr | None, _from_text(_jwt_secret)] = _setting(
        None,
        "Asks everybody for a JWT that is signed with it by HS256. Unset, as is the next: no tokens are asked for.",
        unit="secret",
    )
    jwt_jwks: Annotated[str | None, _from_text(_jwks)] = _setting(
        None,
        "Asks everybody for a JWT that is signed with one of these keys (RFC 7517): a file, or a URL.",
        unit="file or URL",
    )
    jwt_audience: str | None = _setting(
        None, "What the claim `aud` of a token has to hold. Unset: anything.", unit="text"
    )
    jwt_issuer: str | None = _setting(
        None, "What the claim `iss` of a token has to be. Unset: anything.", unit="text"
    )
    token: Annotated[SecretStr | None, _from_text(_token)] = _setting(
        None, "What `brain watch` shows to a Brain that asks for tokens.", unit="secret"
    )
    max_text: int = _setting(
        8192,
        "The longest error, agent or task_id that is sent; a longer one is cut, and marked as cut.",
        unit="characters",
        rule="a text has 64 to 1048576 characters",
        ge=64,
        le=1_048_576,
    )
    board_memory: int = _setting(
        128 * 1024 * 1024,
        "How much of finished runs is kept in memory, so that clients who were away can catch up.",
        unit="bytes",
        rule="the board takes a number of bytes, 1048576 or more",
        ge=1_048_576,
    )
    ping_interval: float = _setting(
        30,
        "How often a client is pinged.",
        unit="seconds",
        rule="an interval of pings is a number of seconds, 1 to 3600",
        ge=1,
        le=3600,
        allow_inf_nan=False,
    )
    ping_timeout: float = _setting(
        75,
        "A client of whom not a byte has come for so long is gone. More than the interval of pings.",
        unit="seconds",
        # The kernel's TCP_USER_TIMEOUT follows it, and ends clients that live but do not read for so long.
        rule="a timeout of pings is a number of seconds, 60 to 7200",
        ge=60,
        le=7200,
        allow_inf_nan=False,
    )
    poll_interval: float = _setting(
        0.1,
        "How often the database is asked where it cannot be streamed; less often while that is dear.",
        unit="seconds",
        rule="an interval of polls is a number of seconds, 0.01 to 60",
        ge=0.01,
        le=60,
        allow_inf_nan=False,
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _from_text(str.lower)] = (
        _setting(
            "info",
            "What is logged: `debug`, `info`, `warning` or `error`, and what weighs more.",
            unit="word",
            rule="a level is debug, info, warning or error",
        )
    )

    @field_validator("*", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                # Bytes of an environment, as Python carries them along; the first SQL statement would fail on them.
                raise ValueError("it is not text in UTF-8") from None
        return value

    @field_validator("allowed_networks")
    @classmethod
    def _somebody(cls, value: tuple[Network, ...]) -> tuple[Network, ...]:
        if not value:
            raise ValueError("without a network nobody could connect")
        return value

    @field_validator("jwt_jwks")
    @classmethod
    def _one_kind_of_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("jwt_secret") is not None:
            raise ValueError(
                "tokens are signed with BRAIN_JWT_SECRET or with a key set: leave one of them unset"
            )
        return value

    @field_validator("jwt_audience", "jwt_issuer")
    @classmethod
    def _of_tokens(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (info.data.get("jwt_secret") or info.data.get("jwt_jwks")):
            raise ValueError("no tokens are asked for: set BRAIN_JWT_SECRET or BRAIN_JWT_JWKS too")
        return value

    @field_validator("ping_timeout")
    @classmethod
    def _beyond_the_interval(cls, value: float, info: ValidationInfo) -> float:
        interval = info.data.get("ping_interval", 0)
        if value <= interval:
            raise ValueError(
                f"it is more than BRAIN_PING_INTERVAL, {interval:g} seconds, or clients that answer are cut off"
            )
        return value

    @classmethod
    def load(cls, **given: object) -> Self:
        """A keyword that is None counts as not given. Warns of variables that look like settings and are none.

        Raises SettingsError.
        """
        for variable, nearest in unknown(os.environ).items():
            log.warning("unknown setting is ignored", variable=variable, nearest=nearest)
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            faults = error.errors()
        # Out here, so that no traceback brings the rejected values along.
        raise SettingsError("\n".join(map(_said, faults)))


def variables() -> dict[str, FieldInfo]:
    """The variable of each field."""
    return {PREFIX + name.upper(): field for name, field in Settings.model_fields.items()}


def unknown(environ: Iterable[str]) -> dict[str, str | None]:
    """The names that begin as settings do and are none, each with the setting that it may have been meant to be."""
    known = {variable.removeprefix(PREFIX): variable for variable in variables()}
    found: dict[str, str | None] = {}
    for name in sorted(environ):
        if (
            name.upper().startswith(PREFIX)
            and (rest := name.upper().removeprefix(PREFIX)) not in known
        ):
            nearest = difflib.get_close_matches(rest, known, 1)
            found[name] = known[nearest[0]] if nearest else None
    return found


def _said(fault: ErrorDetails) -> str:
    variable = PREFIX + str(fault["loc"][0]).upper().removeprefix(PREFIX)
    extra = variables()[variable].json_schema_extra
    assert isinstance(extra, dict)
    rule = fault["ctx"]["error"] if fault["type"] == "value_error" else extra["rule"]
    if variable in ("BRAIN_JWT_SECRET", "BRAIN_TOKEN"):
        return f"{variable}: {rule}"
    if variable in UNSAID:
        own = os.environ.get(variable) or not os.environ.get("DATABASE_URL")
        return f"{variable if own else 'DATABASE_URL'}: {rule}"
    value = repr(fault["input"])
    return f"{variable}={value if len(value) <= 200 else value[:200] + '…'}: {rule}"


def table() -> str:
    """All settings, as a table in Markdown."""
    lines = ["| variable | default | unit | what |", "|---|---|---|---|"]
    for variable, field in variables().items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        default = _written(field.default)
        lines.append(
            f"| `{variable}` | {f'`{default}`' if default else ''} | {extra['unit']} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    """As it would be written in the environment; empty for what is unset."""
    match value:
        case None | () | {}:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


if __name__ == "__main__":
    sys.stdout.write(table())
