"""The file of records: what of the checkpoints outlives the process (checkpoints.py has the rules).

It has a fixed size and is mapped into memory, so that a SIGKILL loses nothing that was stored, and
a store takes less than a microsecond. A store of eight aligned bytes is whole or absent; everything
longer has a checksum, and counts as absent if that is wrong.

    0     16  what the file is, and the version of its format
    16     8  high: the highest timestamp that may have been sent
    24    16  xmin and xmax of the last mark behind which a crash of PostgreSQL loses nothing
    64    52  header: digests of identity, tree and epoch, and a checksum
    256       SLOTS records of 40 bytes: time, xmin, xmax, flushed, a checksum

The numbers are in the byte order of the machine. The file is locked (flock) by the Brain that uses
it: two Brains give one commit different times.
"""

import contextlib
import fcntl
import mmap
import os
import sys
import zlib
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from brain.contract.errors import BrainError
from brain.contract.messages import Micros

MAGIC = b"brain records 1\n"
"""Another version of the format, or of what its fields mean, has another number."""

_READ_ONLY_HINT = "set BRAIN_DATA_DIR to a folder that Brain may write"

SLOTS = 2048
_HEADER_AT, _SLOTS_AT = 64, 256
_HEADER = Struct("=16s16s16sI")
_RECORD = Struct("=qqqqI4x")
_CHECK = Struct("=I")
SIZE = _SLOTS_AT + SLOTS * _RECORD.size
_HIGH, _DURABLE_XMIN, _DURABLE_XMAX = 2, 3, 4
"""Places of these numbers, in units of eight bytes."""

_LATEST: Micros = 253_370_764_800_000_000
"""The year 9999. Only a damaged file has a later time, which no message can have."""


class RecordFileError(BrainError):
    """The file of records cannot be used"""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class Header(NamedTuple):
    """Digests of what all records depend on."""

    identity: bytes
    tree: bytes
    epoch: bytes

    @classmethod
    def of(cls, identity: object, tree: frozenset[int], epoch: object) -> "Header":
        return cls(*map(_digest, (identity, sorted(tree), epoch)))


class Record(NamedTuple):
    """A client that has received everything before `time`, and comes back with `since=time`, has
    received every row version that a transaction before `xmin` wrote.
    """

    time: Micros
    """Of the last change that had been sent."""
    xmin: int
    """Of a snapshot, all that is visible in which had been sent."""
    xmax: int
    flushed: int
    """Position of the log on disk."""


def _digest(value: object) -> bytes:
    return blake2b(repr(value).encode(), digest_size=16).digest()


class RecordFile:
    """Raises RecordFileError if the file cannot be used, or another Brain uses it."""

    def __init__(self, folder: Path, name: object) -> None:
        self.path = folder / f"{_digest(name).hex()}.records"
        self.ignored = ""
        """Why what the file contained does not count, if it contained anything."""
        try:
            self._fd = _open(self.path)
        except OSError as error:
            raise RecordFileError(
                f"{self.path} cannot be written: {error.strerror}",
                _READ_ONLY_HINT,
            ) from error
        try:
            self._map = self._mapped()
        except BaseException:
            os.close(self._fd)
            raise
        self._view = memoryview(self._map)
        self._words = self._view.cast("q")

    def _mapped(self) -> mmap.mmap:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.pread(self._fd, SIZE + 1, 0)
            self.ignored = _defect(self.path, found)
            if self.ignored or not found.strip(b"\0"):
                os.ftruncate(self._fd, 0)
                # To write zeros allocates the blocks: a store into a hole of a full disk is SIGBUS.
                _write(self._fd, bytes(SIZE))
                _write(self._fd, MAGIC)
            return mmap.mmap(self._fd, SIZE)
        except BlockingIOError as error:
            raise RecordFileError(
                f"{self.path} is in use by another Brain",
                "set BRAIN_DATA_DIR to another folder",
            ) from error
        except (OSError, ValueError) as error:
            raise RecordFileError(
                f"{self.path} cannot be written: {error}",
                _READ_ONLY_HINT,
            ) from error

    def close(self) -> None:
        """Unlocks it."""
        self._words.release()
        self._view.release()
        self._map.close()
        os.close(self._fd)

    @property
    def high(self) -> Micros:
        """The highest timestamp that may have been sent."""
        return self._words[_HIGH]

    @high.setter
    def high(self, time: Micros) -> None:
        self._words[_HIGH] = time

    @property
    def durable(self) -> tuple[int, int] | None:
        """The xmin and xmax of the last mark, if nothing that a crash may lose was read since."""
        xmin = self._words[_DURABLE_XMIN]
        return (xmin, self._words[_DURABLE_XMAX]) if xmin else None

    @durable.setter
    def durable(self, mark: tuple[int, int] | None) -> None:
        self._words[_DURABLE_XMIN] = 0  # absent while its two numbers are stored
        if mark is not None:
            xmin, self._words[_DURABLE_XMAX] = mark
            self._words[_DURABLE_XMIN] = xmin

    @property
    def header(self) -> Header | None:
        data = bytes(self._view[_HEADER_AT : _HEADER_AT + _HEADER.size])
        *digests, check = _HEADER.unpack(data)
        return Header(*digests) if check == zlib.crc32(data[:-4]) else None

    @header.setter
    def header(self, header: Header | None) -> None:
        body = b"".join(header) if header is not None else bytes(48)
        check = zlib.crc32(body) if header is not None else 0
        self._view[_HEADER_AT : _HEADER_AT + _HEADER.size] = body + _CHECK.pack(check)

    def records(self) -> list[tuple[int, Record]]:
        """The whole ones with their slots, in the order of time."""
        found = []
        for slot in range(SLOTS):
            at = _SLOTS_AT + slot * _RECORD.size
            *values, check = _RECORD.unpack_from(self._view, at)
            if values[0] and check == zlib.crc32(self._view[at : at + 32]):
                found.append((slot, Record(*values)))
        return sorted(found, key=lambda each: each[1])

    def write(self, slot: int, record: Record) -> None:
        data = _RECORD.pack(*record, 0)
        _RECORD.pack_into(
            self._map, _SLOTS_AT + slot * _RECORD.size, *record, zlib.crc32(data[:32])
        )

    def erase(self, slot: int) -> None:
        at = _SLOTS_AT + slot * _RECORD.size
        self._view[at : at + _RECORD.size] = bytes(_RECORD.size)

    def clear(self) -> None:
        """Erase the header, and then everything but the highest timestamp."""
        self.header = None
        self.durable = None
        self._view[_SLOTS_AT:SIZE] = bytes(SIZE - _SLOTS_AT)


def _defect(path: Path, found: bytes) -> str:
    """Why the content of a file does not count, or ""."""
    if not found.strip(b"\0"):
        return ""
    if len(found) != SIZE or not found.startswith(MAGIC):
        return f"{path} was not written by this version of Brain"
    high = int.from_bytes(found[8 * _HIGH : 8 * _HIGH + 8], sys.byteorder, signed=True)
    return "" if 0 <= high < _LATEST else f"{path} is damaged"


def _open(path: Path) -> int:
    """Create it if need be. Raises OSError."""
    folder = path.parent
    above = folder.parent
    above.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o755)
        _give(folder, above)
    # O_NOFOLLOW: the folder may belong to another user, who could make a link to a file of root's.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    _give(fd, folder)
    return fd


def _give(what: int | Path, folder: Path) -> None:
    """Under root: to the owner of the folder, who may run Brain next time."""
    if os.geteuid() == 0:
        os.chown(what, folder.stat().st_uid, folder.stat().st_gid)


def _write(fd: int, data: bytes) -> None:
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError("the disk is full")
