"""The static files of the package, as they are answered: bytes, a type, a hash."""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
}
"""By the end of a file's name. The package has others, like licences, which are not served.

A `.d.ts` is for a person or an editor: the registered type of `.ts` is a video format.
"""


@dataclass(frozen=True, slots=True)
class Asset:
    content_type: str
    body: bytes
    zipped: bytes

    @classmethod
    def of(cls, name: str, body: bytes) -> "Asset":
        # The same bytes on each machine and at each start: no time of day in them.
        return cls(TYPES[PurePosixPath(name).suffix], body, gzip.compress(body, 9, mtime=0))

    @property
    def etag(self) -> str:
        return f'"{digest(self.body)}"'


def load() -> dict[str, bytes]:
    """Path below `static` → content."""
    return dict(sorted(_walk(files("brain.page") / "static", "")))


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(entry, f"{name}/")
        elif PurePosixPath(name).suffix in TYPES:
            yield name, entry.read_bytes()
