"""What a node says of the source."""

from typing import Any

from structlog.testing import capture_logs

from brain.nodes.state import NodeState
from brain.nodes.timing import NODE_TIMING
from brain.postgres.source_state import SourceState

STREAMS: dict[str, Any] = {
    "source": "replication",
    "code": None,
    "detail": "",
    "hint": "",
    "age": 0.0,
    "lag": 0.0,
}


async def test_the_end_of_what_was_wrong_with_the_log_is_said_once() -> None:
    state = NodeState(SourceState(), NODE_TIMING)
    with capture_logs() as logs:
        for _ in range(2):
            state.mirror(STREAMS)
            state.away("no connection to NATS")
            state.mirror(STREAMS | {"source": "none", "code": "away"})
            state.away("nobody writes the log")
            state.mirror(STREAMS)
            state.mirror(STREAMS)
    assert [(line["now"], line.get("detail")) for line in logs] == [
        ("none", "no connection to NATS"),
        ("none", "nobody writes the log"),
        ("replication", None),
    ] * 2
