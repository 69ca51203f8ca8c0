"""Health checks. A probe must get the verdict about this process, whoever runs it.

Load balancers and orchestrators call Brain by an address, a pod's name or no name at all (`option
httpchk` of HAProxy sends HTTP/1.0 without a Host), and keep calling when every slot is taken.
"""

from typing import Final

from brain.server.handshake import target_path

PATHS: Final = ("/healthz", "/readyz")

BARE: Final = "brain.bare"
"""In the ASGI scope of a probe without a Host of this server: answer the verdict, no detail."""


def is_probe(method: bytes, target: bytes) -> bool:
    if method not in (b"GET", b"HEAD"):
        return False
    path = target_path(target)
    return path is not None and path.removesuffix("/") in PATHS
