"""What a reader of the log knows after each message. Pure: messages in, events out.

(N3) The log may have split, or gone back, behind the back of its readers. So each message carries
its leader's epoch and a number: one of an earlier epoch is skipped, and what does not follow shows
that this reader's board is not that of the log.
test_a_message_of_a_lower_epoch_is_skipped, test_a_message_that_does_not_follow_loads_again

Anybody who may publish there may write what is no message of Brain's. It is skipped. Nothing is
lost by that, because what the leader writes next is refused behind it (N1), and the next leader
reads the database again from the last checkpoint.
test_what_somebody_else_has_written_is_skipped
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from brain.contract.events import Changes, Event
from brain.contract.messages import Micros
from brain.nodes.connection import NATSError
from brain.nodes.messages import (
    VERSION,
    Base,
    Message,
    MessageError,
    decode,
    decode_checkpoint,
    decode_columns,
    decode_event,
    items,
)
from brain.postgres.checkpoints import Checkpoint, Identity
from brain.postgres.table import Column

UNREADABLE: Final = (
    MessageError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)
"""What a message raises that is well-formed and yet none of Brain's."""


class LoadAgain(NATSError):  # noqa: N818 - a state of the log, not an error of Brain
    """The log does not go on where this reader is."""


class Claim(NamedTuple):
    seq: int
    """Its epoch."""
    node: str
    """A random id of the process."""
    name: str
    """For people: host and process."""
    base: Base
    version: int
    readable_from: int

    @property
    def is_readable(self) -> bool:
        return self.readable_from <= VERSION


@dataclass(slots=True)
class Track:
    position: int = 0
    """The last message that was read."""
    epoch: int = 0
    n: int = 0
    claim: Claim | None = None
    resigned: bool = False
    """The leader has, and nobody has claimed the log since."""
    given_up: int = 0
    """How many leaders in a row have resigned because they could not reach the database."""
    looked: bool = False
    """The leader has read the table, and what it has found stands in the log."""
    at: Micros = 0
    """The time of the last event: each has a later one."""
    checkpoint: Checkpoint | None = None
    """Where a new leader begins to read the database."""
    unseen: set[int] = field(default_factory=set)
    """Transactions that a stream has delivered, and that no checkpoint sees yet."""
    columns: dict[str, Column] | None = None
    status: dict[str, Any] = field(default_factory=dict)
    """How the leader follows the database."""
    foreign: int = 0
    """Messages that are none of Brain's, since this reader began."""
    _parts: list[bytes] = field(default_factory=list)

    def take(self, seq: int, data: bytes) -> Sequence[Event]:
        """The events of a message, to be applied at once. Raises LoadAgain."""
        try:
            message = decode(data)
        except MessageError:
            self.foreign += 1
            self.position = seq
            return []
        try:
            return self._understand(seq, message)
        except UNREADABLE as error:
            raise LoadAgain(f"message {seq} cannot be understood: {error!r}") from None

    def _understand(self, seq: int, message: Message) -> Sequence[Event]:
        if message.kind == "claim":
            self._claimed(seq, message)
            return []
        if message.epoch < self.epoch:
            self.position = seq
            return []
        if self.claim is not None and not self.claim.is_readable:
            self.position = seq
            return []
        if message.epoch > self.epoch or message.n != self.n + 1:
            raise LoadAgain(
                f"message {seq} is number {message.n} of epoch {message.epoch}, "
                f"after number {self.n} of epoch {self.epoch}"
            )
        self.n, self.position = message.n, seq
        if message.kind == "resign":
            self.resigned = True
            self.given_up += bool(message.head.get("away"))
            return []
        if message.kind != "events":
            raise MessageError(f"message {seq} of the log is of the kind {message.kind}")
        self._parts.append(message.body)
        if not message.is_last:
            return []
        body = b"".join(self._parts)
        self._parts.clear()
        events = [decode_event(each) for each in items(body)]
        self._head(message.head)
        self._note(events)
        return events

    def _claimed(self, seq: int, message: Message) -> None:
        head = message.head
        try:
            claim = Claim(seq, head["id"], head["name"], head["base"], head["v"], head["r"])
        except KeyError as error:
            raise MessageError(f"message {seq} of the log is a claim without {error}") from None
        unread = self.claim is not None and not self.claim.is_readable
        self.epoch, self.n, self.claim, self.position = seq, 0, claim, seq
        self.resigned = self.looked = False
        self._parts.clear()
        if unread and claim.base == "log":
            raise LoadAgain("what the leader before has written could not be read")

    def _head(self, head: dict[str, Any]) -> None:
        if head.get("looked"):
            self.looked, self.given_up = True, 0
        if (status := head.get("status")) is not None:
            self.status = status
        if (columns := head.get("columns")) is not None:
            self.columns = decode_columns(columns)
        if (found := head.get("checkpoint")) is not None:
            self.checkpoint = checkpoint = decode_checkpoint(found)
            self.unseen = checkpoint.visible.unseen(self.unseen)

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Changes):
                self.unseen.add(event.xid)
                self.at = event.at
            else:
                self.at = getattr(event, "at", self.at)

    @property
    def identity(self) -> Identity | None:
        """Of the table that the log is of, as far as its leaders have said."""
        return None if self.checkpoint is None else self.checkpoint.identity

    @classmethod
    def behind(cls, head: dict[str, Any], claim: Claim) -> "Track":
        """As it was when the board was written."""
        columns = head.get("columns")
        checkpoint = head.get("checkpoint")
        return cls(
            position=head["as_of"],
            epoch=head["e"],
            n=head["at_n"],
            claim=claim,
            looked=bool(head.get("looked")),
            at=head["at"],
            checkpoint=decode_checkpoint(checkpoint) if checkpoint else None,
            columns=decode_columns(columns) if columns else None,
            status=head.get("status") or {},
        )

    def going_on(self, claim: Claim) -> "Track":
        """As the leader that has made this claim, from this reader's own board."""
        return Track(
            position=claim.seq,
            epoch=claim.seq,
            claim=claim,
            at=self.at,
            checkpoint=self.checkpoint,
            unseen=self.unseen,
            columns=self.columns,
            status=self.status,
            foreign=self.foreign,
        )
