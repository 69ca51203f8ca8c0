"""README.zh-CN.md says what README.md says: the same sections, commands, links and figures."""

import re

import pytest

from tests.docs.fences import fences
from tests.support import ROOT

ENGLISH = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"
WORDS = ("快照", "滞后", "合并", "复制槽", "发布", "复制标识", "轮询", "运行")
"""Each term has one translation."""


def levels(text: str) -> list[int]:
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [len(found) for found in re.findall(r"^(#+) ", prose, re.MULTILINE)]


def links(text: str) -> list[str]:
    """But for links to each other, and within the page."""
    found = re.findall(r"\]\(([^)]+)\)|<(https?://[^>]+)>", text)
    targets = {first or second for first, second in found}
    return sorted(
        each for each in targets if not each.startswith(("README", "#", "docs/images/page-"))
    )


def test_both_have_the_same_sections() -> None:
    assert levels(CHINESE.read_text()) == levels(ENGLISH.read_text())


def test_both_have_the_same_commands_and_code() -> None:
    for english, chinese in zip(fences(ENGLISH), fences(CHINESE), strict=True):
        assert chinese.language == english.language, chinese.place
        if english.language == "sh":
            assert chinese.commands == english.commands, chinese.place
        else:
            code = [re.sub(r" *//.*", "", each.text) for each in (english, chinese)]
            assert code[0] == code[1], chinese.place


def test_both_lead_to_the_same_pages() -> None:
    assert links(CHINESE.read_text()) == links(ENGLISH.read_text())


def test_both_name_the_same_settings_and_parameters() -> None:
    code = r"`([^`\n]+)`"
    english, chinese = (set(re.findall(code, path.read_text())) for path in (ENGLISH, CHINESE))
    assert {each for each in english if each.isascii()} <= chinese


def test_their_tables_have_the_same_shape() -> None:
    english, chinese = (
        [line.count("|") for line in path.read_text().splitlines() if line.startswith("|")]
        for path in (ENGLISH, CHINESE)
    )
    assert chinese == english


@pytest.mark.parametrize("word", WORDS)
def test_the_chinese_terms_are_those_of_the_glossary(word: str) -> None:
    assert re.search(rf"^\| {word}\uff08", CHINESE.read_text(), re.MULTILINE)
