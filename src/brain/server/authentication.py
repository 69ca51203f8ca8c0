"""A WebSocket that needs a token: without a valid one it gets no message."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from brain.access.grants import Grant, TokenError
from brain.access.rejections import REJECTIONS, Rejection
from brain.contract.subscription import BOUNDS, Subscription
from brain.server.websocket import ANSWER, HELLO, Connection, Connections, IncomingMessage

if TYPE_CHECKING:
    from brain.access.tokens import Tokens

MAX_TIMER = 60.0
"""Seconds until the expiry is checked again: the wall clock may be set while a timer runs."""


def permitted(subscription: Subscription, grant: Grant) -> Subscription:
    """The subscription within the runs of the token. Raises TokenError if it asks for others."""
    grant.require("read")
    if not grant.within:
        return subscription
    filter_ = subscription.filter
    agent, task_id = (grant.narrowed(name, getattr(filter_, name)) for name in BOUNDS)
    bounds = frozenset((name, values) for name, values in grant.within.items())
    return replace(
        subscription, filter=replace(filter_, agent=agent, task_id=task_id, bounds=bounds)
    )


class TokenConnection(Connection):
    __slots__ = ("_asked", "_grant", "_subscription", "_task", "_timer", "_tokens")

    def __init__(
        self,
        all_: Connections,
        transport: asyncio.Transport,
        peer: str,
        lost: Callable[[], None],
        *,
        tokens: "Tokens",
        grant: Grant | None,
    ) -> None:
        super().__init__(all_, transport, peer, lost)
        self._tokens = tokens
        self._grant = grant
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        """The client sent `ping` behind its token: the pong tells it that the token is accepted."""
        self._timer: asyncio.TimerHandle | None = None
        self._subscription = Subscription()

    def start(self, subscription: Subscription, *, full: bool = False) -> None:
        self._subscription = subscription
        if self._grant is not None:
            self._admit(self._grant, full=full)
            return
        self.paused = full
        self._all.shares[self._share].add(self)  # for pings, and for the shutdown
        seconds = self._all.limits.token_deadline
        rejection = Rejection("token", f"the first message is a token, within {seconds:.0f} s")
        self._timer = self._all.loop.call_later(seconds, self._refuse, rejection)

    def received(self, message: IncomingMessage) -> None:
        if self._grant is not None:
            super().received(message)
        elif self._task is None:
            token = message.data.decode() if message.text else ""
            self._task = self._all.loop.create_task(self._check(token), name="token")
        elif message.text and message.data == HELLO:
            self._asked = True

    async def _check(self, token: str) -> None:
        try:
            grant = await self._tokens.check(token)
            self._subscription = permitted(self._subscription, grant)
        except TokenError as error:
            self._refuse(error.rejection)
            return
        except Exception as error:  # noqa: BLE001 - whatever a client sends ends only that client
            self._all.hub.fail(self, error)
            return
        self._grant = grant
        self._cancel()
        self._admit(grant, full=self.paused)
        if self._asked and not self.paused:
            self.write(ANSWER)

    def _admit(self, grant: Grant, *, full: bool) -> None:
        super().start(self._subscription, full=full)
        self._watch(grant)

    def _watch(self, grant: Grant) -> None:
        if self.cohort is None:
            return  # the hub, or something else, has ended it
        left = grant.expires - self._tokens.now()
        if left <= 0:
            self._refuse(Rejection("token", "the token has expired"))
        else:
            # Tokens of many clients may expire in the same second.
            later = partial(self._all.queue.add, partial(self._watch, grant))
            self._timer = self._all.loop.call_later(min(left, MAX_TIMER), later)

    def _refuse(self, rejection: Rejection) -> None:
        close_code = REJECTIONS[rejection.code].close_code
        assert close_code is not None, "a token's rejections have a close code"
        self._all.rejections.note(rejection, peer=self.peer, close_code=close_code)
        self.end(close_code.code, rejection.detail)

    def _leave(self, code: int, reason: str) -> None:
        super()._leave(code, reason)
        self._cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
