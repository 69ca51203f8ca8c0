"""Which proxy a client uses: that of the environment, but none to this machine."""

import contextlib
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether the host of the URL is this machine. No proxy leads there: it is another machine."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
