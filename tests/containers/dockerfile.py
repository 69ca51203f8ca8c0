"""Play a Dockerfile without Docker: each stage in a copy of a bare root file system.

    python -m tests.containers.dockerfile ROOT_FS TARGET

ROOT_FS stands for the image of every FROM: a Debian with `python`, made by
`mmdebstrap --variant=minbase --include=python3,python3-venv,python-is-python3,ca-certificates`.
TARGET becomes the last stage. Then Brain starts in it as the user of the image, with the database
of BRAIN_DATABASE_URL, until its health check passes; without that variable it must refuse to start.
Needs root, for chroot. `make container` does all of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import ROOT
from tests.support.patience import PATIENCE

HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
"""What the host's network needs; Docker brings them, too."""


@dataclass
class Image:
    """What the instructions of a stage have set so far."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    )
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def chroot(self, command: list[str], *, user: str, **environment: str) -> list[str]:
        """The command line that runs `command` in the image."""
        given = [f"{name}={value}" for name, value in (self.environment | environment).items()]
        move = f'cd {self.folder} && exec "$@"'
        return [
            "chroot", f"--userspec={user}", str(self.root),
            "env", "-i", *given, "sh", "-c", move, "sh", *command,
        ]  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """Pairs of an instruction and its arguments, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def play(text: str, bare: Path, target: Path, **environment: str) -> Image:
    """`environment` is what the host's network needs of pip, and no part of the image."""
    stages: dict[str, Image] = {}
    image: Image | None = None
    for word, rest in instructions(text):
        if word == "ARG":
            continue
        if word == "FROM":
            name = re.sub(r".* AS ", "", rest) if " AS " in rest else "last"
            root = target.with_name(f"{target.name}-{name}")
            subprocess.run(["cp", "-a", bare, root], check=True)
            for each in HOST_FILES:
                _copy(Path(each), root / each[1:])
            image = stages[name] = Image(root)
            continue
        assert image is not None, "FROM comes first"
        print(f"{word} {rest}", flush=True)
        _step(image, stages, word, rest, environment)
    assert image is not None
    image.root.rename(target)
    image.root = target
    return image


def _step(
    image: Image, stages: dict[str, Image], word: str, rest: str, environment: dict[str, str]
) -> None:
    match word:
        case "WORKDIR":
            image.folder = rest
            (image.root / rest[1:]).mkdir(parents=True, exist_ok=True)
        case "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        case "USER":
            image.user = rest
        case "RUN":
            subprocess.run(
                image.chroot(["sh", "-c", rest], user=image.user, **environment), check=True
            )
        case "COPY":
            _step_copy(image, stages, rest.split())
        case "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        case "CMD":
            image.command = json.loads(rest)
        case "HEALTHCHECK":
            image.health = json.loads(rest[rest.index("CMD ") + 4 :])
        case "EXPOSE":
            pass
        case _:
            raise AssertionError(f"{word} is not known here")


def _step_copy(image: Image, stages: dict[str, Image], words: list[str]) -> None:
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, to = words
    target = image.root / os.path.join(image.folder, to)[1:]  # noqa: PTH118 - `to` may end in /
    for name in names:
        into_folder = to.endswith("/") and not (source / name.lstrip("/")).is_dir()
        _copy(source / name.lstrip("/"), target / name if into_folder else target)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        return
    if source.is_dir():
        shutil.copytree(
            source,
            target,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link there would lead out of the root file system
        shutil.copy(source, target)


def network() -> dict[str, str]:
    """How pip reaches its index here."""
    names = ("PIP_CERT", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "SSL_CERT_FILE", "HTTPS_PROXY")
    return {name: os.environ[name] for name in names if name in os.environ}


def start(image: Image) -> None:
    """Brain as the user of the image, until the health check passes."""
    command = [*image.entrypoint, *image.command]
    refused = subprocess.run(
        image.chroot(command, user=image.user), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2, refused
    assert "no database is configured" in refused.stderr, refused
    print(refused.stderr.strip(), flush=True)
    url = os.environ.get("BRAIN_DATABASE_URL")
    if url is None:
        return
    given = {"BRAIN_DATABASE_URL": url, "BRAIN_PORT": "15221"}
    with subprocess.Popen(image.chroot(command, user=image.user, **given)) as brain:
        try:
            deadline = time.monotonic() + PATIENCE
            probe = image.chroot(image.health, user=image.user, **given)
            while subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode:
                assert brain.poll() is None, "Brain has ended"
                assert time.monotonic() < deadline, "the health check never passed"
                time.sleep(0.2)
            owner = Path(f"/proc/{brain.pid}").stat().st_uid
            print(f"healthy, as user {owner}", flush=True)
        finally:
            brain.terminate()
    assert brain.returncode == 0, brain.returncode


def main() -> None:
    bare, target = map(Path, sys.argv[1:])
    image = play((ROOT / "Dockerfile").read_text(), bare, target, **network())
    start(image)


if __name__ == "__main__":
    main()
