"""Build what is tracked by git, as it is in the working tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def copy_tree(into: Path) -> None:
    """As a clone would be, if everything were committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)


def build(tree: Path, into: Path, umask: int = 0o022) -> dict[str, bytes]:
    """Name → bytes of the wheel and of the source archive. Raises CalledProcessError."""
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", into],
        cwd=tree,
        check=True,
        capture_output=True,
        env=environment,
        umask=umask,
    )
    return {path.name: path.read_bytes() for path in sorted(into.iterdir())}
