"""A node: one of several Brains that follow the same table by way of a log.

    PostgreSQL ──slot──► the leader's source ──► log ──► relay ──► board ──► hub ──► clients
                                                  (each node, the leader too)

It is one more source for app.py: an async iterator of lists of events.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from brain.contract.events import Event
from brain.contract.messages import Micros
from brain.contract.nodes import NodeReport
from brain.delivery.board import Board
from brain.nodes.barrier import Barrier
from brain.nodes.connection import Access, Connection
from brain.nodes.leader import Leader, MakeSource
from brain.nodes.leadership import Leadership
from brain.nodes.log import Log, Storage
from brain.nodes.origin import HINT, Identify, Origin
from brain.nodes.relay import UPGRADE_HINT, Relay
from brain.nodes.roster import Roster
from brain.nodes.state import HINT as NATS_HINT
from brain.nodes.state import NodeState
from brain.nodes.timing import NODE_TIMING, NodeTiming
from brain.nodes.track import Claim
from brain.postgres.cancellation import cancel, outlast
from brain.postgres.source_state import SourceState
from brain.postgres.table import Column

if TYPE_CHECKING:
    from brain.postgres.checkpoints import Identity

log = structlog.get_logger()


class Node:
    """`stream` names the log. `source` makes what a leader follows the database with, `empty` a
    board like `board`. `identify` asks which table this node would follow.
    """

    def __init__(
        self,
        access: Access,
        stream: str,
        board: Board,
        *,
        source: MakeSource,
        empty: Callable[[], Board],
        identify: Identify,
        replicas: int = 1,
        storage: Storage = "file",
        port: int = 0,
        clients: Callable[[], int] = lambda: 0,
        timing: NodeTiming = NODE_TIMING,
    ) -> None:
        self.state = SourceState()
        self.id = secrets.token_hex(8)
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._board = board
        self._timing = timing
        self._made = source
        self._node_state = NodeState(self.state, timing)
        self._connection = Connection(access, f"brain {self.name}", timing)
        self._log = Log(self._connection, stream, replicas=replicas, storage=storage, timing=timing)
        self._origin = Origin(identify)
        self._relay = Relay(
            self._log,
            board,
            self._node_state,
            node=self.id,
            empty=empty,
            origin=self._origin,
            timing=timing,
        )
        self._barrier = Barrier(self._log, board, self._relay, timing)
        self._leadership = Leadership(
            self._log,
            self._relay,
            self._node_state,
            self._lead,
            node=self.id,
            name=self.name,
            timing=timing,
        )
        self._roster = Roster(
            self._connection,
            stream,
            lambda: {
                "id": self.id,
                "name": self.name,
                "port": port,
                "clients": clients(),
                "ready": self.state.source != "none" and board.begun,
                **self.report()._asdict(),
            },
            self._want_board,
        )
        self._retiring: asyncio.Task[None] | None = None
        self._counted = (self.state, 0, 0, 0)

    @property
    def columns(self) -> Mapping[str, Column] | None:
        """The table's columns by name. None until a leader has said which it has."""
        return self._relay.track.columns

    def report(self) -> NodeReport:
        return self._node_state.report()

    def is_behind(self, since: Micros | None) -> bool:
        """Whether a client may have seen something that this node has not read yet."""
        return since is not None and self._barrier.is_behind(since)

    async def reached(self, since: Micros) -> bool:
        """Wait until it has. False: it cannot be told in time."""
        return await self._barrier.reached(since)

    def _lead(self, claim: Claim) -> Leader:
        return Leader(
            claim,
            self._relay,
            self._board,
            self._log,
            source=self._made,
            timing=self._timing,
        )

    def _want_board(self) -> None:
        if self._leadership.leader is not None:
            self._leadership.leader.want_board()

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        """Raises CredentialsError."""
        async with self._connection:
            tasks = [
                asyncio.create_task(self._keep(what), name=name)
                for name, what in (
                    ("leadership", self._leadership.watch),
                    ("node", self._watch),
                    ("roster", self._roster.answer),
                    ("origin", self._watch_origin),
                )
            ]
            try:
                async with aclosing(self._relay.events()) as events:
                    async for several in events:
                        yield several
            finally:
                self.retire()
                assert self._retiring is not None
                try:
                    await outlast(self._retiring)
                finally:
                    await asyncio.gather(*map(cancel, tasks))

    async def _keep(self, what: Callable[[], Awaitable[None]]) -> None:
        """A bug in Brain, or an answer of NATS that nobody expects, ends none of them for good."""
        while True:
            try:
                return await what()
            except Exception:
                log.exception("a task of this node failed")
            await asyncio.sleep(self._timing.heartbeat)

    def retire(self) -> None:
        """(N10) Lead no longer. The relay goes on: clients are still told what happens."""
        if self._retiring is None:
            self._retiring = asyncio.create_task(self._leadership.retire(), name="retire")

    async def _watch(self) -> None:
        """(N9) Say when the log is away. Clients stay, and nobody polls the database instead."""
        loop, timing, connection = asyncio.get_running_loop(), self._timing, self._connection
        began = loop.time()
        while True:
            await asyncio.sleep(timing.pause)
            self._count()
            state = self._node_state
            silent = loop.time() - max(began, state.heard)
            leaderless = loop.time() - max(began, state.led)
            loading, wait = self._relay.loading(loop.time())
            if state.elsewhere:
                state.away(state.elsewhere, HINT)
            elif silent > timing.away and not connection.is_open:
                state.away(f"no connection to NATS: {connection.detail}")
            elif not self._relay.is_readable:
                state.away(self._relay.later, UPGRADE_HINT)
            elif max(silent, 0.0 if self._relay.loads else leaderless) > timing.leaderless:
                why = self._relay.later or self._leadership.obstacle or self._relay.obstacle
                hint = UPGRADE_HINT if self._relay.later else NATS_HINT
                state.away(f"nobody writes the log{why and ': '}{why}", hint)
            elif loading > timing.leaderless:
                state.away(wait)

    async def _watch_origin(self) -> None:
        """Whether a leader that follows another table, or reads it otherwise, has come."""
        known: Identity | None = None
        doubted: Identity | None = None
        told = ""
        while True:
            await asyncio.sleep(2 * self._timing.heartbeat)
            identity = self._relay.track.identity
            if identity is None or identity == known or self._relay.loads:
                continue
            if self._leadership.leader is not None:
                known = identity
                continue
            why, differs = await self._origin.compare(identity)
            if why:
                # The table may have been replaced, or the database moved, a moment ago.
                if doubted == identity:
                    log.error("the log is not of this node's table", detail=why, hint=HINT)
                    self._relay.leave(why)
                doubted = identity if doubted != identity else None
                continue
            known, doubted = identity, None
            if differs and differs != told:
                log.warning(
                    "the leader reads the table otherwise",
                    differs=differs,
                    effect="each change of leader ends all clients with 4410",
                    hint="give all nodes the same settings, and the same role in the database",
                )
            told = differs

    def _count(self) -> None:
        """What this node has done while it led: for its own metrics."""
        leader = self._leadership.leader
        if leader is None:
            return
        source, mirror = leader.source, self.state
        seen = self._counted if self._counted[0] is source else (source, 0, 0, 0)
        mirror.connects += source.connects - seen[1]
        mirror.streams += source.streams - seen[2]
        mirror.losses += source.losses - seen[3]
        self._counted = (source, source.connects, source.streams, source.losses)
