"""If-Match and If-None-Match (RFC 9110, section 13.1): change, or read, a run only as it is known.

An ETag of Brain is strong: two equal ones are of the same bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fastapi import Request

from brain.api.errors import InvalidRequest
from brain.contract.messages import shown

_tag = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*')
"""An entity tag (RFC 9110, section 8.8.3)."""


@dataclass(frozen=True, slots=True)
class Tags:
    """What one of the two headers lists."""

    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()
    any: bool = False
    """`*`."""

    @classmethod
    def parse(cls, name: str, lines: Iterable[str]) -> Self | None:
        """None without such a header. Raises InvalidRequest."""
        given = ",".join(lines)
        if not given:
            return None
        if given.strip() == "*":
            return cls(any=True)
        strong: set[str] = set()
        weak: set[str] = set()
        at = 0
        while at < len(given):
            if found := _tag.match(given, at):
                (weak if found[1] else strong).add(found[2])
                at = found.end()
            else:  # an empty item (RFC 9110, section 5.6.1)
                at += len(given[at:]) - len(given[at:].lstrip(" \t"))
            if at < len(given) and given[at] != ",":
                message = f'{name} is * or a list of ETags such as "1a-2b", not {shown(given)}'
                raise InvalidRequest(message, (name, message))
            at += 1
        return cls(frozenset(strong), frozenset(weak))


@dataclass(frozen=True, slots=True)
class Preconditions:
    if_match: Tags | None = None
    if_none_match: Tags | None = None

    @classmethod
    def parse(cls, request: Request) -> Self:
        """Raises InvalidRequest."""
        lines = request.headers.getlist
        return cls(
            Tags.parse("If-Match", lines("if-match")),
            Tags.parse("If-None-Match", lines("if-none-match")),
        )

    @property
    def tags(self) -> frozenset[str] | None:
        """The ETags of which the present one must be one. None: it may be any."""
        wanted = self.if_match
        return None if wanted is None or wanted.any else wanted.strong

    def allow_change(self, etag: str) -> bool:
        return self.match(etag) and not self.is_known(etag)

    def match(self, etag: str) -> bool:
        """Whether If-Match, which compares strongly, allows the request."""
        return self.tags is None or etag in self.tags

    def is_known(self, etag: str) -> bool:
        """Whether If-None-Match, which compares weakly, names it."""
        known = self.if_none_match
        return known is not None and (known.any or etag in known.strong | known.weak)


NONE = Preconditions()
