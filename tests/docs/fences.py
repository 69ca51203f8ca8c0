"""The blocks of code in both READMEs and in docs/: every one, as a reader finds it."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

WRITTEN = ("benchmarks.md", "conformance.md")
"""A program of this repository writes these pages (`make bench`, `make conformance`)."""

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in WRITTEN),
]

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4,}\S[^\n]*\n(?:\n(?= {4}))*)+")


@dataclass(frozen=True, slots=True)
class Fence:
    path: Path
    line: int
    language: str
    """`indented` for a block that has none, because it is indented and not fenced."""
    text: str

    @property
    def name(self) -> str:
        """That of the file in which the reader is to save it: the only word of a first comment."""
        found = re.match(r"(?://|#|<!--) (\S+\.\w+)(?: -->)?\n", self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        """The lines without comments. A command may have several lines."""
        lines = (re.sub(r"(?:^|\s+)#( .*)?$", "", line) for line in self.text.splitlines())
        return [line for line in lines if line]

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def fences(path: Path) -> list[Fence]:
    return list(_fences(path, path.read_text()))


def _fences(path: Path, text: str) -> Iterator[Fence]:
    for found in _FENCE.finditer(text):
        yield Fence(path, _line(text, found), found[2].strip(), textwrap.dedent(found[3]))
    prose = _FENCE.sub(lambda found: re.sub(r"[^\n]", "", found[0]), text)
    for found in _INDENTED.finditer(prose):
        yield Fence(path, _line(text, found), "indented", textwrap.dedent(found[0]))


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start()) + 1


EVERYTHING = [fence for path in DOCUMENTS if path.exists() for fence in fences(path)]
