"""`brain token`: a token that a Brain with the same BRAIN_JWT_SECRET accepts."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from brain.access.grants import Scope, TokenError
from brain.cli.console import fail
from brain.cli.lines import say
from brain.config import Settings

MAX_MINUTES: Final = 366 * 24 * 60
"""A year: nobody can take a token back before it expires, except by another secret."""


async def print_token(
    settings: Settings,
    scopes: Sequence[Scope],
    agents: Sequence[str],
    tasks: Sequence[str],
    minutes: int,
) -> None:
    """The token on standard output, what it permits on standard error. Exits with 2."""
    if settings.jwt_jwks is not None:
        fail(
            f"BRAIN_JWT_JWKS={settings.jwt_jwks!r} has the public keys only: get a token from the "
            "identity provider that has the private ones"
        )
    if settings.jwt_secret is None:
        fail(
            "BRAIN_JWT_SECRET is not set, and without it Brain requires no token. To require "
            'tokens: export BRAIN_JWT_SECRET="$(openssl rand -base64 32)", for `brain serve` too'
        )
    # The imports take as long as all others, and no other command needs them.
    import jwt  # noqa: PLC0415

    from brain.access.jwks import Secret  # noqa: PLC0415
    from brain.access.tokens import MAX_TOKEN, Tokens  # noqa: PLC0415

    secret = settings.jwt_secret.get_secret_value()
    keys = Secret(secret)
    issued = int(time.time())
    expires = issued + 60 * minutes
    claims: dict[str, Any] = {
        "iat": issued,
        "exp": expires,
        "scope": " ".join(dict.fromkeys(scopes)),
        "agent": list(agents),
        "task_id": list(tasks),
        "aud": settings.jwt_audience,
        "iss": settings.jwt_issuer,
    }
    key, algorithm = await keys.find(None)
    try:
        token = jwt.encode({name: value for name, value in claims.items() if value}, key, algorithm)
        await Tokens(keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer).check(token)
    except UnicodeEncodeError:
        fail("--agent and --task are texts in UTF-8")
    except TokenError as error:
        fail(f"Brain would refuse this token: {error}; fewer or shorter --agent and --task help")
    assert len(token) <= MAX_TOKEN
    print(token)
    until = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    only = [f"agent {each!r}" for each in agents] + [f"task_id {each!r}" for each in tasks]
    say(f"for {claims['scope']}, until {until}" + (f", only {', '.join(only)}" if only else ""))
