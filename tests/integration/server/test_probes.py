"""Health checks of load balancers and orchestrators, which do not know Brain's name."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.served import Brain, served
from tests.support.wire import Answer, Peer, get, request

DETAILS = {
    "source",
    "code",
    "detail",
    "hint",
    "lag_seconds",
    "resume_detail",
    "resume_seconds",
    "since_seconds",
    "since_detail",
    "clients",
    "lagging",
    "rejected",
    "warnings",
    "runs",
    "role",
    "epoch",
    "position",
    "log_lag_seconds",
}
NAMELESS = {
    "no Host": b"%s HTTP/1.0\r\n\r\n",
    "no Host, in HTTP/1.1": b"%s HTTP/1.1\r\n\r\n",
    "an empty Host": b"%s HTTP/1.1\r\nHost:\r\n\r\n",
    "the name of a service": b"%s HTTP/1.1\r\nHost: brain.default.svc.cluster.local:5221\r\n\r\n",
    "a public address": b"%s HTTP/1.1\r\nHost: 203.0.113.9\r\n\r\n",
}


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    networks = "127.0.0.1/32,127.0.0.2/32,127.0.0.3/32"
    with served(database_url=shared, max_connections_per_ip=2, allowed_networks=networks) as brain:
        yield brain


async def asked(brain: Brain, data: bytes, local: str = "127.0.0.2", *, head: bool) -> Answer:
    async with await Peer.open(brain.port, local=local) as peer:
        peer.send(data)
        return await peer.answer(head=head)


@pytest.mark.parametrize("sent", NAMELESS)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/readyz/", b"/readyz?verbose="])
async def test_a_probe_without_our_name_gets_the_bare_verdict(
    brain: Brain, sent: str, method: bytes, path: bytes
) -> None:
    answer = await asked(brain, NAMELESS[sent] % (method + b" " + path), head=method == b"HEAD")
    assert answer.status == 200
    bare = b'{"ready": true}' if b"ready" in path else b'{"status":"alive"}'
    assert int(answer.headers["content-length"]) == len(bare)
    assert answer.body == (b"" if method == b"HEAD" else bare)


async def test_a_probe_with_our_name_gets_the_detail(brain: Brain) -> None:
    answer = await asked(brain, get("/readyz"), head=False)
    assert json.loads(answer.body).keys() == DETAILS | {"ready"}


@pytest.mark.parametrize("path", ["/metrics", "/api/runs", "/ws", "/healthzz", "/readyz/x"])
async def test_other_paths_need_our_name(brain: Brain, path: str) -> None:
    assert (await asked(brain, get(path, "evil.example"), head=False)).status == 421
    assert (await asked(brain, f"GET {path} HTTP/1.0\r\n\r\n".encode(), head=False)).status == 400


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/readyz", "evil.example", "Origin: http://evil.example"), 403),
        (get("/readyz", "evil.example", "Origin: https://evil.example"), 403),
        (get("/readyz", "evil.example", "Sec-Fetch-Site: cross-site"), 403),
        (get("/readyz", "evil.example", "Host: localhost"), 400),
        (get("/readyz", "a b"), 400),
        (get("/readyz", "evil.example").replace(b"GET", b"POST"), 421),
        (get("/readyz", "evil.example").replace(b"GET", b"OPTIONS"), 421),
    ],
)
async def test_the_other_rules_hold_for_probes(brain: Brain, data: bytes, status: int) -> None:
    assert (await asked(brain, data, head=False)).status == status


async def test_a_probe_of_another_network_is_rejected(brain: Brain) -> None:
    answer = await asked(brain, b"GET /healthz HTTP/1.0\r\n\r\n", "127.0.0.9", head=False)
    assert answer.status == 403


async def test_a_probe_is_answered_when_its_address_has_no_slot_left(brain: Brain) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(await Peer.upgraded(brain.port, local="127.0.0.3"))
        assert (await asked(brain, get("/metrics"), "127.0.0.3", head=False)).status == 429
        for path in ("/healthz", "/readyz"):
            for host in ("localhost", "brain"):
                async with await Peer.open(brain.port, local="127.0.0.3") as peer:
                    peer.send(get(path, host) + get(path, host))
                    answer = await peer.answer()
                    assert (answer.status, answer.headers["connection"]) == (200, "close")
                    assert await peer.rest() == b"", "it holds no slot, so it does not stay"
        # Neither does it become another request's way in.
        answer = await asked(brain, request("/healthz"), "127.0.0.3", head=False)
        assert answer.status == 429


async def test_a_probe_is_answered_when_the_process_has_no_descriptor_left(shared: str) -> None:
    limit = 'ulimit -n 128; exec "$@"'
    with served(database_url=shared, shell=limit) as brain:
        peers = [await Peer.upgraded(brain.port) for _ in range(64)]
        assert (await asked(brain, get("/metrics"), "127.0.0.1", head=False)).status == 503
        for path in ("/healthz", "/readyz"):
            assert (await asked(brain, get(path), "127.0.0.1", head=False)).status == 200
        for peer in peers:
            await peer.close()


CHECKED = """
global
    stats socket {folder}/socket
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
backend brain
    option httpchk GET /readyz
    server one 127.0.0.1:{port} check inter 50ms
listen front
    bind 127.0.0.1:{front}
    default_backend brain
listen status
    bind 127.0.0.1:{status}
    stats enable
    stats uri /
"""


def test_haproxy_sees_a_healthy_brain_as_up(brain: Brain, tmp_path: Path) -> None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("haproxy is not installed: apt install haproxy")
    file, log = tmp_path / "haproxy.conf", tmp_path / "log"
    file.write_text(
        CHECKED.format(folder=tmp_path, port=brain.port, front=free_port(), status=free_port())
    )
    with log.open("wb") as out:
        process = subprocess.Popen([program, "-db", "-f", str(file)], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := _checks(tmp_path / "socket")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert found == "UP L7OK 200", log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _checks(path: Path) -> str:
    """The verdict of HAProxy's check, or nothing before the first."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return ""
        sock.sendall(b"show stat\n")
        data = b""
        while part := sock.recv(65536):
            data += part
    header, *lines = data.decode().lstrip("# ").splitlines()
    names = header.split(",")
    for line in lines:
        row = dict(zip(names, line.split(","), strict=False))
        if row.get("svname") == "one" and row["check_status"] not in ("", "INI"):
            if row["check_status"].startswith("* "):
                return ""
            return f"{row['status']} {row['check_status']} {row['check_code']}"
    return ""
