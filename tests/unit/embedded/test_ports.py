"""Which ports the embedded PostgreSQL tries, and how one is claimed."""

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from brain.embedded import ports
from tests.support.ports import free_port

CLAIMS = [
    pytest.param(
        ports._claim_name,
        id="name",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="abstract names: Linux only"),
    ),
    pytest.param(ports._claim_file, id="file"),
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_port_is_claimed_once_until_the_claim_ends(
    claim: Callable[[int, ExitStack], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "CLAIMS", tmp_path)
    port = free_port()
    with ExitStack() as first, ExitStack() as second:
        assert claim(port, first)
        assert not claim(port, second)
        assert claim(port + 1, second)
    with ExitStack() as third:
        assert claim(port, third)


def test_a_link_is_no_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CLAIMS", tmp_path)
    (tmp_path / "brain-postgres-5432.lock").symlink_to(tmp_path / "another")
    with ExitStack() as stack:
        assert not ports._claim_file(5432, stack)
    assert not (tmp_path / "another").exists()


def test_a_port_in_use_is_not_claimed() -> None:
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not ports.claim(taken.getsockname()[1], stack)


def test_the_port_last_used_is_tried_first(tmp_path: Path) -> None:
    assert list(islice(ports.candidates(tmp_path), 32)) == list(range(5432, 5464))
    (tmp_path / "postmaster.opts").write_text('/bin/postgres "-D" "/x" "-c" "port=6543"\n')
    assert list(islice(ports.candidates(tmp_path), 2)) == [6543, 5432]
    assert len(list(ports.candidates(tmp_path))) == 1 + 32 + 20
