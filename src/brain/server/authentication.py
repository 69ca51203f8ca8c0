"""A connection that a token is asked of: it is told nothing before it has shown one, and no longer than that is valid."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from brain.access.jwks import TokenError
from brain.access.tokens import Grant, Tokens
from brain.contract.subscription import Subscription
from brain.server.websocket import ANSWER, HELLO, Connection, Connections, Message

FIRST_WITHIN = 5.0
"""Seconds for the token, where it comes as the first message."""

LOOK = 60.0
"""Seconds between two looks at the clock that tokens go by; it may be set while a timer runs."""

UNAUTHORISED, FORBIDDEN = 4401, 4403
"""Close codes: get a token, or another; this one does not permit that."""


def permitted(wish: Subscription, grant: Grant) -> Subscription:
    """The part of a wish that the token is for. Raises TokenError beyond it."""
    grant.require("read")
    if not grant.within:
        return wish
    agent, task_id = (
        grant.narrowed(name, getattr(wish.filter, name)) for name in ("agent", "task_id")
    )
    bounds = frozenset((name, values) for name, values in grant.within.items())
    return replace(wish, filter=replace(wish.filter, agent=agent, task_id=task_id, bounds=bounds))


class TokenConnection(Connection):
    __slots__ = ("_asked", "_grant", "_task", "_timer", "_tokens", "_wish")

    def __init__(
        self,
        all_: Connections,
        transport: asyncio.Transport,
        peer: str,
        lost: Callable[[], None],
        *,
        tokens: Tokens,
        grant: Grant | None,
    ) -> None:
        super().__init__(all_, transport, peer, lost)
        self._tokens = tokens
        self._grant = grant
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        """It has said "ping" behind its token, and wants to know that it is in."""
        self._timer: asyncio.TimerHandle | None = None
        self._wish = Subscription()

    def start(self, wish: Subscription, *, full: bool = False) -> None:
        self._wish = wish
        if self._grant is not None:
            self._admit(self._grant, full=full)
            return
        self.paused = full
        self._all.shares[self._share].add(self)  # pinged, and told of a shutdown, like everybody
        self._timer = self._all.loop.call_later(
            FIRST_WITHIN,
            self._refuse,
            UNAUTHORISED,
            f"the first message is a token, within {FIRST_WITHIN:.0f} s",
        )

    def received(self, message: Message) -> None:
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
            self._wish = permitted(self._wish, grant)
        except TokenError as error:
            if error.status == 503:
                self.end(1013, str(error))
            else:
                self._refuse(FORBIDDEN if error.status == 403 else UNAUTHORISED, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever one client sends ends that client alone
            self.drop(error)
            return
        self._grant = grant
        self._cancel()
        self._admit(grant, full=self.paused)
        if self._asked and not self.paused:
            self.write(ANSWER)

    def _admit(self, grant: Grant, *, full: bool) -> None:
        super().start(self._wish, full=full)
        self._watch(grant)

    def _watch(self, grant: Grant) -> None:
        if self.cohort is None:
            return  # the hub has ended it, or something else has
        left = grant.expires - self._tokens.now()
        if left <= 0:
            self._refuse(UNAUTHORISED, "the token has expired")
        else:
            self._timer = self._all.loop.call_later(min(left, LOOK), self._watch, grant)

    def _refuse(self, code: int, reason: str) -> None:
        self._all.rejections.note(
            "scope" if code == FORBIDDEN else "token", peer=self.peer, status=code, detail=reason
        )
        self.end(code, reason)

    def _leave(self, code: int, reason: str) -> None:
        super()._leave(code, reason)
        self._cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
