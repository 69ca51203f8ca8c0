"""`brain nodes`: the Brains that share a log, and what each says of itself."""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from brain.cli.console import database_url, fail
from brain.config import Settings
from brain.shared_log import shared_log

SECONDS: Final = 1.0
"""How long nodes have to answer."""

_COLUMNS: Final = (
    "NODE",
    "ROLE",
    "READY",
    "EPOCH",
    "POSITION",
    "LAG",
    "CLIENTS",
    "PORT",
    "VERSION",
)


async def print_nodes(settings: Settings, *, as_json: bool) -> None:
    """Exits with 2 if there is no log, or NATS cannot be asked; with 1 if no node leads."""
    if not settings.nats_url:
        fail(
            "BRAIN_NATS_URL is not set: this Brain shares no log with others. "
            "Set it as for `brain serve`"
        )
    # The client of NATS is an extra.
    from brain.nodes.connection import Connection, NATSError  # noqa: PLC0415
    from brain.nodes.roster import ask  # noqa: PLC0415
    from brain.nodes.timing import NODE_TIMING  # noqa: PLC0415

    access, stream = shared_log(settings, database_url(settings))
    try:
        async with Connection(access, "brain nodes", NODE_TIMING) as connection:
            for _ in range(50):
                if connection.is_open:
                    break
                await asyncio.sleep(0.1)
            nodes = await ask(connection, stream, SECONDS)
    except NATSError as error:
        fail(error)
    print(as_list(nodes) if as_json else table(nodes, stream))
    if not any(node["role"] == "leader" for node in nodes):
        raise SystemExit(1)


def as_list(nodes: Sequence[dict[str, Any]]) -> str:
    """JSON, which has no infinity."""
    return json.dumps(
        [{**node, "lag": node["lag"] if math.isfinite(node["lag"]) else None} for node in nodes]
    )


def table(nodes: Sequence[dict[str, Any]], stream: str) -> str:
    if not nodes:
        return f"no node answers for the stream {stream}"
    rows = [
        _COLUMNS,
        *(
            (
                node["name"],
                node["role"],
                "yes" if node["ready"] else "no",
                str(node["epoch"]),
                str(node["position"]),
                f"{node['lag']:.1f}",
                str(node["clients"]),
                str(node["port"]),
                node["version"],
            )
            for node in nodes
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    leaders = sum(node["role"] == "leader" for node in nodes)
    return "\n".join([*lines, "", f"stream {stream}", *([] if leaders else ["no node leads"])])
