"""`brain token`: what it prints is accepted by a Brain with the same settings."""

import asyncio
import time
from typing import Any

import jwt
import pytest
from typer.testing import CliRunner

from brain.access.jwks import Secret
from brain.access.tokens import Tokens
from brain.cli.commands import app
from tests.support.issuer import SECRET
from tests.support.patience import PATIENCE


def run(*arguments: str, code: int = 0, **settings: str) -> Any:
    environment = {f"BRAIN_{name.upper()}": value for name, value in settings.items()}
    result = CliRunner().invoke(app, ["token", *arguments], env=environment)
    assert result.exit_code == code, result.output
    return result


async def grant(token: str, **options: str) -> Any:
    return await Tokens(Secret(SECRET), **options).check(token.strip())  # type: ignore[arg-type]


def test_it_permits_what_was_asked_for_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    before = time.time()
    result = run(
        *("--scope", "write", "--agent", "a", "--agent", "b", "--task", "é", "--minutes", "60"),
        jwt_secret=SECRET,
    )
    found = asyncio.run(grant(result.stdout))
    assert found.scopes == {"write"}
    assert found.within == {"agent": {"a", "b"}, "task_id": {"é"}}
    assert before + 3599 <= found.expires <= before + 3600 + PATIENCE
    assert "for write, until 20" in capfd.readouterr().err


def test_by_default_it_is_for_reading_and_an_hour() -> None:
    found = asyncio.run(grant(run(jwt_secret=SECRET).stdout))
    assert (found.scopes, found.within) == ({"read"}, {})
    both = asyncio.run(grant(run("--scope", "read,write", jwt_secret=SECRET).stdout))
    assert both.scopes == {"read", "write"}


def test_it_has_the_audience_and_the_issuer_of_the_settings() -> None:
    token = run(jwt_secret=SECRET, jwt_audience="brain", jwt_issuer="me").stdout
    asyncio.run(grant(token, audience="brain", issuer="me"))
    claims = jwt.decode(token.strip(), options={"verify_signature": False})
    assert (claims["aud"], claims["iss"]) == ("brain", "me")


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        ([], {}, "BRAIN_JWT_SECRET is not set, and without it Brain requires no token"),
        ([], {"jwt_jwks": "keys.json"}, "BRAIN_JWT_JWKS='keys.json' has the public keys only"),
        (["--agent", ""], {"jwt_secret": SECRET}, "claim agent has 1 to 100 texts of 1 to 1024"),
        (["--task", "x" * 1025], {"jwt_secret": SECRET}, "claim task_id has 1 to 100 texts"),
        (
            [part for i in range(5) for part in ("--agent", f"{i}" * 1000)],
            {"jwt_secret": SECRET},
            "at most 4096 characters",
        ),
        (["--agent", "\udcff"], {"jwt_secret": SECRET}, "unpaired surrogate"),
    ],
)
def test_an_error_says_what_to_do(
    arguments: list[str], settings: dict[str, str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(*arguments, code=2, **settings)
    assert says in result.output + capfd.readouterr().err
    assert result.stdout == ""
