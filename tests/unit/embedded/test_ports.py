"""Which ports the embedded PostgreSQL tries, and how one is claimed."""

import os
import socket
import subprocess
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
        lambda port, stack, _: ports.claim_name(port, stack),
        id="name",
        marks=pytest.mark.skipif(sys.platform != "linux", reason="abstract names: Linux only"),
    ),
    pytest.param(ports.claim_file, id="file"),
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_port_is_claimed_once_until_the_claim_ends(
    claim: Callable[[int, ExitStack, Path], bool], tmp_path: Path
) -> None:
    port = free_port()
    with ExitStack() as first, ExitStack() as second:
        assert claim(port, first, tmp_path)
        assert not claim(port, second, tmp_path)
        assert claim(free_port(), second, tmp_path)
    with ExitStack() as third:
        assert claim(port, third, tmp_path)


def test_the_claim_of_a_killed_process_has_ended(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import contextlib, pathlib, sys\n"
        "from brain.embedded.ports import claim_file\n"
        "stack = contextlib.ExitStack()\n"
        "assert claim_file(int(sys.argv[1]), stack, pathlib.Path(sys.argv[2]))\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with ExitStack() as stack:
            assert not ports.claim_file(port, stack, tmp_path)
        process.kill()
    with ExitStack() as stack:
        assert ports.claim_file(port, stack, tmp_path)


def test_other_users_can_open_a_lock_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with ExitStack() as stack:
            assert ports.claim_file(5432, stack, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "brain-postgres-5432.lock").stat().st_mode & 0o777 == 0o644


def test_a_link_is_no_lock_file(tmp_path: Path) -> None:
    (tmp_path / "brain-postgres-5432.lock").symlink_to(tmp_path / "another")
    with ExitStack() as stack:
        assert not ports.claim_file(5432, stack, tmp_path)
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_not_claimed(address: str) -> None:
    with socket.create_server((address, 0)) as taken, ExitStack() as stack:
        port = taken.getsockname()[1]
        assert not ports.claim(port, stack)
        assert not ports.is_free(port, ports.LOOPBACK + ports.WILDCARD)
    assert ports.is_free(port, ports.LOOPBACK + ports.WILDCARD)


def test_the_port_last_used_is_tried_first(tmp_path: Path) -> None:
    assert list(islice(ports.candidates(tmp_path), 32)) == list(range(5432, 5464))
    (tmp_path / "postmaster.opts").write_text('/bin/postgres "-D" "/x" "-c" "port=6543"\n')
    assert list(islice(ports.candidates(tmp_path), 2)) == [6543, 5432]
    assert len(list(ports.candidates(tmp_path))) == 1 + 32 + 20
