"""Every command, target, setting, metric and link that the docs name exists."""

import re
from pathlib import Path

import pytest
import typer.main

from brain.cli import commands as cli
from brain.config import Settings
from tests.support import ROOT

DOCS = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {path.relative_to(ROOT): path.read_text() for path in DOCS if path.exists()}
EVERYTHING = "\n".join(TEXTS.values())


def named(pattern: str) -> set[str]:
    return set(re.findall(pattern, EVERYTHING))


def test_every_command_exists() -> None:
    known = set(typer.main.get_group(cli.app).commands) | {"version"}
    assert named(r"(?:`|bin/)brain ([a-z][a-z-]+)") <= known


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named(r"(?:`| {4}|```sh\n)make ([a-z-]+)") <= targets


OF_THE_TESTS = {"BRAIN_TEST_PATIENCE", "BRAIN_TEST_POSTGRES", "BRAIN_TEST_PREFORK"}
"""Variables that only the tests read."""


def test_every_setting_exists() -> None:
    known = {f"BRAIN_{name.upper()}" for name in Settings.model_fields} | OF_THE_TESTS
    assert named(r"`(BRAIN_[A-Z_]+)(?:=[^`]*)?`") <= known


def test_every_metric_exists() -> None:
    """docs/reference/metrics.md itself is held true by test_metrics.py."""
    known = set(re.findall(r"brain_[a-z_]+", TEXTS[Path("docs/reference/metrics.md")]))
    assert named(r"`(brain_[a-z_]+)`") <= known


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[path]):
        if "://" not in target:
            assert (ROOT / path.parent / target).exists(), f"{path} links to {target}"


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_every_link_to_a_section_finds_it(path: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", TEXTS[path]):
        page = (ROOT / path.parent / target).resolve() if target else ROOT / path
        assert section in anchors(page.read_text()), f"{path} links to {target}#{section}"


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def test_each_decision_has_one_entry_with_all_its_parts() -> None:
    text = (ROOT / "docs/explanation/decisions.md").read_text()
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    names = [entry.partition("\n")[0] for entry in entries]
    assert sorted(names) == sorted(set(names))
    entries.pop(names.index("Dependencies"))
    for entry in entries:
        labels = re.findall(r"^(Status|Reason|Consequence|Revisit when): ?", entry, re.MULTILINE)
        assert labels == ["Status", "Reason", "Consequence", "Revisit when"], entry
    dependencies = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    assert sorted(dependencies) == sorted(set(dependencies))


def test_the_changelog_says_each_thing_once() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    entries = [" ".join(entry.split()) for entry in re.split(r"\n- |\n\n", unreleased)]
    opening = [entry[:40] for entry in entries if len(entry) > 30]
    assert sorted(opening) == sorted(set(opening))
    assert re.findall(r"^### (\w+)", unreleased, re.MULTILINE) == ["Added", "Changed", "Fixed"]


def test_no_document_has_two_empty_lines_in_a_row() -> None:
    """A merge leaves them, and they split a table in two."""
    for path in [*DOCS, ROOT / "CHANGELOG.md"]:
        prose = re.sub(r"```.*?```", "code", path.read_text(), flags=re.DOTALL)
        assert "\n\n\n" not in prose, path


def test_contributing_names_every_package_and_every_folder_of_tests() -> None:
    text = TEXTS[Path("CONTRIBUTING.md")]
    tracked = {path.parent for path in ROOT.glob("*/*/**/__init__.py")}
    for base, named_as in ((ROOT / "src/brain", "`{}/`"), (ROOT / "tests", "`tests/{}`")):
        for folder in tracked:
            if folder.parent == base:
                assert named_as.format(folder.name) in text, folder


@pytest.mark.parametrize("path", ["CONTRIBUTING.md", "docs/reference/glossary.md"])
def test_every_module_that_a_guide_names_exists(path: str) -> None:
    for name in re.findall(r"`([a-z_/]+\.(?:py|js))`", TEXTS[Path(path)]):
        assert list((ROOT / "src/brain").glob(f"**/{name}")) or (ROOT / name).exists(), name
