"""Another version of Brain, measured beside this one: `--compare REV` of a program.

Both run with the libraries and the settings of this checkout.
"""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.support import ROOT

COPIES = Path(__file__).parent / "build" / "versions"


@cache
def tree(rev: str) -> Path:
    """All files of a commit. Raises SystemExit if there is no such commit."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"--compare {rev}: git knows no such commit, branch or tag")
    commit = found.stdout.decode().strip()
    folder = COPIES / commit
    if not folder.exists():
        COPIES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COPIES) as partly:
            archive = _git("archive", "--prefix=tree/", commit, check=True).stdout
            subprocess.run(["tar", "-xf", "-", "-C", partly], input=archive, check=True)
            Path(partly, "tree").rename(folder)  # whole, or not there
    if not (folder / "src" / "brain").is_dir():
        raise SystemExit(f"--compare {rev}: that commit has no src/brain")
    return folder


def source(rev: str) -> Path:
    return tree(rev) / "src"


def _git(*arguments: str, check: bool = False) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=check)
