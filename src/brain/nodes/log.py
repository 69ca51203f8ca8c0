"""The log: one JetStream stream, of which JetStream guarantees the order.

It is a cache. PostgreSQL is the truth, and JetStream may lose what it has confirmed: it confirms
before it fsyncs (nats-server#7564, #7567, #6888). So its readers look whether it still goes on
where they are.
"""

import asyncio
import base64
import contextlib
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias

import structlog
from nats.aio.msg import Msg
from psycopg.conninfo import conninfo_to_dict

from brain.nodes.connection import Connection, NATSError, Refused, Unanswered, answered
from brain.nodes.messages import Message, MessageError, decode
from brain.nodes.timing import NodeTiming
from brain.postgres.table import Table

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

log = structlog.get_logger()

Storage: TypeAlias = Literal["file", "memory"]
Subject: TypeAlias = Literal["log", "ckpt", "end"]

MAX_BYTES: Final = 256 * 1024 * 1024
"""What a stream holds. The board's last image must be in it, and what was appended since."""

NOT_FOUND, NO_MESSAGE, OTHER_CONFIGURATION = 10059, 10037, 10058
WRONG_LAST: Final = (10071, 10164)
"""`err_code` of JetStream's answers."""

BREAKING: Final = ("subjects", "max_msg_size", "no_ack", "sealed")
"""Settings of a stream with which no node can lead, if they are not as a node makes them …"""

LOSING: Final = ("retention", "discard", "max_age", "max_msgs", "max_msgs_per_subject")
"""… with which it loses what nodes still need …"""

CHOSEN: Final = ("storage", "num_replicas", "max_bytes")
"""… and what only counts when the log is made."""

_S = 1_000_000_000


class Superseded(NATSError):  # noqa: N818 - no fault of anybody
    """Somebody else has appended (N1)."""


class Interrupted(NATSError):  # noqa: N818 - the same
    """A reader may have missed something: subscribe again."""


class Facts(NamedTuple):
    first: int
    """Seq of the first message that the stream still has."""
    last: int
    """Seq of the last that it ever had."""
    created: str
    idle: float
    """Seconds since the last message, by the server's clock; infinite without one, and if somebody
    else than a node has written it."""


class Item(NamedTuple):
    seq: int
    data: bytes
    pending: int
    """How many messages stood behind it when it was sent."""


def stream_of(url: str, table: Table) -> str:
    """The name of the log of a table. Its host is a part of it: two servers may have databases of
    one name, and share a NATS.
    """
    given = conninfo_to_dict(url)
    where = [str(given.get(name, "")) for name in ("host", "port", "dbname")]
    digest = blake2b("\0".join([*where, str(table)]).encode(), digest_size=8).hexdigest()
    return f"BRAIN_{digest}"


class Log:
    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        replicas: int = 1,
        storage: Storage = "file",
        timing: NodeTiming,
    ) -> None:
        self.name = name
        self.connection = connection
        self.max_bytes = MAX_BYTES
        self._config: dict[str, Any] = {
            "name": name,
            "description": "Brain: the changes of one table, for all its nodes",
            "subjects": [f"{name}.{each}" for each in ("log", "ckpt", "end")],
            "retention": "limits",
            "discard": "old",
            "storage": storage,
            "num_replicas": replicas,
            "max_bytes": self.max_bytes,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "no_ack": False,
            "sealed": False,
            "max_consumers": -1,
            "max_age": 0,
            "max_msg_size": -1,
            "allow_direct": True,
        }
        self._timing = timing
        self._told = ""

    def subject(self, what: str) -> str:
        return f"{self.name}.{what}"

    async def facts(self) -> Facts:
        """Create the stream if need be. Raises NATSError."""
        found = await self._info()
        self._compare(found["config"])
        state = found["state"]
        last = state["last_seq"]
        idle = _seconds(state["last_ts"], found["ts"]) if last and "ts" in found else float("inf")
        if idle < self._timing.silence and await self._is_foreign(last):
            idle = float("inf")
        return Facts(state["first_seq"], last, found["created"], idle)

    async def created(self) -> str:
        """The same for less: one request instead of two."""
        return str((await self._info())["created"])

    async def _info(self) -> dict[str, Any]:
        try:
            return await self.connection.ask(f"STREAM.INFO.{self.name}")
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            return await self._create()

    async def _is_foreign(self, seq: int) -> bool:
        found = await self._get(seq=seq)
        return found is not None and found[1] is None

    async def _create(self) -> dict[str, Any]:
        try:
            return await self.connection.ask(f"STREAM.CREATE.{self.name}", **self._config)
        except Refused as error:
            if error.code != OTHER_CONFIGURATION:  # another node was quicker, with other settings
                raise
            return await self.connection.ask(f"STREAM.INFO.{self.name}")

    def _compare(self, found: dict[str, Any]) -> None:
        """Say once what the stream has otherwise. What exists counts."""
        differs = self.differing(found, (*BREAKING, *LOSING, *CHOSEN))
        detail = "; ".join(differs)
        if detail != self._told:
            self._told = detail
            if detail:
                log.warning("the stream has other settings", stream=self.name, detail=detail)

    def differing(self, found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        """These settings of a stream that are not as this node would make them."""
        wanted = self._config
        return [
            f"{name} is {found[name]}, not {wanted[name]}"
            for name in names
            if name in found and found[name] != wanted[name]
        ]

    async def append(self, subject: Subject, data: bytes, after: int) -> int:
        """(N1) Append behind the message `after`, if that is still the last. Returns its seq.

        Raises Superseded, or NATSError: then nobody knows whether it was appended.
        """
        headers = {
            "Nats-Expected-Stream": self.name,
            "Nats-Expected-Last-Sequence": str(after),
        }
        try:
            answer = await self.connection.request(
                self.subject(subject), data, headers=headers, timeout=self._timing.append
            )
        except Unanswered as error:
            raise Unanswered(f"NATS has not confirmed a message: {error}") from error
        try:
            return int(answered(answer)["seq"])
        except Refused as error:
            if error.code in WRONG_LAST or "wrong last sequence" in str(error):
                raise Superseded(str(error)) from None
            raise

    async def last(self, subject: Subject) -> tuple[int, Message | None] | None:
        """The newest message of this subject, None if it is none of Brain's, and its seq. Raises
        NATSError.
        """
        return await self._get(last_by_subj=self.subject(subject))

    async def _get(self, **which: Any) -> tuple[int, Message | None] | None:
        try:
            found = await self.connection.ask(f"STREAM.MSG.GET.{self.name}", **which)
        except Refused as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = found["message"]
        try:
            return message["seq"], decode(base64.b64decode(message.get("data", "")))
        except MessageError:
            return message["seq"], None

    def read(self, subject: Subject, after: int) -> "Reader":
        return Reader(self, subject, after, self._timing)


class Reader:
    """The messages of one subject behind a seq, in order and without a gap, inside `async with`.

    JetStream pushes them, and waits when this one does not keep up (flow control).
    """

    def __init__(self, log_: Log, subject: Subject, after: int, timing: NodeTiming) -> None:
        self.seq = after
        """Of the last message that was read, or arrived."""
        self._log = log_
        self._subject = subject
        self._timing = timing
        self._consumer = f"brain-{secrets.token_hex(6)}"
        self._number = 0
        """The consumer's number of the last message."""
        self._arrived: deque[Item | str] = deque()
        """Messages, and subjects at which JetStream wants to hear that they were read."""
        self._wake = asyncio.Event()
        self._broken = ""
        self._generation = 0
        self._heard = 0.0
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        """Raises NATSError."""
        connection, name = self._log.connection, self._log.name
        self._generation = connection.generation
        inbox = connection.client.new_inbox()
        filter_ = self._log.subject(self._subject)
        self._subscription = await connection.subscribe(inbox, self._take, keep_all=True)
        config = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.seq + 1,
            "deliver_subject": inbox,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": filter_,
            "flow_control": True,
            "idle_heartbeat": int(self._timing.heartbeat * _S),
            "inactive_threshold": 10 * _S,
            "mem_storage": True,
            "num_replicas": 1,
        }
        self._heard = asyncio.get_running_loop().time()
        try:
            await connection.ask(
                f"CONSUMER.CREATE.{name}.{self._consumer}.{filter_}",
                stream_name=name,
                config=config,
                action="create",
            )
        except BaseException:
            await self._unsubscribe()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._unsubscribe()
        # JetStream forgets it by itself, later.
        with contextlib.suppress(NATSError, TimeoutError):
            async with asyncio.timeout(0.2):
                await self._log.connection.ask(f"CONSUMER.DELETE.{self._log.name}.{self._consumer}")

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._log.connection.unsubscribe(subscription)

    async def _take(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        headers = message.headers
        if headers and headers.get("Status") == "100":
            if stalled := headers.get("Nats-Consumer-Stalled"):
                self._arrived.append(stalled)
            elif message.reply:
                self._arrived.append(message.reply)
            elif int(headers.get("Nats-Last-Consumer", 0)) > self._number:
                self._broken = "the end of the log was not delivered"
        else:
            self._take_message(message)
        self._wake.set()

    def _take_message(self, message: Msg) -> None:
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.seq.number.time.pending[.random]
        tokens = message.reply.split(".")
        at = 5 if len(tokens) == 9 else 7
        try:
            seq, number, pending = int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3])
        except (ValueError, IndexError):
            return  # not from JetStream
        if seq <= self.seq:
            return
        if number != self._number + 1:
            self._broken = f"message {number} came after {self._number}"
        if self._broken:
            return
        self._number, self.seq = number, seq
        self._arrived.append(Item(seq, message.data, pending))

    def interrupt(self, why: str) -> None:
        self._broken = why
        self._wake.set()

    @property
    def waiting(self) -> bool:
        """Whether something has arrived that was not read."""
        return bool(self._arrived)

    async def take(self, seconds: float) -> list[Item]:
        """All that has arrived; nothing, if nothing does in this time. Raises Interrupted."""
        if not self._arrived and not self._broken:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()
        found = [item for item in self._arrived if isinstance(item, Item)]
        wanted = [item for item in self._arrived if isinstance(item, str)]
        self._arrived.clear()
        for subject in wanted:
            with contextlib.suppress(NATSError):
                await self._log.connection.publish(subject)
        if found:
            return found
        if self._broken:
            raise Interrupted(self._broken)
        if self._generation != self._log.connection.generation:
            raise Interrupted("the connection was opened again")
        if asyncio.get_running_loop().time() - self._heard > self._timing.watchdog:
            raise Interrupted(f"nothing was heard for {self._timing.watchdog:g} s")
        return found


def _seconds(first: str, last: str) -> float:
    """Between two times of JetStream, which have nanoseconds."""
    try:
        began, ended = (
            datetime.fromisoformat(f"{each.rstrip('Z')[:26]}+00:00") for each in (first, last)
        )
    except ValueError:
        return float("inf")
    return max(0.0, (ended - began).total_seconds())
