"""The static files: the texts are complete, and lit-html is the published one."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

STATIC = ROOT / "src" / "brain" / "page" / "static"
NODE = ROOT / "tests" / "support" / "node" / "node_modules"
MODULES = sorted(
    path for path in STATIC.rglob("*.js") if "vendor" not in path.relative_to(STATIC).parts
)

needs_node = pytest.mark.skipif(
    not (NODE / "typescript").exists(),
    reason="`make test` installs tests/support/node",
)


def texts() -> dict[str, dict[str, str]]:
    """Key → language → text."""
    source = (STATIC / "page" / "texts.js").read_text()
    table = source[source.index("TEXTS = {") : source.index("\n};")]
    entry = re.compile(r"^  (\w+): \{(.*?)\},?$", re.MULTILINE | re.DOTALL)
    return {
        key: dict(re.findall(r"\b(en|zh): '((?:[^'\\]|\\.)*)'", body))
        for key, body in entry.findall(table)
    }


def test_every_text_is_there_in_both_languages() -> None:
    assert len(texts()) > 60
    for key, languages in texts().items():
        assert set(languages) == {"en", "zh"}, key
        names = [set(re.findall(r"\{(\w+)\}", text)) for text in languages.values()]
        assert names[0] == names[1], f"{key}: both have the same values"


def test_every_text_is_used() -> None:
    code = "\n".join(path.read_text() for path in MODULES if path.name != "texts.js")
    spoken = code + (STATIC / "page" / "texts.js").read_text().partition("\n};")[2]
    for key in texts():
        assert re.search(rf"'{key}'", spoken), key


def test_no_text_stands_outside_of_the_table() -> None:
    for path in MODULES:
        if path.name != "texts.js":
            assert not re.search(r"[\u4e00-\u9fff]", path.read_text()), path


@needs_node
def test_lit_html_is_the_published_one() -> None:
    """Its version stands in tests/support/node/package.json."""
    vendored = STATIC / "vendor" / "lit-html"
    files = [path.relative_to(vendored) for path in vendored.rglob("*") if path.is_file()]
    assert Path("LICENSE") in files
    for path in files:
        published = NODE / "lit-html" / path
        assert (vendored / path).read_bytes() == published.read_bytes(), (
            f"cp {published} {vendored / path}"
        )


def test_modules_are_of_a_size_that_can_be_read() -> None:
    for path in MODULES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 450, path
        assert max(map(len, lines)) <= 100, path
