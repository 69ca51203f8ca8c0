"""Behind real proxies that terminate TLS, with the configurations of docs/how-to/proxies.md."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support import ROOT
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import execute
from tests.support.served import Brain, message, served

PAGE = ROOT / "docs" / "how-to" / "proxies.md"
IDLE = 2
"""Seconds that a proxy of the tests waits, in place of 75."""

PROGRAMS = {
    name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    for name in ("nginx", "haproxy", "caddy")
}
NOT_RUN = {"yaml": "Traefik: neither Debian nor a package of Python or Node brings it"}
"""The other configurations of the page, and why no test runs them."""
WAITS_FOR_EVER = ("caddy",)
"""They do not close an idle WebSocket."""


def test_every_configuration_of_the_page_is_run_or_has_a_reason() -> None:
    fences = re.findall(r"^```(\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(fences) == sorted([*PROGRAMS, *NOT_RUN])


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """As the page says them, narrowed to a network that the test can step out of."""
    said = dict(re.findall(r"^    (BRAIN_\w+)=(\S+)$", PAGE.read_text(), re.MULTILINE))
    assert said.keys() == {"BRAIN_HOST", "BRAIN_TRUSTED_PROXIES", "BRAIN_ALLOWED_HOSTS"}
    given = {name.removeprefix("BRAIN_").lower(): value for name, value in said.items()}
    return given | {"allowed_networks": "127.0.0.1/32,127.0.0.7/32", "max_connections_per_ip": "3"}


@pytest.fixture(scope="module")
def brain(shared: str, settings: dict[str, str]) -> Iterator[Brain]:
    with served(database_url=shared, ping_interval=1, **settings) as brain:
        yield brain


def certificate(folder: Path) -> ssl.SSLContext:
    """For brain.example, under the names that the page has. Returns who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "brain.example")]),
        datetime.now(UTC),
    )
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("brain.example")]), critical=False
    )
    public = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, data in (("pem", public), ("key", private), ("both.pem", public + private)):
        (folder / f"brain.example.{file}").write_bytes(data)
    return ssl.create_default_context(cadata=public.decode())


class TLSProxy:
    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self.port, self.trust = port, trust

    @property
    def origin(self) -> str:
        """Of the page, as a browser names it when it is opened by this port."""
        return f"https://brain.example:{self.port}"

    def connect(
        self,
        query: str = "?run_id=nobody",
        local: str = "127.0.0.7",
        *,
        port_in_host: bool = False,
        **options: Any,
    ) -> connect:
        return connect(
            f"wss://brain.example:{self.port if port_in_host else 443}/ws{query}",
            host="127.0.0.1",
            port=self.port,
            ssl=self.trust,
            local_addr=(local, 0),
            **{"proxy": None, "origin": "https://brain.example"} | options,
        )

    async def get(self, path: str, local: str = "127.0.0.7", *lines: str) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.trust,
            server_hostname="brain.example",
            local_addr=(local, 0),
        )
        head = [f"GET {path} HTTP/1.1", "Host: brain.example", "Connection: close", *lines, "", ""]
        writer.write("\r\n".join(head).encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return int(answer.split()[1]), json.loads(
            answer[answer.index(b"{") : answer.rindex(b"}") + 1]
        )


def at(brain: Brain) -> dict[str, str]:
    return {"127.0.0.1:5221": f"127.0.0.1:{brain.port}"}


@contextmanager
def before(
    name: str, folder: Path, addresses: Mapping[str, str], page: Path = PAGE
) -> Iterator[TLSProxy]:
    """The configuration of the page for this proxy, with other addresses of Brain."""
    program = PROGRAMS[name]
    if program is None:
        pytest.skip(f"{name} is not installed: apt install {name}")
    port = free_port()
    trust = certificate(folder)
    folder.chmod(0o755)
    found = re.search(rf"^```{name}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    origin = f"https://brain.example:{port}"
    said = f"\n{found[1]}".replace(" 443 ", f" 127.0.0.1:{port} ").replace(
        " :443 ", f" 127.0.0.1:{port} "
    )
    for written, address in addresses.items():
        assert written in said
        said = said.replace(written, address)
    said = said.replace("/etc/ssl", str(folder))
    said = said.replace("75s", f"{IDLE}s").replace("\nbrain.example {", f"\n{origin} {{")
    environment = dict(os.environ)
    file = folder / f"{name}.conf"
    if name == "nginx":
        temporary = "".join(
            f"{each}_temp_path {folder};"
            for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        said = (
            f"{user} pid {folder}/pid; error_log stderr; "
            f"events {{}} http {{ access_log off; {temporary}\n{said} }}"
        )
        command = [program, "-p", str(folder), "-c", str(file), "-g", "daemon off;"]
    elif name == "caddy":
        said = f"{{\n admin off\n auto_https disable_redirects\n default_bind 127.0.0.1\n}}\n{said}"
        environment |= dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
        command = [program, "run", "--config", str(file), "--adapter", "caddyfile"]
    else:
        command = [program, "-db", "-f", str(file)]
    file.write_text(said)
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield TLSProxy(port, trust)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_behind_a_proxy_that_terminates_tls(
    brain: Brain, shared: str, name: str, tmp_path: Path
) -> None:
    with before(name, tmp_path, at(brain)) as proxy:
        # The upgrade, and each client by its own address.
        async with proxy.connect(f"?run_id={name}") as client:
            execute(shared, f"INSERT INTO runs (id) VALUES ('{name}')")
            assert (await message(client))["data"]["id"] == name
            brain.wait_for(r'event="client connected" peer=127\.0\.0\.7')
            assert (await proxy.get("/api/runs"))[1]["runs"][-1]["id"]

            # The pings keep alive what says nothing, for longer than the proxy waits.
            await asyncio.sleep(IDLE * 1.6)
            execute(shared, f"UPDATE runs SET status = 'running' WHERE id = '{name}'")
            assert (await message(client))["data"]["status"] == "running"

            # A client cannot say that it is another, nor that it is from elsewhere.
            forged = {"X-Forwarded-For": "8.8.8.8"}
            async with (
                proxy.connect(additional_headers=forged),
                proxy.connect(additional_headers=forged),
            ):
                with pytest.raises(InvalidStatus) as caught:
                    await proxy.connect(additional_headers={"X-Forwarded-For": "127.0.0.1"})
                assert caught.value.response.status_code == 429
                assert "127.0.0.7" in str(caught.value.response.body)
                async with proxy.connect(local="127.0.0.1"):
                    pass
        for way in ((), ("X-Forwarded-For: 127.0.0.7",)):
            status, problem = await proxy.get("/api/runs", "127.0.0.9", *way)
            assert status == 403
            assert "127.0.0.9 is in none of the networks" in problem["detail"]
        with pytest.raises(InvalidStatus) as caught:
            await proxy.connect(local="127.0.0.9")
        assert caught.value.response.status_code == 403
        # The page's own origin, on whatever port people open it; and no other page.
        async with proxy.connect(port_in_host=True, origin=proxy.origin):
            pass
        with pytest.raises(InvalidStatus) as caught:
            await proxy.connect(origin="https://evil.example")
        assert caught.value.response.status_code == 403


def test_without_pings_a_proxy_closes_an_idle_connection(
    shared: str, settings: dict[str, str], tmp_path: Path
) -> None:
    """Which is why the pings are there."""
    found = [
        name
        for name, program in PROGRAMS.items()
        if program is not None and name not in WAITS_FOR_EVER
    ]
    if not found:
        pytest.skip("neither nginx nor HAProxy is installed: apt install nginx haproxy")
    tmp_path.chmod(0o755)
    with served(database_url=shared, ping_interval=60, **settings) as brain, ExitStack() as stack:
        proxies = []
        for name in found:
            folder = tmp_path / name
            folder.mkdir()
            proxies.append(stack.enter_context(before(name, folder, at(brain))))

        async def all_last() -> list[float]:
            return await asyncio.gather(*map(_lasts, proxies))

        assert all(seconds > IDLE - 1 for seconds in asyncio.run(all_last()))


async def _lasts(proxy: TLSProxy) -> float:
    began = time.monotonic()
    async with proxy.connect(ping_interval=None) as client:
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), PATIENCE)
        return time.monotonic() - began
