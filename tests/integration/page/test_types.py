"""TypeScript's compiler finds nothing in the page and in client.js. It takes 7 s of a core."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

STATIC = ROOT / "src" / "brain" / "page" / "static"
NODE = ROOT / "tests" / "support" / "node" / "node_modules"
MODULES = [
    path for path in sorted(STATIC.rglob("*.js")) if "vendor" not in path.relative_to(STATIC).parts
]


@pytest.mark.skipif(
    not (NODE / "typescript").exists(),
    reason="tsc needs Node, and `make test`, which installs tests/support/node",
)
def test_the_types_are_strict(tmp_path: Path) -> None:
    """Of the page, of client.js, and of a program that uses it as the docs show."""
    static = tmp_path / "static"
    shutil.copytree(STATIC, static)
    (tmp_path / "node_modules").symlink_to(NODE)
    for path in (static / "vendor" / "lit-html").rglob("*.js"):
        types = path.relative_to(static / "vendor").with_suffix(".d.ts")
        shutil.copy(NODE / types, static / "vendor" / types)
    shutil.copy(Path(__file__).parent / "narrowing.ts", static)
    files = [static / path.relative_to(STATIC) for path in MODULES]
    options = (
        "--strict --noEmit --skipDefaultLibCheck --checkJs --allowJs --noUnusedLocals "
        "--noUnusedParameters --noImplicitReturns --target es2023 --lib es2023,dom,dom.iterable "
        "--module esnext --moduleResolution bundler"
    )
    run = subprocess.run(
        [NODE / ".bin" / "tsc", *options.split(), *files, static / "narrowing.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
