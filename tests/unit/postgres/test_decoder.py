"""Every row of any table becomes a run of the contract, or is rejected."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from brain.contract.messages import CUT, FIELDS, STATUSES, UNCHANGED, RunData, Status, body
from brain.postgres.decoder import MAX_KNOWN, MAX_KNOWN_TEXT, Decoder


def decoded(decoder: Decoder, **fields: str | None) -> Any:
    return decoder([{"id": "a", "status": "queued", **fields}.get(name) for name in FIELDS])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21 09:30:00", "2026-11-21T09:30:00Z"),
        ("2026-11-21T09:30:00.25", "2026-11-21T09:30:00.250000Z"),
        ("2026-11-21 09:30:00-03", "2026-11-21T12:30:00Z"),
        ("2026-W47-6 09:30:00+00", "2026-11-21T09:30:00Z"),
        ("2026-11-21", "2026-11-21T00:00:00Z"),
        ("yesterday", None),
        ("", None),
        ("0001-01-01 00:00:00+14", None),
        ("9999-12-31 23:59:59-01", None),
        ("4714-11-24 BC", None),
        ("junkjunkju junkjunk+00", None),
        ("2026-13-41 99:99:99+00", None),
    ],
)
def test_times_of_any_column_type_become_utc_or_none(text: str, expected: str | None) -> None:
    decoder = Decoder({}, 100)
    assert decoded(decoder, completed_at=text)[6] == expected
    assert decoder.corrected == (expected is None)


@pytest.mark.parametrize(
    ("text", "expected", "corrected"),
    [
        ("0", 0, 0),
        ("-0", 0, 0),
        ("100", 100, 0),
        ("30.0", 30, 0),
        ("33.3", 33.3, 0),
        ("3e-07", 3e-07, 0),
        ("12.50", 12.5, 0),
        ("-0.1", 0, 1),
        ("100.5", 100, 1),
        ("1e999", 100, 1),
        ("Infinity", 100, 1),
        ("-Infinity", 0, 1),
        ("NaN", None, 1),
        ("half", None, 1),
        ("", None, 1),
    ],
)
def test_progress_is_a_number_from_0_to_100_or_none(
    text: str, expected: float | None, corrected: int
) -> None:
    decoder = Decoder({}, 100)
    run = decoded(decoder, progress=text)
    assert run[2] == expected
    assert type(run[2]) is type(expected)
    assert decoder.corrected == corrected
    assert json.loads(body(run)).get("progress") == expected


def test_bodies_are_printable_ascii() -> None:
    texts = [
        "🙂",
        "\u2028\u2029",
        "</script>",
        '"\\\b\n\t',
        "\x01\x1f\x7f",
        "\ufeff",
        "e\u0301",
        "א",
    ]
    for text in texts:
        run = decoded(Decoder({}, 100), id=text, agent=text, task_id=text, error=text)
        encoded = body(run)
        assert encoded.isascii()
        assert encoded.isprintable()
        assert json.loads(encoded) == {
            "id": text,
            "status": "queued",
            "agent": text,
            "task_id": text,
            "error": text,
        }


def test_long_texts_are_cut_and_long_ids_rejected() -> None:
    decoder = Decoder({}, 10)
    run = decoded(decoder, task_id="t" * 11, agent="a" * 10, error="e" * 12)
    assert (run[3], run[4], run[7]) == ("t" * 10 + CUT, "a" * 10, "e" * 10 + CUT)
    for fits in ("i" * 1024, "é" * 512, "\U0001f642" * 256):
        assert decoded(decoder, id=fits)[0] == fits
    for rejected in ("i" * 1025, "é" * 513, "\U0001f642" * 256 + "i", "", None):
        assert decoded(decoder, id=rejected) is None
    assert decoder.rejected == 5


def test_unknown_statuses_are_rejected_and_logged_once() -> None:
    decoder = Decoder({"on hold": "queued"}, 100)
    with capture_logs() as logs:
        for word in ("paused", "paused", "a,b", "", None, "it's"):
            assert decoded(decoder, status=word) is None
    assert decoder.rejected == 6
    assert [(reason.what, reason.rows) for reason in decoder.reasons] == [
        ("status 'paused'", 2),
        ("status 'a,b'", 1),
        ("status ''", 1),
        ("status NULL", 1),
        ('status "it\'s"', 1),
    ]
    assert [log["hint"] for log in logs] == [
        "BRAIN_STATUS_MAP='on hold=queued,paused=failed'  # or =queued, =running, =completed",
        "rename it in the table: BRAIN_STATUS_MAP cannot contain this word",
        "rename it in the table: BRAIN_STATUS_MAP cannot contain this word",
        "give the run a status",
        "BRAIN_STATUS_MAP='on hold=queued,it'\"'\"'s=failed'  # or =queued, =running, =completed",
    ]


@pytest.mark.parametrize("word", ["Queued", "queued ", " QUEUED", "pending", "Waiting  "])
def test_case_and_padding_of_a_word_do_not_matter(word: str) -> None:
    decoder = Decoder({}, 100)
    assert decoded(decoder, status=word)[1] == decoded(decoder, status=word)[1] == "queued"


def test_a_status_map_works_in_both_directions() -> None:
    words: dict[str, Status] = {
        "done": "completed",
        "ok": "completed",
        "new": "queued",
        "t": "running",
        "failed": "completed",
    }
    decoder = Decoder(words, 100)
    assert [
        decoded(decoder, status=word)[1] for word in ("done", "ok", "new", "t", "queued", "failed")
    ] == [
        "completed",
        "completed",
        "queued",
        "running",
        "queued",
        "completed",
    ]
    assert {"queued", "running", "new", "t"} < set(decoder.active_words)
    assert {"completed", "done", "ok", "failed"} < set(decoder.words("completed"))
    assert decoder.words() == []
    # Two other words mean completed, and `failed` does not mean failed.
    assert [decoder.word(status) for status in STATUSES] == ["new", "t", "completed", "error"]
    assert [decoder.status(word) for word in ("done", "queued", "odd", None)] == [
        "completed",
        "queued",
        None,
        None,
    ]


def test_unchanged_values_stay_unchanged() -> None:
    run = decoded(
        Decoder({}, 100), status=UNCHANGED, error=UNCHANGED, agent=UNCHANGED, task_id=UNCHANGED
    )
    assert (run[1], run[3], run[4], run[7]) == (UNCHANGED,) * 4


texts = (
    st.none()
    | st.text(max_size=30)
    | st.sampled_from(["NaN", "1e5", "infinity", "2026-11-21 09:30:00+00", "50"])
)


@given(st.lists(texts, min_size=8, max_size=8), st.sampled_from(["queued", "running", "x", None]))
def test_every_row_is_a_run_of_the_contract_or_rejected(
    row: Sequence[str | None], word: str | None
) -> None:
    decoder = Decoder({}, 20)
    values = [row[0], word, *row[2:]]
    run = decoder([None if value is None else value.replace("\0", "") for value in values])
    if run is None:
        assert decoder.rejected == 1
    else:
        data = RunData.model_validate_json(body(run))
        assert data.progress is None or math.isfinite(data.progress)
        for moment in (data.started_at, data.completed_at):
            assert moment is None or moment.tzinfo is not None
        assert data.model_dump(exclude_none=True).keys() == json.loads(body(run)).keys()


@pytest.mark.parametrize("number", ["1801010112345", "1801010112", "20260101", "0"])
def test_a_number_is_no_time(number: str) -> None:
    """Such as a moment in milliseconds, which Python would read as one of the year 1801."""
    decoder = Decoder({}, 100)
    assert decoded(decoder, started_at=number)[5] is None
    assert decoder.corrected == 1


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_of_python_keeps_its_value(moment: datetime) -> None:
    seen = decoded(Decoder({}, 100), started_at=moment.isoformat(" ").removesuffix(":00"))[5]
    assert datetime.fromisoformat(seen) == moment


def test_the_meanings_of_texts_are_bounded_and_corrections_are_counted_each_time() -> None:
    decoder = Decoder({}, 100)
    for i in range(3 * MAX_KNOWN):
        assert decoded(decoder, progress=f"0.{i:05}") is not None
    assert len(decoder._numbers) <= MAX_KNOWN
    for _ in range(2):
        decoded(decoder, progress="101", started_at="never")
    assert decoder.corrected == 4
    decoded(decoder, progress=f"1.{'0' * 1000}")
    assert max(map(len, decoder._numbers)) <= MAX_KNOWN_TEXT  # and not those of a numeric(1000)
