"""Where `watch` and `wait` find Brain, and the credentials that they send."""

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from brain.cli.console import fail
from brain.config import Settings
from brain.validators import brain_url, without_password

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    """The URL of /ws, without a password: it is printed."""
    token: str | None
    headers: dict[str, str]

    @classmethod
    def find(cls, given: str | None, settings: Settings) -> "Target":
        """A URL on the command line, else BRAIN_URL, else this machine. Exits with 2."""
        if given is not None:
            try:
                url = brain_url(given)
            except ValueError as error:
                fail(f"{without_password(given)!r} is not where Brain is: {error}")
        else:
            url = settings.url or _here(settings)
        token = settings.token.get_secret_value() if settings.token else None
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        if not user:
            return cls(url, token, {})
        if token is not None:
            fail(
                f"{without_password(url)!r} and BRAIN_TOKEN exclude each other, because a request "
                "has one header Authorization: unset BRAIN_TOKEN, or leave the user out of the URL"
            )
        basic = b64encode(unquote(user).encode()).decode()
        return cls(parts._replace(netloc=host).geturl(), None, {"Authorization": f"Basic {basic}"})


def _here(settings: Settings) -> str:
    if not settings.port:
        fail("BRAIN_PORT=0 means a free port: set BRAIN_URL to the one that `brain serve` prints")
    host = next((each for each in settings.host if each not in WILDCARDS), "localhost")
    return f"ws://{f'[{host}]' if ':' in host else host}:{settings.port}/ws"
