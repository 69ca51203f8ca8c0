"""What `make release-check` finds wrong with a tree, before it builds anything."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.release import check
from tests.support import ROOT

LOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-01-31\n\n- More.\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that can be released as 0.2.0, after 0.1.0."""
    (tmp_path / "src" / "brain").mkdir(parents=True)
    (tmp_path / "src" / "brain" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(LOG)
    document = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(document.replace(".example/", ".test/"))
    for name in check.LOCKS:
        shutil.copy(ROOT / name, tmp_path)
    for command in (
        "init -q",
        "add .",
        "-c user.name=a -c user.email=a@b.example commit -q -m one",
        "tag v0.1.0",
    ):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


RULES = (
    check.committed,
    check.version,
    check.changelog,
    check.tag,
    check.project,
    check.locks,
)


def found(tree: Path) -> list[str]:
    return [each for rule in RULES for each in rule(tree)]


def test_a_tree_that_is_in_order_has_no_problem(tree: Path) -> None:
    assert found(tree) == []


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(tree: Path) -> None:
        path = tree / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


INIT = "src/brain/__init__.py"


@pytest.mark.parametrize(
    ("rule", "change", "says"),
    [
        (check.committed, lambda tree: (tree / "new").touch(), "not committed: new"),
        (check.version, replace(INIT, "0.2.0", "0.2.0.dev1"), "not '0.2.0.dev1'"),
        (check.version, replace(INIT, "0.2.0", "next"), "not 'next'"),
        (check.version, replace(INIT, "0.2.0", "0.02.0"), "not '0.02.0'"),
        (check.changelog, replace("CHANGELOG.md", "0.2.0]", "0.3.0]"), "section '## [0.2.0] - "),
        (check.changelog, replace("CHANGELOG.md", "- 2026", "- 9026"), "not in the future"),
        (
            check.changelog,
            replace("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- News.\n"),
            "an empty [Unreleased]",
        ),
        (check.tag, replace(INIT, "0.2.0", "0.0.9"), "above those that have a tag: 0.1.0"),
        (check.project, replace("pyproject.toml", ".test/", ".example/"), "are reserved"),
        (check.locks, replace("requirements.lock", "uvicorn==0.54", "uvicorn==0.55"), "uvicorn"),
        (check.locks, replace("requirements.lock", "\nrich==", "\nrichard=="), "pins rich to None"),
        (check.locks, replace("requirements-dev.lock", "httpx==", "httpx==0."), "httpx"),
    ],
)
def test_what_is_wrong_is_said(
    tree: Path,
    rule: Callable[[Path], Iterator[str]],
    change: Callable[[Path], object],
    says: str,
) -> None:
    change(tree)
    assert any(says in each for each in rule(tree)), list(rule(tree))


def test_a_tag_of_another_commit_is_said(tree: Path) -> None:
    subprocess.run(["git", "tag", "v0.2.0"], cwd=tree, check=True)
    assert found(tree) == [], "its own"
    commit = "-c user.name=a -c user.email=a@b.example commit -q --allow-empty -m two"
    subprocess.run(["git", *commit.split()], cwd=tree, check=True)
    (problem,) = found(tree)
    assert problem.startswith("v0.2.0 is the tag of another commit")
