"""Recorded bytes of real servers (golden/record.py), and bytes that no server sends."""

import contextlib
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain.contract.messages import UNCHANGED
from brain.postgres.pgoutput import PgoutputError, Relation, RowFormat, shortened, update
from brain.postgres.text import Unreadable
from tests.support.pgoutput import (
    Begin,
    Commit,
    Delete,
    Ignored,
    Insert,
    Message,
    Truncate,
    Update,
    parse,
)

untimed = settings(deadline=None)  # a busy machine is no fault

Recording: TypeAlias = dict[str, list[bytes]]
RECORDINGS = sorted(Path(__file__).parent.glob("golden/pgoutput-*.txt"))


def load(path: Path) -> Recording:
    recording: Recording = {}
    for line in path.read_text().splitlines():
        if line.startswith("# "):
            recording[line[2:]] = messages = []
        else:
            messages.append(bytes.fromhex(line))
    return recording


GOLDEN = sorted(
    {data for path in RECORDINGS for messages in load(path).values() for data in messages}
)

RUNS = ("id", "status", "progress", "error", "mood")
LATER = ("id", "status", "error", "mood", "extra")
WIDE = ("id", *(f"c{i}" for i in range(300)))
IN_RUNS = ["Begin", "Y", ("runs", "d", RUNS)]
IN_WHOLE = ["Begin", ("whole", "f", ("id", "t"))]
LONG = "é" * 1200

EXPECTED: list[list[object]] = [
    [*IN_RUNS, ("insert", "runs", ["a", "queued", None, LONG, "fine"]), "Commit"],
    [
        *IN_RUNS,
        ("update", "runs", ["a", "running", "33.3", UNCHANGED, "fine"], None, False),
        "Commit",
    ],
    [
        *IN_RUNS,
        (
            "update",
            "runs",
            ["b", "running", "33.3", UNCHANGED, "fine"],
            ["a", None, None, None, None],
            False,
        ),
        "Commit",
    ],
    [*IN_RUNS, ("delete", "runs", ["b", None, None, None, None]), "Commit"],
    [
        *IN_WHOLE,
        ("insert", "whole", ["1", None]),
        ("insert", "whole", ["2", "\\ \n € 😀"]),
        "Commit",
    ],
    [*IN_WHOLE, ("update", "whole", ["1", "x"], ["1", None], True), "Commit"],
    [*IN_WHOLE, ("delete", "whole", ["1", "x"]), "Commit"],
    ["Begin", ("wide", "d", WIDE), ("insert", "wide", ["7", *map(str, range(300))]), "Commit"],
    [*IN_RUNS, ("wide", "d", WIDE), ("truncate", "runs", "wide"), "Commit"],
    [],
    [
        "Begin",
        "Y",
        ("runs", "d", LATER),
        ("insert", "runs", ["c", "", None, "bad", "more"]),
        "Commit",
    ],
    [],
    ["Begin", "M", "Commit"],
    [],
    [],
    [
        "M",
        "Begin",
        "O",
        "Y",
        ("runs", "d", LATER),
        ("insert", "runs", ["from elsewhere", None, None, None, "e"]),
        "Commit",
    ],
]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_parses_what_each_version_of_postgresql_sends(path: Path) -> None:
    names: dict[int, str] = {}

    def summary(message: Message) -> object:
        match message:
            case Begin() | Commit():
                return type(message).__name__
            case Relation(oid, schema, name, identity, columns):
                assert schema == "public"
                names[oid] = name
                return name, identity, columns
            case Insert(oid, new):
                return "insert", names[oid], new
            case Update(oid, new, old, full):
                return "update", names[oid], new, old, full
            case Delete(oid, old):
                return "delete", names[oid], old
            case Truncate(oids):
                return "truncate", *(names[oid] for oid in oids)
            case Ignored(kind):
                return kind

    recording = load(path)
    assert [
        [summary(parse(data)) for data in messages] for messages in recording.values()
    ] == EXPECTED


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_transaction_stands_between_its_begin_and_its_commit(path: Path) -> None:
    before = 0
    for messages in load(path).values():
        parsed = [parse(data) for data in messages]
        for begin in (message for message in parsed if isinstance(message, Begin)):
            commit = parsed[-1]
            assert isinstance(commit, Commit)
            assert before < begin.lsn == commit.lsn < commit.end
            assert begin.time == commit.time > 1_700_000_000_000_000
            assert begin.xid > 3
            before = commit.end


def test_each_kind_was_recorded() -> None:
    assert {data[:1] for data in GOLDEN} == set(map(bytes, zip(b"BCRIUDTYOM", strict=False)))
    assert len(RECORDINGS) == 3


def parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(PgoutputError):
        parse(data)


@untimed
@given(st.binary(max_size=80))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    parsed_or_refused(data)


@untimed
@given(st.sampled_from(b"BCRIUDTYOM"), st.binary(max_size=80))
def test_any_bytes_after_a_kind_are_parsed_or_refused(kind: int, data: bytes) -> None:
    parsed_or_refused(bytes([kind]) + data)


@untimed
@given(st.sampled_from(GOLDEN), st.data())
def test_a_message_with_one_byte_changed_is_parsed_or_refused(
    message: bytes, data: st.DataObject
) -> None:
    # The lengths are in the head; the inside of a text matters little.
    at = data.draw(st.integers(0, min(len(message), 200) - 1))
    parsed_or_refused(message[:at] + bytes([data.draw(st.integers(0, 255))]) + message[at + 1 :])


@pytest.mark.parametrize(
    "message", [m for m in GOLDEN if m[:1] not in b"YOM"], ids=lambda m: m[:5].hex()
)
def test_refuses_a_message_that_is_cut_short_or_too_long(message: bytes) -> None:
    step = max(1, len(message) // 300)
    for size in {*range(0, len(message), step), len(message) - 1}:
        with pytest.raises(PgoutputError):
            parse(message[:size])
    with pytest.raises(PgoutputError):
        parse(message + b"\0")


def test_reads_a_text_in_its_encoding_and_replaces_bytes_that_are_none() -> None:
    data = b"I\0\0\0\1N\0\2t\0\0\0\2a\xfft\0\0\0\1b"
    assert parse(data, "iso8859-1") == Insert(1, ["a\xff", "b"])
    found = parse(data)
    assert found == Insert(1, ["a\ufffd", "b"])
    assert isinstance(found, Insert)
    assert [type(value) for value in found.new] == [Unreadable, str]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"S\0\0\0\1\1",  # a stream start, of protocol version 2
        b"I\0\0\0\1K\0\1t\0\0\0\1a",
        b"I\0\0\0\1N\0\1t\0\0\0\2a",
        b"I\0\0\0\1N\0\1t\xff\xff\xff\xffa",
        b"I\0\0\0\1N\0\1b\0\0\0\1a",  # binary, which Brain does not request
        b"I\0\0\0\1N\xff\xffn",
        b"U\0\0\0\1K\0\1nK\0\1n",
        b"U\0\0\0\1?\0\1n",
        b"D\0\0\0\1N\0\1n",
        b"T\0\0\0\2\0\0\0\0\1",
        b"T\xff\xff\xff\xff\0\0\0\0\1",
        b"R\0\0\0\1public\0runs",
        b"R\0\0\0\1public\0runs\0d\0\1\0id\0\0\0",
        b"B" + 19 * b"\0",
    ],
)
def test_refuses_what_is_no_message(data: bytes) -> None:
    with pytest.raises(PgoutputError, match="not a pgoutput message"):
        parse(data)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_reads_a_message_inside_its_envelope(path: Path) -> None:
    for messages in load(path).values():
        for data in messages:
            assert parse(b"envelope" + data, at=8) == parse(data)


def test_reads_the_wanted_columns_alone_each_into_its_place() -> None:
    data = b"U\0\0\0\1N\0\4t\0\0\0\1at\0\0\0\1\xffut\0\0\0\1z"
    found = update(data, 0, {1: RowFormat((2, -1, -1, 0), 4)})
    assert found == (["z", None, "a", None], False, None, False)


def test_a_row_of_a_relation_that_nobody_wants_is_not_read() -> None:
    assert update(b"U\0\0\0\1N\xff\xff", 0, {2: RowFormat((0,), 1)}) is None


def cut(value: str | None, longest: int, codec: str) -> str | None:
    """The longest beginning that takes as many bytes."""
    while value is not None and len(value.encode(codec)) > longest:
        value = value[:-1]
    return value


TEXTS = (
    st.none() | st.sampled_from([UNCHANGED]) | st.text(st.sampled_from("a0€é😀\n中"), max_size=12)
)


def column(value: str | None, codec: str) -> bytes:
    if value is None or value == UNCHANGED:
        return b"n" if value is None else b"u"
    text = value.encode(codec, "replace")
    return b"t" + len(text).to_bytes(4, "big") + text


@untimed
@given(
    st.sampled_from("IUD"),
    st.lists(TEXTS, min_size=1, max_size=4),
    st.booleans(),
    st.integers(4, 30),
    st.sampled_from(["utf-8", "euc_jp", "gb2312", "iso8859-15"]),
)
def test_a_shortened_row_has_the_beginnings_of_its_texts(
    kind: str, values: list[str | None], both: bool, longest: int, codec: str
) -> None:
    row = len(values).to_bytes(2, "big") + b"".join(column(value, codec) for value in values)
    data = kind.encode() + b"\0\0\0\1"
    if kind == "D" or (kind == "U" and both):
        data += b"K" + row
    if kind != "D":
        data += b"N" + row
    envelope = b"w" * 25
    short = shortened(memoryview(envelope + data), 25, longest, codec)
    assert short[:25] == envelope
    whole, found = parse(data, codec), parse(short, codec, 25)
    assert isinstance(whole, Insert | Update | Delete)
    for field in ("new", "old"):
        if (texts := getattr(whole, field, None)) is not None:
            assert getattr(found, field) == [cut(text, longest, codec) for text in texts]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_message_without_long_texts_is_shortened_to_itself(path: Path) -> None:
    for messages in load(path).values():
        for data in messages:
            assert shortened(memoryview(data), 0, 2400, "utf-8") == data


@untimed
@given(st.sampled_from(GOLDEN), st.data())
def test_what_is_refused_is_refused_when_it_is_shortened(
    message: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, min(len(message), 200) - 1))
    bent = message[:at] + bytes([data.draw(st.integers(0, 255))]) + message[at + 1 :]
    try:
        whole: Message | None = parse(bent)
    except PgoutputError:
        whole = None
    try:
        short: Message | None = parse(shortened(memoryview(bent), 0, len(bent), "utf-8"))
    except PgoutputError:
        short = None
    assert short == whole
