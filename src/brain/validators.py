"""How the text of an environment variable becomes the value of a setting.

Each function raises ValueError with the rule that the text breaks. pydantic adds the variable.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from brain.access.addresses import Authority, Origin
from brain.contract.messages import STATUSES, Status
from brain.postgres.database_url import parse_url
from brain.postgres.statuses import STRICT, fold

T = TypeVar("T")

MIN_SECRET = 32
"""Bytes of BRAIN_JWT_SECRET (RFC 7518, section 3.2)."""

MAX_WORKERS = 64
"""Of one Brain. More than the cores of a machine only cost memory."""


def from_text(parse: Callable[[str], T]) -> BeforeValidator:
    """Parse a value that is a string, and pass any other on."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def from_list(parse: Callable[[str], T]) -> BeforeValidator:
    """Parse each item of a comma-separated list."""
    return from_text(
        lambda text: tuple(parse(item.strip()) for item in text.split(",") if item.strip())
    )


def path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise ValueError(f"{user} is the home of no user of this machine") from None


def workers(text: str) -> int | Literal["auto"]:
    if text.strip().lower() == "auto":
        return "auto"
    if (
        not text.strip().isascii()
        or not text.strip().isdecimal()
        or not 1 <= int(text) <= MAX_WORKERS
    ):
        raise ValueError(f"it is 1 to {MAX_WORKERS} workers, or auto: one for each core")
    return int(text)


def interface(text: str) -> str:
    literal = text.strip("[]")
    try:
        Authority.parse(f"[{literal}]" if ":" in literal else literal)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address to listen on, such as 127.0.0.1 or ::1, without a port"
        ) from None
    return literal


def host(text: str) -> str:
    if text != "*":
        Authority.parse_setting(text)
    return text


def origin(text: str) -> str:
    text = text.lower()
    text = text if text.endswith("://") else text.removesuffix("/")
    if text not in ("*", "null", "file://"):
        Origin.parse(text)
    return text


PORT: Final = 5221
"""Of a Brain whose URL names none, and no scheme either."""

_SCHEMES: Final = {"": "ws", "ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


def brain_url(text: str) -> str:
    """The URL of the /ws that a person means: `myhost`, `myhost:5221`, `https://brain.example`.

    A URL of ws or wss is that of the WebSocket itself; of any other, the path is what /ws is below.
    """
    text = text.strip()
    match = re.match(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE)
    found, scheme = (match[0], match[1].lower()) if match else ("", "")
    rest = text.removeprefix(found)
    try:
        parts = urlsplit(f"//{_in_brackets(rest)}")
        user, at, host = parts.netloc.rpartition("@")
        host = f"localhost{host}" if not found and re.fullmatch(r":\d+", host) else host
        host = host if host.isascii() else host.encode("idna").decode()
        port = Authority.parse(host).port
        valid = (
            scheme in _SCHEMES
            and text.isprintable()
            and " " not in text
            and port != 0
            and (not at or ":" in user)
            and not (host.isdecimal() and not found)
        )
    except ValueError:  # UnicodeError too
        valid = False
    if not valid:
        raise ValueError(
            f"Brain is at host:port, such as myhost:{PORT}, or at a URL of ws, wss, http or https, "
            f"such as ws://myhost:{PORT}/ws"
        )
    if not found and port is None:
        host = f"{host.removesuffix(':')}:{PORT}"
    path = parts.path.rstrip("/")
    if not path or (not scheme.startswith("ws") and not path.endswith("/ws")):
        path += "/ws"
    return parts._replace(
        scheme=_SCHEMES[scheme], netloc=user + at + host, path=path, fragment=""
    ).geturl()


def _in_brackets(text: str) -> str:
    """An IPv6 address alone may be without them."""
    host, slash, path = text.partition("/")
    return f"[{host}]{slash}{path}" if host.count(":") > 1 and not set("[@") & set(host) else text


def without_password(text: str) -> str:
    """A URL for an error message."""
    return re.sub(r"^([a-z]+://)?[^?#]*@", r"\1***@", text, flags=re.IGNORECASE)


def database_url(text: str) -> SecretStr:
    # A secret read from a file often ends in a newline.
    return SecretStr(parse_url(text.strip() or "blank"))


def nats_url(text: str) -> SecretStr:
    """Of one server. The text of the error never contains the URL: it may have a password."""
    parts = urlsplit(text if "://" in text else f"nats://{text}")
    try:
        valid = parts.scheme in ("nats", "tls", "ws", "wss") and bool(parts.hostname)
        valid = valid and parts.port != 0 and text.isprintable() and " " not in text
    except ValueError:
        valid = False
    if not valid or parts.path.strip("/") or parts.query:
        raise ValueError(
            "a NATS server is nats://host:4222, or tls://host:4222, with user:password@ or a "
            "token@ before the host"
        )
    return SecretStr(parts.geturl())


def nats_stream(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ValueError("the name of a stream is 1 to 64 letters, digits, - and _")
    return text


def jwt_secret(text: str) -> SecretStr:
    text = text.strip()
    if len(text.encode()) < MIN_SECRET:
        raise ValueError(
            f"a secret has {MIN_SECRET} bytes or more (RFC 7518, 3.2): "
            "openssl rand -base64 32 makes one"
        )
    return SecretStr(text)


def token(text: str) -> SecretStr:
    text = text.strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token is one word of ASCII")
    return SecretStr(text)


def key_set(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    if colon and (scheme not in ("http", "https") or not rest or "@" in rest.partition("/")[0]):
        raise ValueError("a key set is a file, or a URL of http or https without a password")
    return text


def status_map(text: str) -> dict[str, Status]:
    statuses: dict[str, Status] = {status: status for status in STATUSES}
    found: dict[str, Status] = {}
    folded: dict[str, Status] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        if pair.lower() == "strict":
            found |= STRICT
            folded |= STRICT
            continue
        word, equals, status = (part.strip() for part in pair.partition("="))
        if not word or not equals or status not in statuses:
            raise ValueError(
                f"{pair!r} is not word=status with a status of {', '.join(STATUSES)}; "
                "`strict` stands for these four words alone"
            )
        meant = folded.setdefault(fold(word), statuses[status])
        if meant != status:
            raise ValueError(f"{word!r} cannot mean both {meant} and {status}")
        found[word] = meant
    return found
