"""What /readyz says."""

import asyncio
import json
import time

from brain.access.limits import ConnectionLimiter
from brain.access.policy import Policy
from brain.contract.events import Snapshot
from brain.delivery.board import Board
from brain.delivery.hub import Hub
from brain.metrics import Metrics, Parts
from brain.nodes.state import NodeState
from brain.nodes.timing import NODE_TIMING
from brain.postgres.decoder import Decoder
from brain.postgres.records import Records
from brain.postgres.source_state import SourceState
from brain.server.operations import Operations
from brain.server.state import ServerState
from brain.server.websocket import Connections


async def test_the_lag_of_a_node_whose_leader_has_read_nothing_is_null() -> None:
    """It has the board of a leader before, and the present one cannot reach the database. JSON has
    no infinity.
    """
    loop = asyncio.get_running_loop()
    board, state, policy = Board(1 << 20), SourceState(), Policy()
    board.apply(Snapshot([], 1000))
    hub = Hub(
        board,
        interval=0.01,
        clock=loop.time,
        call_later=loop.call_later,
        call_soon=loop.call_soon,
    )
    NodeState(state, NODE_TIMING).mirror(
        {"source": "none", "code": "away", "detail": "no", "hint": "", "age": None, "lag": 1e9}
    )
    limiter = ConnectionLimiter(policy, max_connections=0, max_connections_per_ip=0)
    server = ServerState(policy, limiter, Connections(hub, loop, 60))
    parts = Parts(board, hub, state, Records(), lambda: server.open, Decoder({}, 64), {}, loop.time)
    document = Operations(parts, server, Metrics(time.time)).readiness()
    assert json.loads(json.dumps(document, allow_nan=False))["lag_seconds"] is None
