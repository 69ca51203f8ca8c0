"""Where NATS is, and how a node identifies itself (nodes/connection.py)."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from brain.nodes.connection import Access, Connection, CredentialsError, Unanswered
from brain.nodes.timing import NODE_TIMING

KEY = Ed25519PrivateKey.generate()
SEED = base64.b32encode(
    b"\x90\x00" + KEY.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()) + b"xx"
).decode()
CREDENTIALS = f"""-----BEGIN NATS USER JWT-----
ey.ey.x
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{SEED.rstrip("=")}
------END USER NKEY SEED------
"""


def test_the_file_of_nsc_has_a_token_and_a_key(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    path.write_text(CREDENTIALS)
    options = Access(["nats://h"], path).options()
    assert options["user_jwt_cb"]() == b"ey.ey.x"
    signature = base64.b64decode(options["signature_cb"]("nonce"))
    KEY.public_key().verify(signature, b"nonce")


@pytest.mark.parametrize("text", [None, "", "x", CREDENTIALS.replace(SEED[:8], "!!!!!!!!")])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CredentialsError, match=r"BRAIN_NATS_CREDENTIALS='.*user\.creds': "):
        Access(["nats://h"], path).options()


def test_so_is_a_file_of_certificates(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(CredentialsError, match=f"BRAIN_NATS_CA='{path}': "):
            Access(["tls://h"], ca=path).options()


def test_a_url_of_tls_needs_no_file() -> None:
    assert "tls" in Access(["tls://h"]).options()
    assert "tls" not in Access(["nats://h"]).options()


def test_a_connection_that_is_not_open_says_why() -> None:
    connection = Connection(Access(["nats://h"]), "test", NODE_TIMING)
    with pytest.raises(Unanswered, match="no connection to NATS: connecting"):
        connection.client  # noqa: B018 - it raises
