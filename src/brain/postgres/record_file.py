"""The file of records: what of the checkpoints outlives the process (records.py has the rules).

It has a fixed size, and each change of it is one `pwrite` of some bytes: a SIGKILL loses nothing
that was written. (Mapped into memory, a store is cheaper, but when somebody truncates the file, or
its disk has no room for a hole, the store is a SIGBUS and the end of Brain. A write reports that.)
Each part has a checksum, but for the numbers of eight bytes, which are written whole or not at all.

    0     16  what the file is, and the version of its format
    16     8  high: the highest timestamp that may have been sent
    24    16  xmin and xmax of the last mark behind which a crash of PostgreSQL loses nothing
    64    52  header: digests of identity, tree and epoch, and a checksum
    120   36  digests of the parts of the identity, which say what has changed, and a checksum
    160   92  spans of timestamps (sent_times.py), and a checksum
    256       SLOTS records of 40 bytes: time, xmin, xmax, flushed, a checksum

An older Brain leaves 120 to 252 as they are; the checksum of the first contains the header. The
numbers are in the byte order of the machine. The file is locked (flock) by the Brain that uses it:
two Brains give one commit different times.
"""

import contextlib
import errno
import fcntl
import os
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from brain.contract.errors import BrainError
from brain.contract.messages import Micros

MAGIC = b"brain records 1\n"
"""Another version of the format, or of what its fields mean, has another number."""

WRITE_HINT = "set BRAIN_DATA_DIR to a folder that Brain may write"
_LOCK_HINT = "set BRAIN_DATA_DIR to a folder on a local disk"
_OTHER_HINT = "set BRAIN_DATA_DIR to another folder"

SLOTS = 2048
_HIGH_AT, _DURABLE_AT, _HEADER_AT, _PARTS_AT, _SPANS_AT, _SLOTS_AT = 16, 24, 64, 120, 160, 256
_NUMBER = Struct("=q")
_DURABLE = Struct("=qq")
_HEADER = Struct("=16s16s16sI")
_PARTS = Struct("=32sI")
_SPANS = Struct("=11qI")
_RECORD = Struct("=qqqqI4x")
_CHECK = Struct("=I")
SIZE = _SLOTS_AT + SLOTS * _RECORD.size

_DIGEST = 4
"""Bytes of the digest of a part of the identity: two equal ones only make a reason less exact."""

NUMBERS = 11
"""Numbers that it has of spans."""

LATEST: Micros = 253_370_764_800_000_000
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


def digests(values: Sequence[object]) -> list[bytes]:
    """Of at most eight parts."""
    return [_digest(value)[:_DIGEST] for value in values]


class RecordFile:
    """Raises RecordFileError if the file cannot be used, or another Brain uses it; from then on
    only `abandon` may be called.
    """

    def __init__(self, folder: Path, name: object, *, peek: bool = False) -> None:
        """`peek`: only read it, also while a Brain uses it. A file that is missing is empty."""
        self.path = folder / f"{_digest(name).hex()}.records"
        self.ignored = ""
        """Why what the file contained does not count, if it contained anything."""
        if peek:
            self._peek()
            return
        self._fd = self._locked()
        try:
            found = os.pread(self._fd, SIZE + 1, 0)
            self.ignored = _defect(self.path, found)
            if self.ignored or not found.strip(b"\0"):
                self._image = bytearray(MAGIC.ljust(SIZE, b"\0"))
                self._write_all()
            else:
                self._image = bytearray(found)
        except OSError as error:
            self.abandon()
            raise self._unwritable(error) from error

    def _peek(self) -> None:
        found = b""
        try:
            found = self.path.read_bytes()
            self.ignored = _defect(self.path, found)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.ignored = f"{self.path} cannot be read: {error.strerror}"
        self._image = bytearray(SIZE if self.ignored or not found.strip(b"\0") else found)

    def _locked(self) -> int:
        try:
            fd = _open(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                detail = f"{self.path} is in use by another Brain"
                raise RecordFileError(detail, _OTHER_HINT) from error
            detail = f"{self.path} cannot be locked: {error.strerror}"
            raise RecordFileError(detail, _LOCK_HINT) from error
        return fd

    def _unwritable(self, error: OSError) -> RecordFileError:
        return RecordFileError(f"{self.path} cannot be written: {error.strerror}", WRITE_HINT)

    def close(self) -> None:
        """Unlocks it."""
        os.close(self._fd)

    def abandon(self) -> None:
        """Close it, so that nobody takes it for complete: something could not be written."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def repair(self) -> str:
        """Undo what somebody else did to the file. Returns what that was, or ""."""
        try:
            ours = os.fstat(self._fd)
            try:
                found = self.path.stat(follow_symlinks=False)
            except FileNotFoundError:
                found = None
            if found is None or (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
                fd = self._locked()
                os.close(self._fd)
                self._fd = fd
                self._write_all()
                return f"{self.path} was {'removed' if found is None else 'replaced'}"
            if os.pread(self._fd, SIZE + 1, 0) != self._image:
                self._write_all()
                return f"{self.path} was changed by another program"
        except OSError as error:
            raise self._unwritable(error) from error
        return ""

    def _write_all(self) -> None:
        """Raises OSError. It allocates each block, so that no later write needs room."""
        os.ftruncate(self._fd, SIZE)
        self._pwrite(0, self._image)

    def _pwrite(self, at: int, data: bytes | bytearray) -> None:
        if os.pwrite(self._fd, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _store(self, at: int, data: bytes) -> None:
        self._image[at : at + len(data)] = data
        try:
            self._pwrite(at, data)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def high(self) -> Micros:
        """The highest timestamp that may have been sent."""
        return int(_NUMBER.unpack_from(self._image, _HIGH_AT)[0])

    @high.setter
    def high(self, time: Micros) -> None:
        self._store(_HIGH_AT, _NUMBER.pack(time))

    @property
    def durable(self) -> tuple[int, int] | None:
        """The xmin and xmax of the last mark, if nothing that a crash may lose was read since."""
        xmin, xmax = _DURABLE.unpack_from(self._image, _DURABLE_AT)
        return (xmin, xmax) if xmin else None

    @durable.setter
    def durable(self, mark: tuple[int, int] | None) -> None:
        if mark == self.durable:
            return
        self._store(_DURABLE_AT, _NUMBER.pack(0))  # absent while its two numbers are stored
        if mark is not None:
            xmin, xmax = mark
            self._store(_DURABLE_AT + _NUMBER.size, _NUMBER.pack(xmax))
            self._store(_DURABLE_AT, _NUMBER.pack(xmin))

    @property
    def header(self) -> Header | None:
        data = self._part(_HEADER_AT, _HEADER)
        *digests, check = _HEADER.unpack(data)
        return Header(*digests) if check == zlib.crc32(data[:-4]) else None

    @header.setter
    def header(self, header: Header | None) -> None:
        body = b"".join(header) if header is not None else bytes(48)
        check = zlib.crc32(body) if header is not None else 0
        self._store(_HEADER_AT, body + _CHECK.pack(check))

    @property
    def torn(self) -> bool:
        """Whether there was a header, of which only a part was written."""
        return self.header is None and any(self._part(_HEADER_AT, _HEADER))

    @property
    def parts(self) -> list[bytes]:
        """Digests of the parts of the identity of the header. Empty if they are not known."""
        found, check = _PARTS.unpack(self._part(_PARTS_AT, _PARTS))
        if check != zlib.crc32(found, self._header_check):
            return []
        return [found[at : at + _DIGEST] for at in range(0, len(found), _DIGEST)]

    @parts.setter
    def parts(self, values: Sequence[object]) -> None:
        """Of the header that has just been stored."""
        found = b"".join(digests(values)).ljust(32, b"\0")
        self._store(_PARTS_AT, _PARTS.pack(found, zlib.crc32(found, self._header_check)))

    @property
    def _header_check(self) -> int:
        *_, check = _HEADER.unpack(self._part(_HEADER_AT, _HEADER))
        return int(check)

    @property
    def spans(self) -> list[int] | None:
        """NUMBERS numbers; None if they were never stored, or are torn."""
        data = self._part(_SPANS_AT, _SPANS)
        *numbers, check = _SPANS.unpack(data)
        return numbers if check == zlib.crc32(data[:-4]) else None

    @spans.setter
    def spans(self, numbers: list[int]) -> None:
        body = _SPANS.pack(*numbers, 0)[:-4]
        self._store(_SPANS_AT, body + _CHECK.pack(zlib.crc32(body)))

    def _part(self, at: int, what: Struct) -> bytes:
        return bytes(self._image[at : at + what.size])

    def records(self) -> list[tuple[int, Record]]:
        """The whole ones with their slots, in the order of time."""
        found = []
        for slot in range(SLOTS):
            at = _SLOTS_AT + slot * _RECORD.size
            *values, check = _RECORD.unpack_from(self._image, at)
            if values[0] and check == zlib.crc32(self._image[at : at + 32]):
                found.append((slot, Record(*values)))
        return sorted(found, key=lambda each: each[1])

    def write(self, slot: int, record: Record) -> None:
        body = _RECORD.pack(*record, 0)[:32]
        data = _RECORD.pack(*record, zlib.crc32(body))
        self._store(_SLOTS_AT + slot * _RECORD.size, data)

    def erase(self, slot: int) -> None:
        self._store(_SLOTS_AT + slot * _RECORD.size, bytes(_RECORD.size))

    def clear(self) -> None:
        """Erase the header, and then everything but the timestamps."""
        self.header = None
        self.durable = None
        self._store(_SLOTS_AT, bytes(SIZE - _SLOTS_AT))


def _defect(path: Path, found: bytes) -> str:
    """Why the content of a file does not count, or ""."""
    if not found.strip(b"\0"):
        return ""
    if len(found) != SIZE or not found.startswith(MAGIC):
        return f"{path} was not written by this version of Brain"
    (high,) = _NUMBER.unpack_from(found, _HIGH_AT)
    return "" if 0 <= high < LATEST else f"{path} is damaged"


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
    try:
        _give(fd, folder)
    except OSError:
        os.close(fd)
        raise
    return fd


def _give(what: int | Path, folder: Path) -> None:
    """Under root: to the owner of the folder, who may run Brain next time."""
    if os.geteuid() == 0:
        os.chown(what, folder.stat().st_uid, folder.stat().st_gid)
