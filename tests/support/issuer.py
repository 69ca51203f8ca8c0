"""An issuer of tokens: a secret, or key pairs and a host that serves their public keys."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a secret of the tests, which is long enough"


def token(
    secret: Any = SECRET, *, algorithm: str = "HS256", kid: str | None = None, **claims: Any
) -> str:
    """By default valid for an hour, and for reading. A claim of None is left out."""
    given = {"exp": time.time() + 3600, "scope": "read"} | claims
    return jwt.encode(
        {name: value for name, value in given.items() if value is not None},
        secret,
        algorithm,
        headers=None if kid is None else {"kid": kid},
    )


class Key:
    """A key pair, and its public key as a key set has it (RFC 7517)."""

    def __init__(self, kid: str, algorithm: str = "ES256", bits: int = 2048) -> None:
        self.kid, self.algorithm = kid, algorithm
        if algorithm == "ES256":
            self.private: Any = ec.generate_private_key(ec.SECP256R1())
            public = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
            public = OKPAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            self.private = rsa.generate_private_key(65537, bits)
            public = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        self.jwk: dict[str, Any] = {**public, "kid": kid, "use": "sig"}

    def token(self, **claims: Any) -> str:
        return token(self.private, algorithm=self.algorithm, kid=self.kid, **claims)


def jwks(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys]}).encode()


class Host:
    """Serves `body` while `speaks` is set. `asked` counts the requests."""

    def __init__(self, body: bytes) -> None:
        self.body, self.status, self.asked = body, 200, 0
        self.speaks = threading.Event()
        self.speaks.set()
        self.url = ""


@contextmanager
def hosting(body: bytes) -> Iterator[Host]:
    host = Host(body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked += 1
            host.speaks.wait()
            self.send_response(host.status)
            if host.status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(host.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        host.url = f"http://127.0.0.1:{server.server_port}/keys"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield host
        server.shutdown()
        thread.join()
