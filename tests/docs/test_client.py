"""The types of client.js are found as client.md says. test_snippets.py runs its code."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.fences import fences
from tests.support import ROOT

STATIC = ROOT / "src" / "brain" / "page" / "static"
NODE = ROOT / "tests" / "support" / "node" / "node_modules"


@pytest.mark.skipif(not (NODE / "typescript").exists(), reason="tsc needs Node, and `make test`")
def test_typescript_finds_the_types_with_the_documented_configuration(tmp_path: Path) -> None:
    """Of a copy of the client, and of the one that Brain serves."""
    (configuration,) = (
        each.text
        for each in fences(ROOT / "docs" / "how-to" / "client.md")
        if each.language == "jsonc"
    )
    (tmp_path / "tsconfig.json").write_text(configuration)
    shutil.copy(STATIC / "client.d.ts", tmp_path)
    shutil.copy(STATIC / "client.js", tmp_path)
    for name, source in ("copied", "./client.js"), ("served", "http://localhost:5221/client.js"):
        (tmp_path / f"{name}.ts").write_text(
            f"import {{ Runs, watch }} from '{source}';\n"
            "export const ids: string[] = new Runs().all.map(run => run.id);\n"
            "watch('/ws', { message: ({ data }) => console.log(data.id.trim()) });\n"
            "// @ts-expect-error: a run has no such field, so the types were found\n"
            "console.log(new Runs().all[0].colour);\n"
        )
    run = subprocess.run(
        [NODE / ".bin" / "tsc", "--noEmit", "--skipDefaultLibCheck", "-p", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_the_command_that_copies_the_client_names_each_of_its_files() -> None:
    page = next((ROOT / "docs").rglob("client.md")).read_text()
    (names,) = re.findall(r"/client/\{([a-z_,]+)\}\.js", page)
    assert sorted(names.split(",")) == sorted(path.stem for path in (STATIC / "client").iterdir())
