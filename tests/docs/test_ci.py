"""CI and pre-commit call the Makefile's own targets and tools, on every supported Python."""

import re
import tomllib
from typing import Any

import yaml

from tests.support import ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def targets() -> set[str]:
    return {
        name
        for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)
        for name in line.split()
    }


def commands() -> list[str]:
    return [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


def pythons(system: str) -> set[str]:
    """The versions that jobs on this system set up."""
    found: set[str] = set()
    for job in JOBS.values():
        if not job["runs-on"].startswith(system):
            continue
        for step in job["steps"]:
            version = step.get("with", {}).get("python-version")
            if version == "${{ matrix.python }}":
                found |= set(job["strategy"]["matrix"]["python"])
            elif version:
                found.add(version)
    return found


def test_ci_runs_nothing_but_targets_of_the_makefile() -> None:
    assert commands()
    for command in commands():
        program, *arguments = command.split()
        assert program == "make", command
        assert set(arguments) <= targets(), command


def test_ci_runs_the_gate() -> None:
    run = {target for command in commands() for target in command.split()[1:]}
    assert {"check", "unit", "test", "contract"} <= run


def test_ci_runs_on_every_supported_python() -> None:
    prefix = "Programming Language :: Python :: 3."
    supported = {
        "3." + each.removeprefix(prefix)
        for each in PROJECT["classifiers"]
        if each.startswith(prefix)
    }
    assert supported == {"3.11", "3.12", "3.13", "3.14"}
    assert pythons("ubuntu") == supported
    assert pythons("macos") <= supported
    assert pythons("macos")
    assert PROJECT["requires-python"] == ">=3.11"


def test_make_matrix_runs_the_same_versions() -> None:
    default = re.search(r"set -- ([\d. ]+)", (ROOT / ".ci/matrix").read_text())
    assert default is not None
    assert set(default[1].split()) == pythons("ubuntu")


def test_each_target_has_one_line_of_help() -> None:
    described = re.findall(r"^([a-z-]+): +## ", MAKEFILE, re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == targets()


def test_pre_commit_calls_tools_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = MAKEFILE.partition("\ncheck: $")[2].partition("\n\n")[0]
    tools = {
        " ".join(word for word in line.replace("$(BIN)/", "").split() if not word.startswith("-"))
        for line in recipe.splitlines()[1:]
    }
    for hook in hooks:
        words = hook["entry"].removeprefix(".venv/bin/").split()
        called = " ".join(word for word in words if not word.startswith("-"))
        assert any(tool.startswith(called) for tool in tools), hook["entry"]
