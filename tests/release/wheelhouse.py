"""Wheels of what is installed, so that an empty environment can be filled without a network.

The versions are those of requirements-dev.lock, which contains the other two locks.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json")
"""Of a .dist-info folder: what the installer writes."""


def fill(wheelhouse: Path, *requirements: str) -> None:
    """The wheels of these, and of everything that they need. Brain's own has to be there."""
    wheelhouse.mkdir(exist_ok=True)
    for each in _closure(requirements):
        _pack(each, wheelhouse)


def _closure(requirements: tuple[str, ...]) -> Iterator[Distribution]:
    met: set[tuple[str, str]] = set()
    todo = [Requirement(text) for text in requirements]
    packed: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        found = distribution(name)
        if name not in packed and name != "brain-runs":  # here it is editable
            packed.add(name)
            yield found
        for extra in ("", *wanted.extras):
            if (name, extra) in met:
                continue
            met.add((name, extra))
            for text in found.requires or ():
                needs = Requirement(text)
                if needs.marker is None or needs.marker.evaluate({"extra": extra}):
                    todo.append(needs)


def _pack(package: Distribution, wheelhouse: Path) -> None:
    lines = (package.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ").split("-") for line in lines if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    name = canonicalize_name(package.name).replace("-", "_")
    record, folder = [], ""
    with zipfile.ZipFile(wheelhouse / f"{name}-{package.version}-{tag}.whl", "w") as wheel:
        for path in package.files or ():
            located = Path(str(path.locate()))
            if ".." in path.parts or path.suffix == ".pyc" or not located.is_file():
                continue
            if path.parts[0].endswith(".dist-info"):
                folder = path.parts[0]
                if path.name in LEFT_OUT:
                    continue
            info = zipfile.ZipInfo.from_file(located, str(path), strict_timestamps=False)
            wheel.writestr(info, located.read_bytes())
            record.append(f'"{path}",,')
        record.append(f"{folder}/RECORD,,")
        wheel.writestr(f"{folder}/RECORD", "\n".join(record) + "\n")


class Environment:
    """A virtual environment that knows no index: only the wheels of a wheelhouse."""

    def __init__(self, folder: Path, wheelhouse: Path) -> None:
        self.folder = folder
        self._wheelhouse = wheelhouse
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", folder], check=True, capture_output=True
        )

    def install(self, *requirements: str, by: str = "pip") -> None:
        """With pip, as a user does, or with uv, which is quick. Raises CalledProcessError."""
        python = str(self.program("python"))
        installer = {
            "pip": ["pip", "--python", python, "install", "--no-compile"],
            "uv": ["uv", "pip", "install", "--python", python, "--offline", "--no-cache"],
        }[by]
        offline = ["--no-index", "--find-links", str(self._wheelhouse), "--quiet"]
        subprocess.run(
            [sys.executable, "-m", *installer, *offline, *requirements],
            check=True,
            capture_output=True,
            text=True,
        )

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    def run(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program(name), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,  # not the checkout, whose `src` Python could find
            env={"PATH": "/usr/bin:/bin"},
        )
