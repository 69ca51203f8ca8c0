"""Tokens: what they permit, and what is not a valid one."""

import asyncio
import base64
import hmac
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from brain.access import jwks as key_sets
from brain.access.grants import Grant, TokenError, bearer
from brain.access.jwks import (
    MAX_JWKS,
    RELOAD,
    KeySet,
    KeySetError,
    Secret,
    parse_jwks,
)
from brain.access.tokens import MAX_TOKEN, Tokens
from tests.support.issuer import SECRET, Key, hosting, jwks, token
from tests.support.patience import PATIENCE


def tokens(**options: Any) -> Tokens:
    return Tokens(Secret(SECRET), **options)


async def refused(checked: Tokens, text: str | None) -> TokenError:
    with pytest.raises(TokenError) as caught:
        await checked.check(text)
    said = str(caught.value)
    assert (
        text is None
        or len(text) < 9
        or not any(text[i : i + 9] in said for i in range(len(text) - 9))
    ), said
    assert len(said.encode()) <= 123, "it fits into a close frame"
    return caught.value


# What a token permits


async def test_a_token_without_a_scope_permits_reading() -> None:
    expires = int(time.time()) + 60
    grant = await tokens().check(token(exp=expires, scope=None))
    assert grant == Grant(expires, frozenset({"read"}))
    assert (await tokens().check(token(scope="openid write read"))).scopes >= {"read", "write"}
    assert (await tokens().check(token(scope=["write"]))).scopes == {"write"}
    assert (await tokens().check(token(scope=""))).scopes == set()


async def test_a_token_can_be_limited_to_some_runs() -> None:
    grant = await tokens().check(token(agent="one", task_id=["a", "b"]))
    assert grant.within == {"agent": {"one"}, "task_id": {"a", "b"}}
    assert grant.narrowed("agent", ()) == {"one"}
    assert grant.narrowed("task_id", ["a"]) == {"a"}
    for name, wanted in [("agent", ["two"]), ("agent", ["one", "two"]), ("task_id", ["a", "c"])]:
        with pytest.raises(TokenError) as caught:
            grant.narrowed(name, wanted)
        assert caught.value.status == 403


# What is not a token


def forged(header: dict[str, Any], claims: Any, signature: bytes = b"") -> str:
    parts = [
        json.dumps(header).encode(),
        claims if isinstance(claims, bytes) else json.dumps(claims).encode(),
        signature,
    ]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


LATER = {"exp": 4_000_000_000, "scope": "read write"}

NO_TOKENS: dict[str, str | None] = {
    "nothing": None,
    "an empty text": "",
    "a word": "hunter2hunter2",
    "dots": "..",
    "three words": "a.b.c",
    "unsigned": forged({"alg": "none"}, LATER),
    "unsigned, in capitals": forged({"alg": "NONE"}, LATER),
    "signed with another secret": token("another secret of the tests, as long as that"),
    "signed with HS512": token(algorithm="HS512", secret=SECRET * 2),
    "of no algorithm": forged({"typ": "JWT"}, LATER),
    "of a list of algorithms": forged({"alg": ["HS256"]}, LATER),
    "with a key of its own": forged({"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}, LATER),
    "with a key elsewhere": forged({"alg": "HS256", "jku": "http://127.0.0.1:1/"}, LATER),
    "a header that is nested beyond all": base64.urlsafe_b64encode(b"[" * 2900).decode() + "..",
    "a header that is a list": base64.urlsafe_b64encode(b"[1]").decode() + "..",
    "too long": token(x="x" * MAX_TOKEN),
    "not ASCII": token() + "é",
    "expired": token(exp=time.time() - 1),
    "expired by a hair": token(exp=time.time()),
    "without an end": token(exp=None),
    "ends never": token(exp="never"),
    "not yet": token(nbf=time.time() + 3600),
    "of another shape": token(scope={"read": True}),
    "for an agent that is a number": token(agent=7),
    "for no agent": token(agent=[]),
    "for an agent without a name": token(agent=[""]),
    "for too many": token(agent=[str(i) for i in range(101)]),
}


@pytest.mark.parametrize("name", NO_TOKENS)
async def test_an_invalid_token_is_rejected(name: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        assert (await refused(tokens(), NO_TOKENS[name])).status == 401


async def test_an_expiry_of_infinity_is_rejected() -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
    for text in (b'{"exp":Infinity}', b'{"exp":NaN}', b'{"exp":true}', b'{"exp":1e400}'):
        signed = f"{header}.{base64.urlsafe_b64encode(text).decode().rstrip('=')}"
        signature = (
            base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), signed.encode(), "sha256"))
            .decode()
            .rstrip("=")
        )
        await refused(tokens(), f"{signed}.{signature}")


async def test_configured_audience_and_issuer_are_required() -> None:
    checked = tokens(audience="brain", issuer="https://idp.example")
    await checked.check(token(aud=["others", "brain"], iss="https://idp.example"))
    await tokens().check(token(aud="others", iss="anyone"))
    for claims in (
        {},
        {"aud": "brain"},
        {"aud": "others", "iss": "https://idp.example"},
        {"aud": "brain", "iss": "x"},
    ):
        await refused(checked, token(**claims))


@pytest.mark.parametrize("claim", ["agent", "task_id"])
@pytest.mark.parametrize("text", ["a\ud800", "\0", "a\0"])
async def test_a_claim_that_no_run_can_have_is_rejected(claim: str, text: str) -> None:
    claims: tuple[dict[str, Any], ...] = ({claim: text}, {claim: ["a", text]})
    for each in claims:
        await refused(tokens(), token(**each))


async def test_the_clock_of_the_issuer_may_be_a_little_ahead() -> None:
    await tokens().check(token(iat=time.time() + 5, nbf=time.time() + 5))


# Where a request has it


def test_a_token_comes_from_the_header_or_the_subprotocol() -> None:
    assert bearer([(b"authorization", b"Bearer abc")]) == "abc"
    assert bearer([(b"authorization", b"bearer  abc ")]) == "abc"
    assert bearer([(b"authorization", b"Basic abc")]) is None
    assert bearer([(b"sec-websocket-protocol", b"bearer, abc")]) == "abc"
    assert bearer([(b"sec-websocket-protocol", b"chat, bearer")]) is None
    assert bearer([(b"cookie", b"token=abc"), (b"x-token", b"abc")]) is None
    with pytest.raises(TokenError):
        bearer([(b"authorization", b"Bearer abc"), (b"sec-websocket-protocol", b"bearer, abc")])


# Key sets


ONE, TWO, RSA = Key("one"), Key("two", "EdDSA"), Key("three", "RS256")


async def test_each_key_is_for_its_own_algorithm(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(ONE, TWO, RSA))
    checked = Tokens(KeySet(str(file)))
    for key in (ONE, TWO, RSA):
        assert (await checked.check(key.token())).scopes == {"read"}
    await refused(
        checked, token(ONE.private, algorithm="ES256")
    )  # names no key, and there are three
    await refused(checked, token(ONE.private, algorithm="ES256", kid="two"))
    await refused(checked, token(RSA.private, algorithm="PS256", kid="three"))
    await refused(checked, token(RSA.private, algorithm="RS512", kid="three"))
    # The old trick: the public key, which everybody has, as the secret of HS256.
    public = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = forged({"alg": "HS256", "kid": "three"}, LATER).rpartition(".")[0]
    signature = (
        base64.urlsafe_b64encode(hmac.digest(public, unsigned.encode(), "sha256"))
        .decode()
        .rstrip("=")
    )
    await refused(checked, f"{unsigned}.{signature}")


async def test_the_only_key_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(jwks(ONE))
    await Tokens(KeySet(str(tmp_path / "keys"))).check(token(ONE.private, algorithm="ES256"))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":7}',
        b'{"keys":[]}',
        b'{"keys":[7,{}]}',
        b"[" * 9000,
        b"\xff",
        b'{"keys":[{"kty":"oct","k":"AAAA"}]}',
    ],
)
def test_an_invalid_key_set_raises(wrong: bytes) -> None:
    with pytest.raises(KeySetError):
        parse_jwks(wrong)


def test_unknown_and_weak_keys_of_a_set_are_ignored() -> None:
    odd: list[dict[str, Any]] = [
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "of the future", "kid": "x"},
        {**ONE.jwk, "kid": "for encryption", "use": "enc"},
        {**ONE.jwk, "kid": "broken", "x": "AA"},
        Key("weak", "RS256", bits=1024).jwk,
    ]
    assert set(parse_jwks(json.dumps({"keys": [*odd, ONE.jwk]}).encode())) == {"one"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_new_key_is_loaded_once_and_invented_keys_cause_no_loads() -> None:
    clock = Clock()
    with hosting(jwks(ONE)) as host:
        checked = Tokens(KeySet(host.url, clock))
        await checked.keys.begin()
        await asyncio.gather(*(checked.check(ONE.token()) for _ in range(20)))
        assert host.asked == 1
        host.body = jwks(ONE, TWO)
        for _ in range(20):
            await refused(checked, TWO.token())
        assert host.asked == 1, "not before a while has passed"
        clock.now += RELOAD
        await asyncio.gather(*(checked.check(TWO.token()) for _ in range(20)))
        assert host.asked == 2
        await asyncio.gather(*(refused(checked, Key("made up").token()) for _ in range(20)))
        assert host.asked == 2
        host.body = jwks(TWO)
        clock.now += key_sets.FRESH
        await checked.check(ONE.token())  # as was known; and meanwhile it is asked
        async with asyncio.timeout(PATIENCE):
            while host.asked < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        await refused(checked, ONE.token())


async def test_a_key_host_that_fails_is_slow_or_sends_too_much_blocks_nobody() -> None:
    clock = Clock()
    with hosting(jwks(ONE)) as host, capture_logs() as logs:
        host.status = 500
        checked = Tokens(KeySet(host.url, clock, timeout=0.5))
        assert (await refused(checked, ONE.token())).status == 503
        assert (await refused(checked, ONE.token())).status == 503
        assert host.asked == 1
        for status in (302, 200):
            clock.now += RELOAD
            host.status = status
            host.body = b"x" * (MAX_JWKS + 1)
            assert (await refused(checked, ONE.token())).status == 503
        host.body = jwks(ONE)
        host.speaks.clear()
        clock.now += RELOAD
        ticks = 0
        waiting = asyncio.create_task(refused(checked, ONE.token()))
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert waiting.result().status == 503
        assert ticks > 5, "the loop turned meanwhile"
        assert host.asked == 4, "and no redirect was followed"
        host.speaks.set()
        clock.now += RELOAD
        await checked.check(ONE.token())
        host.status = 500
        clock.now += key_sets.FRESH
        await checked.check(ONE.token())
        await asyncio.sleep(0.2)
        await checked.check(ONE.token())  # what is held counts on while its host is away
    assert [log["detail"] for log in logs if "detail" in log] == [
        "its host answers 500",
        "its host answers 302",
        f"a key set has at most {MAX_JWKS} bytes",
        "TimeoutError",
        "its host answers 500",
    ]
