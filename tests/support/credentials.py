"""Operators, accounts and users of NATS, and their files, as `nsc` writes them."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIXES = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
SEED = 18 << 3
JETSTREAM = ("mem_storage", "disk_storage", "streams", "consumer")
NO_JETSTREAM = dict.fromkeys(JETSTREAM, 0)
LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
UNLIMITED = dict.fromkeys((*LIMITS, *JETSTREAM), -1)


class Key:
    """An nkey of an operator, an account or a user."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._private = Ed25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self.name = _printed(bytes([PREFIXES[kind]]) + public)

    @property
    def seed(self) -> str:
        prefix = PREFIXES[self.kind]
        first = bytes([SEED | prefix >> 5, (prefix & 31) << 3])
        return _printed(first + self._private.private_bytes_raw())

    def signs(self, about: "Key", claims: Mapping[str, Any]) -> str:
        """A JWT of this key about the other."""
        document = {
            "jti": "test",
            "iat": int(time.time()),
            "iss": self.name,
            "sub": about.name,
            "name": about.kind,
            "nats": {**claims, "type": about.kind, "version": 2},
        }
        parts = [_encoded({"typ": "JWT", "alg": "ed25519-nkey"}), _encoded(document)]
        signature = self._private.sign(".".join(parts).encode())
        return ".".join([*parts, _base64(signature)])


class Operator:
    """With an account of which `user` makes users. `settings` is the server's configuration."""

    def __init__(self) -> None:
        self._operator = Key("operator")
        self._account = Key("account")
        system = Key("account")
        limits = {"wildcards": True, **UNLIMITED}
        granted = {
            each.name: self._operator.signs(each, {"limits": some})
            for each, some in ((self._account, limits), (system, {**limits, **NO_JETSTREAM}))
        }
        self.settings = (
            f"operator: {self._operator.signs(self._operator, {})}\n"
            f"system_account: {system.name}\nresolver: MEMORY\n"
            f"resolver_preload: {json.dumps(granted)}\n"
        )

    def user(self, path: Path, publish: Sequence[str] = (), subscribe: Sequence[str] = ()) -> Path:
        """Write the credentials of a new user. Without subjects, it may do everything."""
        key = Key("user")
        allowed = {
            name: {"allow": list(some)} if some else {}
            for name, some in (("pub", publish), ("sub", subscribe))
        }
        limits = {"subs": -1, "data": -1, "payload": -1}
        token = self._account.signs(key, {**allowed, **limits})
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
        )
        return path


def _printed(data: bytes) -> str:
    return base64.b32encode(data + _checksum(data).to_bytes(2, "little")).decode().rstrip("=")


def _checksum(data: bytes) -> int:
    """CRC-16 (XMODEM)."""
    found = 0
    for byte in data:
        found ^= byte << 8
        for _ in range(8):
            found = (found << 1 ^ 0x1021 if found & 0x8000 else found << 1) & 0xFFFF
    return found


def _encoded(document: Mapping[str, Any]) -> str:
    return _base64(json.dumps(document).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
