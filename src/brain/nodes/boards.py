"""From where a node can read the log: behind the image of a board that stands in it (N6, N7), or
from its beginning.
"""

import asyncio
from typing import Any, TypeAlias

from brain.contract.events import Held, Image
from brain.nodes.connection import NATSError
from brain.nodes.log import Facts, Log
from brain.nodes.messages import (
    READABLE_FROM,
    VERSION,
    MessageError,
    decode,
    decode_held,
    decode_image,
)
from brain.nodes.timing import NodeTiming
from brain.nodes.track import UNREADABLE, Claim, Track

Start: TypeAlias = tuple[Track, Image | None]
"""Where to begin to read the log, and with which board."""


class Unusable(NATSError):  # noqa: N818 - a state of the log, not an error of Brain
    """The image is not what its last message says. `as_of` is the message up to which it was."""

    def __init__(self, detail: str, as_of: int) -> None:
        super().__init__(detail)
        self.as_of = as_of


async def beginning(
    log_: Log, facts: Facts, *, needed: Claim | None, impassable: int, timing: NodeTiming
) -> Start | None:
    """None if the log has none: then only a new image helps.

    What stands before the claim `needed` does not count, and the message `impassable` cannot be
    read. Raises NATSError, Unusable.
    """
    after = max(impassable, needed.seq if needed is not None else 0)
    if (head := await _last(log_, facts, after)) is not None:
        return await _read(log_, head, timing)
    if after == 0 and facts.first <= 1:
        return Track(), None
    if needed is not None and needed.base == "empty" and max(facts.first, impassable) <= needed.seq:
        return Track(position=needed.seq - 1), None
    return None


async def own_claim(log_: Log, node: str) -> Claim | None:
    """If the last message of the log is a claim of this node. Raises NATSError."""
    last = await log_.last("log")
    if last is None or last[1] is None or last[1].kind != "claim":
        return None
    seq, head = last[0], last[1].head
    if head.get("id") != node:
        return None
    return Claim(seq, node, head["name"], head["base"], VERSION, READABLE_FROM)


async def _last(log_: Log, facts: Facts, after: int) -> dict[str, Any] | None:
    """What the last message of the image says, if it is whole and so is the log behind it. `after`:
    it must have all up to this message.
    """
    last = await log_.last("end")
    if last is None or last[1] is None or last[1].kind != "end":
        return None
    head = last[1].head
    try:
        counts = head["r"] <= VERSION and after <= head["as_of"] >= facts.first - 1
        whole = not head["pieces"] or facts.first <= head["first"]
    except (KeyError, TypeError):  # somebody else has written it
        return None
    return head if counts and whole else None


async def _read(log_: Log, head: dict[str, Any], timing: NodeTiming) -> Start:
    try:
        entries = await _entries(log_, head, timing) if head["pieces"] else []
        return Track.behind(head, Claim(*head["claim"])), decode_image(head["board"], entries)
    except UNREADABLE as error:
        raise Unusable(f"the board in the log cannot be read: {error}", head["as_of"]) from None


async def _entries(log_: Log, head: dict[str, Any], timing: NodeTiming) -> list[Held]:
    entries: list[Held] = []
    part = b""
    count = 0
    async with log_.read("ckpt", head["first"] - 1) as reader:
        while count < head["pieces"]:
            items = await reader.take(timing.watchdog)
            if not items:
                raise MessageError(f"{head['pieces'] - count} parts of the board have been deleted")
            for item in items:
                message = decode(item.data)
                if message.head.get("as_of") != head["as_of"]:
                    raise MessageError(f"message {item.seq} is of another board")
                part += message.body
                count += 1
                if message.is_last:
                    entries += decode_held(part)
                    part = b""
                    await asyncio.sleep(0)
    return entries
