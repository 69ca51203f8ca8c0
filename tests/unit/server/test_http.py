"""The HTTP protocol on real sockets, without a database."""

from ipaddress import ip_network
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.access.addresses import Address
from brain.access.grants import Grant, TokenError
from brain.access.limits import ConnectionLimiter
from brain.access.policy import Headers, Policy
from brain.access.rejections import Rejection
from tests.support.in_process_server import in_process_server
from tests.support.wire import Peer, get, request


class CountingPolicy(Policy):
    def __init__(self) -> None:
        super().__init__(trusted_proxies=[ip_network("127.0.0.1/32")])
        self.parsed = 0

    def client_address(self, peer: str, headers: Headers) -> Any:
        self.parsed += 1
        return super().client_address(peer, headers)


def noting(clients: list[Any]) -> Any:
    """An application that answers 204, and notes the address of each client."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        clients.append(scope["client"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_x_forwarded_for_is_parsed_once_and_handed_to_the_application() -> None:
    clients: list[Any] = []
    async with in_process_server(app=noting(clients)) as it:
        it.state.policy = policy = CountingPolicy()
        async with await Peer.open(it.port) as peer:
            peer.send(get("/", "localhost", "X-Forwarded-For: 192.168.1.7"))
            assert (await peer.answer()).status == 204
            assert clients == [("192.168.1.7", 0)]
            assert policy.parsed == 1
            peer.send(request(X_Forwarded_For="192.168.1.8"))
            assert (await peer.answer()).status == 101
            assert policy.parsed == 2
            assert [each.peer for each in it.connections] == ["192.168.1.8"]


async def test_without_a_proxy_the_application_sees_the_peer_and_its_port() -> None:
    clients: list[Any] = []
    async with in_process_server(app=noting(clients)) as it, await Peer.open(it.port) as peer:
        peer.send(get("/", "localhost", "X-Forwarded-For: 192.168.1.7"))
        assert (await peer.answer()).status == 204
        assert clients == [peer.writer.get_extra_info("sockname")]


class CountingTokens:
    """Rejects every token."""

    def __init__(self) -> None:
        self.checked = 0

    async def check(self, _token: str) -> Grant:
        self.checked += 1
        raise TokenError("token", "no")


class CountingLimiter(ConnectionLimiter):
    def __init__(self) -> None:
        super().__init__(Policy(), max_connections=0, max_connections_per_ip=0)
        self.waits = 0

    def wait(self, client: Address, now: float) -> float | Rejection:
        self.waits += 1
        return super().wait(client, now)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(method="PUT", Authorization="Bearer x"), 405),
        (request(version="1.0", Authorization="Bearer x"), 505),
        (request(Sec_WebSocket_Version="8", Authorization="Bearer x"), 426),
        (request(Sec_WebSocket_Key="x", Authorization="Bearer x"), 400),
        (request("/ws?x=1", Authorization="Bearer x"), 400),
        (request(Authorization="Bearer x"), 401),
    ],
)
async def test_cheap_checks_come_before_the_turn_and_the_token(sent: bytes, status: int) -> None:
    async with in_process_server() as it:
        tokens: Any = CountingTokens()
        it.state.tokens = tokens
        limiter = it.state.limiter = CountingLimiter()
        async with await Peer.open(it.port) as peer:
            peer.send(sent)
            assert (await peer.answer()).status == status
        assert (tokens.checked, limiter.waits) == ((1, 1) if status == 401 else (0, 0))


@pytest.mark.parametrize("fails", ["token", "log"])
async def test_an_upgrade_that_fails_by_a_bug_leaves_no_connection_open(fails: str) -> None:
    """Nobody reads from it at that moment: its end would never be noticed."""

    class Broken:
        async def check(self, _token: str) -> Grant:
            raise RuntimeError("a bug")

    async def broken(_since: int) -> bool:
        raise RuntimeError("a bug")

    async with in_process_server() as it:
        if fails == "token":
            tokens: Any = Broken()
            it.state.tokens = tokens
        else:
            it.state.is_ahead, it.state.reached = lambda _: True, broken
        with capture_logs() as logs:
            async with await Peer.open(it.port) as peer:
                peer.send(request("/ws?since=2026-01-01T00:00:00Z", Authorization="Bearer x"))
                assert await peer.rest() == b""
        assert [line["event"] for line in logs] == ["connection failed"]
