"""Names of tables and columns, as a setting writes them.

A name is quoted as in SQL (PostgreSQL documentation, 4.1.1 "Identifiers and Key Words"): `"Runs"`,
with `""` for a quote in it. A name without quotes counts as it is written.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

MAX_NAME = 63
"""Bytes. PostgreSQL cuts a longer name (NAMEDATALEN)."""

_quoted = re.compile(r'"((?:[^"]|"")*)"').match
_plain = re.compile(r"[a-z_][a-z0-9_]*").fullmatch


@dataclass(frozen=True, slots=True)
class Name:
    text: str
    quoted: bool = True

    def find(self, names: Collection[str]) -> str | None:
        """That of the names which is meant. Without quotes it may also be one that SQL folded."""
        candidates = (self.text,) if self.quoted else (self.text, folded(self.text))
        return next((each for each in candidates if each in names), None)


def scan(text: str, at: int, ends: str) -> tuple[Name, int]:
    """The name that begins at this place, and the place behind it: the end of the text, or one of
    the characters `ends`. Raises ValueError with the rule that the text breaks.
    """
    at += len(text[at:]) - len(text[at:].lstrip())
    if text[at : at + 1] != '"':
        end = next((i for i in range(at, len(text)) if text[i] in ends), len(text))
        return Name(_checked(text[at:end].strip()), quoted=False), end
    match = _quoted(text, at)
    if match is None:
        raise ValueError(f"the quote before {text[at + 1 :]!r} is not closed")
    rest = text[match.end() :].lstrip()
    if rest and rest[0] not in ends:
        raise ValueError(f"{rest!r} follows a quoted name; a quote in a name is written twice")
    return Name(_checked(match[1].replace('""', '"'))), len(text) - len(rest)


def _checked(name: str) -> str:
    if not name:
        raise ValueError("a name is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"{name!r} has a control character in it")
    if len(name.encode(errors="replace")) > MAX_NAME:
        cut = name.encode()[:MAX_NAME].decode(errors="ignore")
        raise ValueError(
            f"a name has at most {MAX_NAME} bytes, and PostgreSQL has cut this one to {shown(cut)}"
        )
    return name


def folded(name: str) -> str:
    """As PostgreSQL reads a name without quotes: only ASCII changes."""
    return name.encode().lower().decode()


def shown(name: str) -> str:
    """For people, and for a setting: quoted only where that is needed."""
    return name if _plain(name) else '"{}"'.format(name.replace('"', '""'))


def nearest(name: str, names: Collection[str]) -> list[str]:
    """Those of the names that resemble it, the most similar first."""
    alike: dict[str, list[str]] = {}
    for each in names:
        alike.setdefault(letters(each), []).append(each)
    found = difflib.get_close_matches(letters(name), alike, 3, 0.5)
    return [each for key in found for each in alike[key]][:3]


def letters(name: str) -> str:
    """What `startedAt`, `started_at` and `StartedAt` have in common."""
    return re.sub(r"[\W_]", "", name).lower()
