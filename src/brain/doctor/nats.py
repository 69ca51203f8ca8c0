"""Whether NATS can be the log of several nodes: version, permissions, capacity, settings.

It tries what a node does, and changes nothing: it asks for the stream, reads it by a consumer that
it deletes at once, and appends behind a message that cannot be the last.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from brain.contract.errors import BrainError
from brain.doctor.report import CheckCode, Finding, Level
from brain.nodes.connection import Access, Connection, NATSError, Refused, Unanswered
from brain.nodes.log import (
    BREAKING,
    CHOSEN,
    LOSING,
    MAX_BYTES,
    NOT_FOUND,
    Log,
    Superseded,
)
from brain.nodes.roster import ask
from brain.nodes.timing import NODE_TIMING, NodeTiming
from brain.postgres.unavailable import UnavailableCode

OLDEST: Final = (2, 10)

PAYLOAD: Final = NODE_TIMING.piece + 4096
"""Bytes of the largest message, with its headers."""

OPEN_DEADLINE: Final = 3.0
"""Seconds to wait for a connection."""

ROSTER: Final = 0.5
"""Seconds in which nodes answer that they are there."""

LEADERLESS: Final = 2 * NODE_TIMING.silence
"""Seconds of silence of the log after which a leader should have come."""

NEVER: Final = 2**62
"""A seq that no message has."""

_ALONE = "nodes neither lead nor follow, and clients receive no changes"
_HINT = "docs/reference/nodes.md lists the permissions that a node needs"


@dataclass(frozen=True, slots=True)
class Nodes:
    """What the settings say of the log."""

    access: Access
    stream: str
    replicas: int
    storage: Any
    timing: NodeTiming = NODE_TIMING


async def nats(nodes: Nodes) -> list[Finding]:
    try:
        async with Connection(nodes.access, "brain doctor", nodes.timing) as connection:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_DEADLINE):
                    while not connection.is_open:
                        await asyncio.sleep(0.05)
            if not connection.is_open:
                what = f"NATS does not accept a connection: {connection.detail}"
                return [_broken("nats", what, "correct BRAIN_NATS_URL, or start that NATS server")]
            return await _examine(nodes, connection)
    except BrainError as error:
        return [_broken("nats", str(error), "name a file that this user can read")]


async def _examine(nodes: Nodes, connection: Connection) -> list[Finding]:
    client = connection.client
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        what = f"the NATS server is {version.major}.{version.minor}"
        return [_broken("nats_version", what, "upgrade nats-server to 2.10 or newer")]
    if client.max_payload < PAYLOAD:
        what = f"NATS accepts messages of {client.max_payload} bytes, and a node writes {PAYLOAD}"
        return [_broken("nats_limits", what, f"set max_payload to {PAYLOAD} or more in nats.conf")]
    log = Log(
        connection,
        nodes.stream,
        replicas=nodes.replicas,
        storage=nodes.storage,
        timing=nodes.timing,
    )
    try:
        info: Mapping[str, Any] | None = await connection.ask(f"STREAM.INFO.{nodes.stream}")
    except Refused as error:
        if error.code != NOT_FOUND:
            return [_broken("nats_jetstream", f"JetStream refuses: {error}", _HINT)]
        info = None
    except Unanswered as error:
        if _forbidden(connection):
            return [_broken("nats_permission", connection.detail, _HINT)]
        what = f"JetStream does not answer ({error})"
        return [_broken("nats_jetstream", what, "enable it: `jetstream {}` in nats.conf")]
    findings = [*await _capacity(connection, nodes, info), *_settings(log, info)]
    if info is not None and not any(each.level == "broken" for each in findings):
        findings += await _permissions(log, info["state"]["last_seq"])
        findings += await _leader(log)
    return findings


async def _capacity(
    connection: Connection, nodes: Nodes, info: Mapping[str, Any] | None
) -> list[Finding]:
    """Whether the stream can be made, if there is none yet."""
    if info is not None:
        return []
    try:
        account = await connection.ask("INFO")
    except NATSError:  # a node has no need to ask this, so it may be forbidden
        return []
    tiers: Mapping[str, Any] = account.get("tiers") or {}
    account = tiers.get(f"R{nodes.replicas}", account)
    kind = "storage" if nodes.storage == "file" else "memory"
    limits: Mapping[str, Any] = account.get("limits", {})
    most, used = limits.get(f"max_{kind}", -1), account.get(f"reserved_{kind}", 0)
    if most >= 0 and most - used < MAX_BYTES * nodes.replicas:
        what = f"NATS has {max(0, most - used)} bytes of {kind} left, and a log needs {MAX_BYTES}"
        return [_broken("nats_limits", what, f"raise the limit of {kind} of JetStream's account")]
    streams = limits.get("max_streams", -1)
    if 0 <= streams <= account.get("streams", 0):
        what = f"the account has its {streams} streams already"
        return [_broken("nats_limits", what, "raise max_streams of JetStream's account")]
    return []


def _settings(log: Log, info: Mapping[str, Any] | None) -> list[Finding]:
    """How the stream differs from the one that a node would make."""
    if info is None:
        return []
    findings = []
    levels: tuple[tuple[Level, str, Sequence[str]], ...] = (
        ("broken", "no node can lead, and clients receive no changes", BREAKING),
        ("better", "the log loses what nodes still need, and they load their boards again", LOSING),
        ("note", "what the stream has counts; the setting does not", CHOSEN),
    )
    for level, effect, names in levels:
        if differs := log.differing(info["config"], names):
            what = f"the stream {log.name} has other settings: {', '.join(differs)}"
            hint = f"stop all nodes, run `nats stream rm {log.name}`, and start them"
            findings.append(Finding("nats_stream", level, what, effect, hint))
    return findings


async def _leader(log: Log) -> list[Finding]:
    """Whether the nodes that there are have a leader, whatever its obstacle is."""
    nodes = await ask(log.connection, log.name, ROSTER)
    idle = (await log.facts()).idle
    if not nodes or idle < LEADERLESS or any(each["role"] == "leader" for each in nodes):
        return []
    what = f"of {len(nodes)} nodes that share the stream {log.name}, none leads"
    hint = "look at `detail` of /readyz of a node, and at the log of nats-server: is its disk full?"
    return [_broken("nats_stream", what, hint)]


async def _permissions(log: Log, last: int) -> list[Finding]:
    """Try what a node does with the stream that exists."""
    connection = log.connection
    tried = "read the log"
    try:
        async with log.read("log", last):
            pass
        tried = "look for the last board"
        await log.last("end")
        for subject in ("log", "ckpt", "end"):
            tried = f"write to {log.subject(subject)}"
            with contextlib.suppress(Superseded):
                await log.append(subject, b"", NEVER)
    except NATSError as error:
        detail = connection.detail if _forbidden(connection) else str(error)
        return [_broken("nats_permission", f"a node cannot {tried}: {detail}", _HINT)]
    return []


def _forbidden(connection: Connection) -> bool:
    return "permissions violation" in connection.detail.lower()


def _broken(check: CheckCode | UnavailableCode, what: str, hint: str) -> Finding:
    return Finding(check, "broken", what, _ALONE, hint)
