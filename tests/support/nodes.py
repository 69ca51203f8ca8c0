"""A node of several, in this process: its board, and what it pushes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Self

from brain.contract.events import Event, Known
from brain.contract.messages import ID, STATUS
from brain.delivery.board import ENTRY, Board
from brain.delivery.log import RUN, Entry
from brain.nodes.connection import Access, Connection
from brain.nodes.log import Log
from brain.nodes.node import Node
from brain.nodes.timing import NodeTiming
from brain.postgres.cancellation import cancel
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.identify import identify
from brain.postgres.polling import Mode
from brain.postgres.progress import Progress
from tests.support.following import QUICK, RUNS
from tests.support.patience import PATIENCE

QUICK_NODES = replace(NodeTiming.of(1.0), first=0.05, away=0.6, pause=0.03)
MEMORY = 1 << 24


class Stream:
    """The log of this test: its database may have been another test's."""

    name = ""


class InProcessNode:
    """A node inside `async with`."""

    def __init__(
        self,
        database: str,
        *nats: str,
        mode: Mode = "replication",
        timing: NodeTiming = QUICK_NODES,
        memory: int = MEMORY,
        access: Access | None = None,
        replicas: int = 1,
    ) -> None:
        self.board = Board(memory)
        self.stream = Stream.name
        self.node = Node(
            access or Access(nats),
            self.stream,
            self.board,
            source=self._source,
            empty=lambda: Board(memory),
            identify=lambda: identify(database, RUNS, Decoder({}, 2_000_000), self.board),
            replicas=replicas,
            timing=timing,
        )
        self.follows: list[Follow] = []
        """Those with which it has led."""
        self.events: list[Event] = []
        self.pushed: list[Entry] = []
        self.resets = 0
        self._database = database
        self._mode: Mode = mode
        self._task: asyncio.Task[None]

    def _source(self, known: Known, progress: Progress) -> Follow:
        follow = Follow(
            self._database,
            RUNS,
            Decoder({}, 2_000_000),
            known,
            mode=self._mode,
            interval=0.01,
            application="brain",
            timing=QUICK,
            progress=progress,
        )
        self.follows.append(follow)
        return follow

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="node under test")
        return self

    async def _run(self) -> None:
        async with contextlib.aclosing(self.node.events()) as events:
            async for several in events:
                begun = self.board.begun
                self.resets += begun and any(getattr(event, "new", False) for event in several)
                self.events += several
                self.pushed += [push[ENTRY] for push in self.board.apply(*several)]

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """As SIGTERM does."""
        await cancel(self._task)
        # A resignation has a deadline of its own, and a busy machine needs it.
        await asyncio.wait([self._task], timeout=PATIENCE)
        assert self._task.done(), [repr(each) for each in asyncio.all_tasks()]
        if not self._task.cancelled():
            self._task.result()

    async def kill(self) -> None:
        """As SIGKILL does: it says nothing more."""
        leadership = self.node._leadership
        if leadership._task is not None:
            leadership._end(leadership._task)
        for task in (self.node._connection._task,):
            if task is not None:
                task.cancel()
        self.node._leadership._retired = True
        leadership.leader = leadership._task = None
        await self.node._connection._close()
        await self.stop()

    @property
    def role(self) -> str:
        return self.node.report().role

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._task.done():
                self._task.result()
            assert time.monotonic() < deadline, (self.node.report(), self.node.state)
            await asyncio.sleep(0.005)

    async def ready(self) -> None:
        await self.until(lambda: self.board.begun and self.node.state.source != "none")

    async def knows(self, run_id: str, status: str) -> None:
        def known() -> bool:
            entry = self.board.get(run_id)
            return entry is not None and entry[RUN][STATUS] == status

        await self.until(known)

    def statuses(self) -> list[tuple[str, str]]:
        """What was pushed."""
        return [(entry[RUN][ID], entry[RUN][STATUS]) for entry in self.pushed]


@contextlib.asynccontextmanager
async def opened(
    url: str, name: str, timing: NodeTiming = QUICK_NODES, **settings: Any
) -> AsyncIterator[Log]:
    """The log itself, over a connection that is open."""
    async with Connection(Access([url]), "test", timing) as connection:
        deadline = time.monotonic() + PATIENCE
        while not connection.is_open:
            assert time.monotonic() < deadline, connection.detail
            await asyncio.sleep(0.005)
        yield Log(connection, name, timing=timing, **settings)


async def leader_of(*nodes: InProcessNode) -> InProcessNode:
    """The one that leads, once one does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        leading = [each for each in nodes if each.role == "leader"]
        if len(leading) == 1 and leading[0].board.begun:
            return leading[0]
        assert time.monotonic() < deadline, [each.node.report() for each in nodes]
        await asyncio.sleep(0.005)


async def leader_and_other(
    one: InProcessNode, two: InProcessNode
) -> tuple[InProcessNode, InProcessNode]:
    """Once one of the two leads."""
    leader = await leader_of(one, two)
    return leader, two if leader is one else one
