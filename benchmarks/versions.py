"""Another version of Brain, measured beside this one: `--compare REV` of a program.

Both run with the programs, the libraries and the settings of this checkout.
"""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.support import ROOT

COPIES = Path(__file__).parent / "build" / "versions"


@cache
def source(rev: str) -> Path:
    """The folder src/ of a commit. Raises SystemExit if there is no such commit."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    commit = found.stdout.decode().strip()
    if found.returncode:
        raise SystemExit(f"--compare {rev}: git knows no such commit, branch or tag")
    folder = COPIES / commit
    if not folder.exists():
        COPIES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COPIES) as partly:
            archive = _git("archive", commit, "src", check=True).stdout
            subprocess.run(["tar", "-xf", "-", "-C", partly], input=archive, check=True)
            Path(partly, "src").rename(folder)  # whole, or not there
    if not (folder / "brain").is_dir():
        raise SystemExit(f"--compare {rev}: that commit has no src/brain")
    return folder


def _git(*arguments: str, check: bool = False) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=check)
