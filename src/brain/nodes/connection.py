"""The connection to NATS: one that comes back for ever, and requests over it.

The client library reconnects by itself, but gives up when the server refuses its credentials; then
this one begins again. It may also keep a cancellation to itself, and wait without a bound for a
server that reads nothing. So only this module calls what the library waits for: each call heeds
cancellations (cancellation.py) and has a deadline.
test_a_cancellation_that_meets_an_answer_counts
"""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from brain.contract.errors import BrainError
from brain.nodes.timing import NodeTiming
from brain.postgres.cancellation import cancel, heeded

T = TypeVar("T")

log = structlog.get_logger()

PINGS: Final[dict[str, Any]] = {"ping_interval": 2, "max_outstanding_pings": 2}
"""A connection over which nothing comes is given up after 6 s at the latest."""

AGAIN = 0.2
"""Seconds between two tries to connect."""

STUCK = 10.0
"""Seconds without a connection after which the client is given up: it connects again every AGAIN,
unless it waits until a server that reads nothing has taken what was written to it."""

SLACK = 0.5
"""Seconds that a call may take longer than the library waits for its answer."""


class NATSError(BrainError):
    """NATS cannot be used now"""


class Unanswered(NATSError):  # noqa: N818 - a state of NATS, not an error of Brain
    """NATS has not answered in time, or cannot be reached."""


class Refused(NATSError):  # noqa: N818 - the same
    """NATS has answered that it does not do this. `code` is its `err_code`."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class CredentialsError(NATSError):
    """The file of BRAIN_NATS_CREDENTIALS or BRAIN_NATS_CA cannot be used."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where NATS is, and how a node identifies itself there."""

    servers: Sequence[str]
    """URLs. The first that has user and password, or a token, has them for all."""
    credentials: Path | None = None
    """A file with a JWT and the seed of its key, as `nsc` writes it."""
    ca: Path | None = None
    """The certificates that sign the server's, if the system does not know them."""

    def options(self) -> dict[str, Any]:
        """For the client library. Raises CredentialsError."""
        # The library takes what is percent-encoded in a URL as it stands.
        found = [urlsplit(each) for each in self.servers]
        options: dict[str, Any] = {
            "servers": [
                each._replace(netloc=each.netloc.rpartition("@")[2]).geturl() for each in found
            ]
        }
        if named := next((each for each in found if each.username), None):
            user = unquote(named.username or "")
            if named.password is None:
                options["token"] = user
            else:
                options["user"], options["password"] = user, unquote(named.password)
        if self.ca is not None or any(each.startswith("tls:") for each in self.servers):
            try:
                options["tls"] = ssl.create_default_context(cafile=self.ca)
            except (OSError, ssl.SSLError) as error:
                raise CredentialsError(f"BRAIN_NATS_CA={str(self.ca)!r}: {error}") from None
        if self.credentials is not None:
            jwt, seed = read_credentials(self.credentials)
            options["user_jwt_cb"] = jwt.encode
            options["signature_cb"] = lambda nonce: base64.b64encode(seed.sign(nonce.encode()))
        return options


def read_credentials(path: Path) -> tuple[str, Ed25519PrivateKey]:
    """Raises CredentialsError."""
    try:
        lines = path.read_text().splitlines()
        jwt = lines[_after(lines, "BEGIN NATS USER JWT")].strip()
        seed = lines[_after(lines, "BEGIN USER NKEY SEED")].strip()
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        return jwt, Ed25519PrivateKey.from_private_bytes(raw[2:34])  # prefix, key, checksum
    except (OSError, ValueError, IndexError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it has no JWT and seed of a key"
        raise CredentialsError(f"BRAIN_NATS_CREDENTIALS={str(path)!r}: {detail}") from None


def _after(lines: Sequence[str], words: str) -> int:
    return next(i for i, line in enumerate([*lines, words]) if words in line) + 1


class Connection:
    """`async with` keeps it open."""

    def __init__(self, access: Access, name: str, timing: NodeTiming) -> None:
        self.detail = "connecting"
        """Why it is not open."""
        self.generation = 0
        """How often it was opened: what was subscribed over an earlier one may have missed
        something."""
        self._access = access
        self._name = name
        self._timing = timing
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._failures = 0

    @property
    def is_open(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """Raises Unanswered."""
        if self._client is None or not self._client.is_connected:
            raise Unanswered(f"no connection to NATS: {self.detail}")
        return self._client

    async def __aenter__(self) -> Self:
        """Does not wait until it is open. Raises CredentialsError."""
        options = self._access.options()
        self._task = asyncio.create_task(self._keep(options), name="nats")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await cancel(self._task)
        await self._close()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            try:
                async with asyncio.timeout(1):
                    await heeded(client.close())
            except Exception:  # noqa: BLE001 - whatever the library raises
                _abort(client)

    async def _keep(self, options: dict[str, Any]) -> None:
        while True:
            self._closed.clear()
            self._client = client = Client()
            try:
                await heeded(
                    client.connect(
                        **options,
                        **PINGS,
                        name=self._name,
                        connect_timeout=2,
                        reconnect_time_wait=AGAIN,  # type: ignore[arg-type]
                        max_reconnect_attempts=-1,
                        error_cb=self._failed,
                        disconnected_cb=self._lost,
                        reconnected_cb=self._opened,
                        closed_cb=self._ended,
                    )
                )
                await self._opened()
                await self._until_over(client)
            except (OSError, nats.errors.Error, TimeoutError) as error:
                self.detail = _line(error)
            except Exception as error:
                log.exception("nats failed")
                self.detail = _line(error)
            await self._close()
            await asyncio.sleep(AGAIN)

    async def _until_over(self, client: Client) -> None:
        """Until the client has given up, or is stuck."""
        loop = asyncio.get_running_loop()
        connected = loop.time()
        while not self._closed.is_set() and loop.time() - connected < STUCK:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STUCK / 10):
                    await self._closed.wait()
            if client.is_connected:
                connected = loop.time()

    async def _opened(self) -> None:
        self.generation += 1
        self.detail = ""

    async def _failed(self, error: Exception) -> None:
        self._failures += 1
        self.detail = _line(error)

    async def _lost(self) -> None:
        self.detail = self.detail or "the connection was lost"

    async def _ended(self) -> None:
        self._closed.set()

    async def request(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own
    ) -> Msg:
        """Raises Unanswered."""
        before = self._failures
        seconds = timeout or self._timing.request
        try:
            return await self._bounded(
                self.client.request(subject, body, timeout=seconds, headers=headers), seconds
            )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            # What is forbidden is not answered: NATS says so to the connection.
            why = f" ({self.detail})" if self._failures > before and self.detail else ""
            raise Unanswered(f"{subject}: {_line(error)}{why}") from error

    async def publish(self, subject: str, body: bytes = b"", *, reply: str = "") -> None:
        """Raises Unanswered."""
        try:
            await self._bounded(self.client.publish(subject, body, reply=reply))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unanswered(f"{subject}: {_line(error)}") from error

    async def subscribe(
        self,
        subject: str,
        take: Callable[[Msg], Awaitable[None]],
        *,
        keep_all: bool = False,
    ) -> Subscription:
        """What has arrived and was not taken has the library's bounds, beyond which it is lost, or
        none. Raises Unanswered.
        """
        limits: dict[str, Any] = {}
        if keep_all:
            limits = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
        try:
            return await self._bounded(self.client.subscribe(subject, cb=take, **limits))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unanswered(f"{subject}: {_line(error)}") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """The server forgets it with the connection, if it cannot be told."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._bounded(subscription.unsubscribe())

    async def _bounded(self, call: Awaitable[T], seconds: float = 0.0) -> T:
        """The library bounds the wait for an answer, but not that for a socket which takes what is
        asked. Raises what the call raises, and TimeoutError.
        """
        async with asyncio.timeout((seconds or self._timing.request) + SLACK):
            return await heeded(call)

    async def ask(self, subject: str, **question: Any) -> dict[str, Any]:
        """A request to JetStream's API. Raises Unanswered, Refused."""
        answer = await self.request(f"$JS.API.{subject}", json.dumps(question).encode())
        return answered(answer)


def _abort(client: Client) -> None:
    """The library has no name for it: it closes a connection once all is written."""
    with contextlib.suppress(AttributeError):
        client._transport._io_writer.transport.abort()  # type: ignore[union-attr]  # noqa: SLF001


def answered(answer: Msg) -> dict[str, Any]:
    """Raises Refused, Unanswered."""
    try:
        document: dict[str, Any] = json.loads(answer.data)
    except ValueError:
        raise Unanswered(
            f"something else than JetStream has answered: {answer.data[:40]!r}"
        ) from None
    if "error" in document:
        error = document["error"]
        raise Refused(error.get("err_code", 0), error.get("description", "an error"))
    return document


def _line(error: Exception) -> str:
    """An error of the library in one line. Some have no text."""
    text = " ".join(str(error).split()).removeprefix("nats: ").strip("'")
    return text or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
