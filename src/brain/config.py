"""The settings: read once from the environment, and frozen.

`python -m brain.config` prints the table of settings.md. `.env` files are not read: the shell
or the service manager sets the environment, and a file in the working directory changes nothing.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import (
    AliasChoices,
    Field,
    InstanceOf,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from brain import environment, validators
from brain.access.addresses import NETWORKS, Network, parse_network
from brain.contract.errors import BrainError
from brain.contract.messages import Status
from brain.environment import PREFIX
from brain.postgres.column_map import ColumnMap
from brain.postgres.database_url import schema_of
from brain.postgres.table import Table
from brain.postgres.time_zone import DEFAULT, TimeZone
from brain.validators import from_list, from_text

log = structlog.get_logger()

DATABASE_VARIABLES = ("BRAIN_DATABASE_URL", "DATABASE_URL")
"""The first that is set counts."""
DEFAULT_TABLE = Table("public", "runs")


class SettingsError(BrainError):
    """Settings are invalid.

    The message has a line for each: the variable, its value unless it is a secret, and the rule.
    """


def _setting(default: Any, what: str, *, unit: str, rule: str = "", **bounds: Any) -> Any:
    """A field of Settings; `what` is its description in the docs. `rule` is the error for a value
    of another type or out of bounds.
    """
    return Field(
        default, description=what, json_schema_extra={"unit": unit, "rule": rule}, **bounds
    )


class Settings(BaseSettings):
    """`Settings.load()` reads the environment; its keywords, from the command line, override it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        validate_default=True,
        validate_by_name=True,
        hide_input_in_errors=True,
    )

    host: Annotated[tuple[str, ...], NoDecode, from_list(validators.interface)] = _setting(
        (),
        "Addresses to listen on. Unset: all interfaces, IPv4 and IPv6.",
        unit="list of addresses",
    )
    port: int = _setting(
        5221,
        "Port of the HTTP API and of /ws. 0: a free port.",
        unit="port",
        rule="a port is 0 to 65535",
        ge=0,
        le=65535,
    )
    workers: Annotated[int | Literal["auto"], from_text(validators.workers)] = _setting(
        1,
        "Processes that serve clients, on one port: a number, or `auto`, one for each core. "
        "docs/how-to/workers.md says what changes with more than one.",
        unit="processes",
        rule="it is 1 to 64 workers, or auto: one for each core",
    )
    database_url: Annotated[SecretStr | None, from_text(validators.database_url)] = _setting(
        None,
        "PostgreSQL database to follow. If unset, Brain reads `DATABASE_URL`. "
        "If both are unset: the embedded PostgreSQL.",
        unit="URL",
        validation_alias=AliasChoices(*DATABASE_VARIABLES),
    )
    embedded: bool = _setting(
        True,
        "Start the embedded PostgreSQL if no database is configured. `false`, for production: "
        "`brain serve` then refuses to start without one.",
        unit="true or false",
        rule="it is true or false",
    )
    data_dir: Annotated[Path, from_text(validators.path)] = _setting(
        Path(".brain"),
        "Where the embedded PostgreSQL keeps its data, and Brain the records that let clients "
        "resume over a restart.",
        unit="folder",
    )
    postgres_port: int | None = _setting(
        None,
        "Port of the embedded PostgreSQL. Unset: 5432, or a free port if 5432 is in use.",
        unit="port",
        rule="a port to listen on is 1 to 65535",
        ge=1,
        le=65535,
    )
    column_map: Annotated[ColumnMap, NoDecode, from_text(ColumnMap.parse)] = _setting(
        ColumnMap(),
        "Columns that have other names in the table, such as "
        '`id=run_id,completed_at=ended_at,started_at="startedAt"`.',
        unit="list of field=column",
    )
    table: Annotated[Table, NoDecode, from_text(Table.parse)] = _setting(
        DEFAULT_TABLE,
        'Table to follow: `public.runs`, or `"App"."Runs"` with quotes as in SQL. If unset, and '
        "the database URL has a parameter `schema` (as for Prisma): `runs` in that schema.",
        unit="schema.name",
    )
    source: Literal["auto", "replication", "poll"] = _setting(
        "auto",
        "How to follow the table: `replication`, `poll`, or `auto`: replication if the database "
        "permits it, otherwise polling.",
        unit="word",
        rule="a source is auto, replication or poll",
    )
    status_map: Annotated[Mapping[str, Status], NoDecode, from_text(validators.status_map)] = (
        _setting(
            {},
            "The table's own words for a status, such as `paused=queued,ok=completed`. They are "
            "added to the common words below, or override them. `strict`: only the contract's "
            "four words, and those beside it (`strict,ok=completed`).",
            unit="list of word=status",
        )
    )
    timezone: Annotated[
        InstanceOf[TimeZone], PlainSerializer(str), NoDecode, from_text(TimeZone.parse)
    ] = _setting(
        DEFAULT,
        "What a time without a zone means, in a column of type `timestamp` or `date`: `UTC`, or a "
        "name such as `Europe/Berlin`.",
        unit="time zone",
    )
    push_unchanged: bool = _setting(
        True,
        "Whether to push an UPDATE that changes no field of the message. `false` suits a table "
        "with a heartbeat column.",
        unit="true or false",
        rule="it is true or false",
    )
    flush_interval: float = _setting(
        0.025,
        "The longest time for which changes are collected and then sent together. The less the "
        "last flushes cost, the sooner the next goes. 0: each change is sent at once.",
        unit="seconds",
        rule="a flush interval is 0 to 10 seconds",
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    allowed_networks: Annotated[tuple[Network, ...], NoDecode, from_list(parse_network)] = _setting(
        NETWORKS,
        "Networks from which clients may connect. Default: loopback, private and link-local "
        "networks.",
        unit="list of networks",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode, from_list(validators.origin)] = _setting(
        (),
        "Origins of web pages that may connect, besides this server, localhost and addresses in "
        "the allowed networks: `https://app.example`, `app://name`, `null`, or `*` for all.",
        unit="list of origins",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, from_list(validators.host)] = _setting(
        (),
        "Names of this server, besides localhost, its host name and its addresses: "
        "`brain.example`, or `*` for all, which disables the protection from DNS rebinding.",
        unit="list of hosts",
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, from_list(parse_network)] = _setting(
        (), "Proxies whose X-Forwarded-For header is trusted.", unit="list of networks"
    )
    max_connections: int = _setting(
        10_000,
        "Maximum number of WebSocket connections. 0: no limit.",
        unit="connections",
        rule="a limit is 1 or more, or 0 for no limit",
        ge=0,
    )
    max_connections_per_ip: int = _setting(
        100,
        "Maximum number of connections from one IP address. 0: no limit.",
        unit="connections",
        rule="a limit is 1 or more, or 0 for no limit",
        ge=0,
    )
    jwt_secret: Annotated[SecretStr | None, from_text(validators.jwt_secret)] = _setting(
        None,
        "Require a JWT that is signed with this secret (HS256). If this and `BRAIN_JWT_JWKS` are "
        "unset, no token is required.",
        unit="secret",
    )
    jwt_jwks: Annotated[str | None, from_text(validators.key_set)] = _setting(
        None,
        "Require a JWT that is signed with a key of this key set (RFC 7517): a file, or a URL.",
        unit="file or URL",
    )
    jwt_audience: str | None = _setting(
        None, "Required audience of a token (claim `aud`). Unset: any.", unit="text"
    )
    jwt_issuer: str | None = _setting(
        None, "Required issuer of a token (claim `iss`). Unset: any.", unit="text"
    )
    url: Annotated[str | None, from_text(validators.brain_url)] = _setting(
        None,
        "Where `brain watch` and `brain wait` find Brain. Unset: on this machine, at `BRAIN_PORT`.",
        unit="URL or host:port",
    )
    token: Annotated[SecretStr | None, from_text(validators.token)] = _setting(
        None,
        "Token that `brain watch` and `brain wait` send to a Brain that requires tokens.",
        unit="secret",
    )
    max_text: int = _setting(
        8192,
        "Maximum length of an error, agent or task_id in a message. A longer text is cut and "
        "marked as cut.",
        unit="characters",
        rule="a text has 64 to 1048576 characters",
        ge=64,
        le=1_048_576,
    )
    board_memory: int = _setting(
        128 * 1024 * 1024,
        "Memory for finished runs, so that clients can catch up after an outage.",
        unit="bytes",
        rule="the board memory is 1048576 bytes or more",
        ge=1_048_576,
    )
    resume: float = _setting(
        3600,
        "How far `since` reaches back over a restart of Brain, at least. 0: after a restart every "
        "client starts over.",
        unit="seconds",
        rule="it is 0 to 604800 seconds (a week)",
        ge=0,
        le=604_800,
        allow_inf_nan=False,
    )
    nats_url: Annotated[tuple[SecretStr, ...], NoDecode, from_list(validators.nats_url)] = _setting(
        (),
        "NATS servers (2.10 or newer, with JetStream) by which several Brains share one log: "
        "`nats://user:password@host:4222`, `tls://…`, or with a token, `nats://token@host`. "
        "Unset: this Brain follows the database itself.",
        unit="list of URLs",
    )
    nats_credentials: Annotated[Path | None, from_text(validators.path)] = _setting(
        None, "File with the JWT and the key of a NATS user, as `nsc` writes it.", unit="file"
    )
    nats_ca: Annotated[Path | None, from_text(validators.path)] = _setting(
        None,
        "File with the certificates that sign NATS's own, if the system does not know them.",
        unit="file",
    )
    nats_stream: Annotated[str | None, from_text(validators.nats_stream)] = _setting(
        None,
        "Name of the log. Unset: made from the database URL's host, port and name and from the "
        "table. Set it where nodes name the host of one database differently.",
        unit="text",
    )
    nats_replicas: int = _setting(
        1,
        "On how many NATS servers of a cluster the log is kept. It counts when the log is made.",
        unit="servers",
        rule="a stream has 1 to 5 replicas",
        ge=1,
        le=5,
    )
    nats_storage: Literal["file", "memory"] = _setting(
        "file",
        "Where NATS keeps the log: `file`, or `memory`, which a restart of NATS empties. It counts "
        "when the log is made.",
        unit="word",
        rule="a storage is file or memory",
    )
    nats_takeover: float = _setting(
        3,
        "A node that has heard nothing from the leader for this time takes its place.",
        unit="seconds",
        rule="it is 1 to 60 seconds",
        ge=1,
        le=60,
        allow_inf_nan=False,
    )
    ping_interval: float = _setting(
        30,
        "Seconds between two pings to a client.",
        unit="seconds",
        rule="a ping interval is 1 to 3600 seconds",
        ge=1,
        le=3600,
        allow_inf_nan=False,
    )
    ping_timeout: float = _setting(
        75,
        "A client that sends nothing and takes nothing for this time is disconnected. Longer than "
        "the ping interval.",
        unit="seconds",
        rule="a ping timeout is 5 to 7200 seconds",
        ge=5,
        le=7200,
        allow_inf_nan=False,
    )
    poll_interval: float = _setting(
        0.1,
        "Seconds between two polls while the database cannot be streamed. Brain polls less often "
        "when a poll is slow.",
        unit="seconds",
        rule="a poll interval is 0.01 to 60 seconds",
        ge=0.01,
        le=60,
        allow_inf_nan=False,
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], from_text(str.lower)] = (
        _setting(
            "info",
            "Lowest level that is logged: `debug`, `info`, `warning` or `error`.",
            unit="word",
            rule="a level is debug, info, warning or error",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _table_in_the_schema_of_the_url(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A URL for Prisma says in which schema the tables are: `?schema=app`."""
        if given.get("table") is None:
            named = (given.get(name) for name in ("database_url", *DATABASE_VARIABLES))
            url = next((each for each in named if each), None)
            if isinstance(url, str) and (schema := schema_of(url)):
                given["table"] = Table(schema, DEFAULT_TABLE.name)
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _is_utf_8(cls, value: object) -> object:
        if isinstance(value, str) and not value.isascii():
            try:
                # In a locale such as POSIX, Python decodes the environment as ASCII.
                return os.fsencode(value).decode()
            except UnicodeError:
                # Undecodable bytes of the environment: the first SQL statement would fail.
                raise ValueError("it is not text in UTF-8") from None
        return value

    @field_validator("table")
    @classmethod
    def _with_its_columns(cls, value: Table, info: ValidationInfo) -> Table:
        return replace(value, columns=info.data.get("column_map", value.columns))

    @field_validator("allowed_networks")
    @classmethod
    def _at_least_one_network(cls, value: tuple[Network, ...]) -> tuple[Network, ...]:
        if not value:
            raise ValueError("without a network, no client can connect")
        return value

    @field_validator("jwt_jwks")
    @classmethod
    def _one_kind_of_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("jwt_secret") is not None:
            raise ValueError(
                "BRAIN_JWT_SECRET and BRAIN_JWT_JWKS exclude each other: set one of them"
            )
        return value

    @field_validator("jwt_audience", "jwt_issuer")
    @classmethod
    def _needs_a_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (info.data.get("jwt_secret") or info.data.get("jwt_jwks")):
            raise ValueError("no token is required: set BRAIN_JWT_SECRET or BRAIN_JWT_JWKS too")
        return value

    @field_validator("nats_credentials", "nats_ca", "nats_stream")
    @classmethod
    def _needs_nats(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and not info.data.get("nats_url"):
            raise ValueError("this Brain shares no log: set BRAIN_NATS_URL too")
        return value

    @field_validator("ping_timeout")
    @classmethod
    def _longer_than_the_interval(cls, value: float, info: ValidationInfo) -> float:
        interval = info.data.get("ping_interval", 0)
        if value <= interval:
            raise ValueError(
                f"it must be longer than BRAIN_PING_INTERVAL, {interval:g} seconds: "
                "a client answers once per interval"
            )
        return value

    @classmethod
    def load(cls, **given: Any) -> Self:
        """A keyword that is None does not count. Logs variables that resemble settings.

        Raises SettingsError.
        """
        for variable, nearest in environment.unknown(os.environ, variables()).items():
            log.warning("unknown setting ignored", variable=variable, nearest=nearest)
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            errors = error.errors()
        # Outside of `except`, so that no traceback contains the rejected values.
        raise SettingsError("\n".join(environment.describe(each, variables()) for each in errors))


def variables() -> dict[str, FieldInfo]:
    """The fields of Settings by the name of their variable."""
    return {PREFIX + name.upper(): field for name, field in Settings.model_fields.items()}


if __name__ == "__main__":
    sys.stdout.write(environment.table(variables()))
