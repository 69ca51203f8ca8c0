"""An error names the field, the value and the rule, for every field and parameter."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from brain.api.models import RunCreate, RunPatch
from brain.api.openapi import FILTER, PAGE
from brain.api.sentences import MAX_ERRORS, RULES
from tests.support.api import fields, problem, serving

JSON = {"content-type": "application/json"}


@pytest.fixture
async def api(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(database) as client:
        await client.post("/api/runs", json={"id": "a"})
        yield client


TEXT = ["7", "true", "[]", "{}", "1e400"]
TIME = [*TEXT, '"yesterday"', '"2026-11-21T09:30:00"', '"infinity"', f'"{"9" * 60}"', '"é"']
BAD: dict[str, list[str]] = {
    "id": [*TEXT, '""', f'"{"x" * 1025}"', f'"{"é" * 513}"'],
    "status": [*TEXT, "null", '"paused"', '""', '"RUNNING"', f'"{"x" * 100}"'],
    "progress": [
        '"12"',
        "true",
        "[]",
        "{}",
        "-1",
        "100.1",
        "1e400",
        "-1e400",
        "9" * 5000,
        "NaN",
        "Infinity",
        "-Infinity",
        "9" * 400,
        '"é"',
    ],
    "task_id": TEXT,
    "agent": TEXT,
    "started_at": TIME,
    "completed_at": TIME,
    "error": TEXT,
}
"""JSON of values that a field does not take."""


def quoted(text: str) -> str:
    """The value of JSON, as an error shows it."""
    if text[0] == '"':
        return ascii(json.loads(text)[:40])
    return {"[]": "a list", "{}": "an object"}.get(text, text[:40])


def test_every_field_has_bad_values_and_a_rule() -> None:
    assert BAD.keys() == RunCreate.model_fields.keys() >= RunPatch.model_fields.keys()
    assert RULES.keys() == {*BAD, "run_id"}


@pytest.mark.parametrize("name", BAD)
async def test_an_error_of_a_field_names_field_value_and_rule(
    api: httpx.AsyncClient, name: str
) -> None:
    for value in BAD[name]:
        body = f'{{"{name}": {value}}}'
        answers = [await api.post("/api/runs", content=body, headers=JSON)]
        if name in RunPatch.model_fields:
            answers.append(await api.patch("/api/runs/a", content=body, headers=JSON))
        for answer in answers:
            document = problem(answer, 422)
            expected = f"{name} is {RULES[name]}, not {quoted(value)}"
            assert document["detail"] == expected
            assert document["errors"] == [{"field": name, "message": expected}]


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        (
            '{"agent": "a\\u0000b"}',
            "agent",
            r"agent must not contain NUL, which PostgreSQL cannot store: 'a\x00b'",
        ),
        (
            '{"agent": "\\ud800"}',
            "agent",
            r"an unpaired surrogate: it is no character: '\ud800'",
        ),
        (
            '{"colour": "red"}',
            "colour",
            "the body has an unknown field colour with the value 'red': the fields here are ",
        ),
        ('{"\\ud800": 1}', r"'\ud800'", r"the body has an unknown field '\ud800' with the value 1"),
        (
            '{"agent": "a", "agent": "b"}',
            "agent",
            "the body has the field 'agent' twice, and 'b' is another",
        ),
        ("[]", "body", "the body is a JSON object with the fields of a run, not a list"),
        ("[{}]", "body", "not a list"),
        ("null", "body", "not null"),
        ('"x"', "body", "not 'x'"),
        ("7", "body", "not 7"),
        ("NaN", "body", "not NaN"),
        ("", "body", "the body is a JSON object with the fields of a run, and this one is empty"),
        (" ", "body", "the body is not JSON: Expecting value at position 1: ''"),
        ('{"agent": }', "body", "the body is not JSON: Expecting value at position 10: '}'"),
        ("{'agent': 1}", "body", "the body is not JSON: "),
        ("[" * 10_000 + "]" * 10_000, "body", "the body is nested more than 32 levels deep"),
        (
            '{"agent": ' + "[" * 500 + "]" * 500 + "}",
            "body",
            "the body is nested more than 32 levels deep",
        ),
        ('{"agent": ' * 10_000 + "1" + "}" * 10_000, "body", "nested more than 32 levels deep"),
        ("[" * 100_000, "body", "nested more than 32 levels deep"),
        (b'{"agent": "\xff"}', "body", "the body is not UTF-8: byte 0xff at position 11"),
        ('{"agent": 1}'.encode("utf-16"), "body", "the body is not UTF-8: byte 0xff at position 0"),
    ],
)
async def test_an_error_of_a_body_names_the_real_problem(
    api: httpx.AsyncClient, body: str | bytes, field: str, sentence: str
) -> None:
    for answer in (
        await api.post("/api/runs", content=body, headers=JSON),
        await api.patch("/api/runs/a", content=body, headers=JSON),
    ):
        document = problem(answer, 422)
        assert sentence in document["detail"]
        assert fields(document) == [field]


async def test_a_change_of_nothing_names_what_can_change(api: httpx.AsyncClient) -> None:
    document = problem(await api.patch("/api/runs/a", json={}), 422)
    assert document["detail"] == (
        "the body has no field to change: "
        "name at least one of status, progress, task_id, agent, error"
    )


async def test_a_text_with_many_brackets_is_not_deep(api: httpx.AsyncClient) -> None:
    text = '[{"\\' * 1000
    assert (await api.patch("/api/runs/a", json={"error": text})).json()["error"] == text


async def test_a_byte_order_mark_is_no_error(api: httpx.AsyncClient) -> None:
    body = '\ufeff{"agent": "x"}'.encode()
    assert (await api.patch("/api/runs/a", content=body, headers=JSON)).json()["agent"] == "x"


async def test_an_answer_lists_a_bounded_number_of_errors(api: httpx.AsyncClient) -> None:
    document = problem(await api.post("/api/runs", json={f"f{i}": i for i in range(5000)}), 422)
    assert len(document["errors"]) == MAX_ERRORS


LONG = "é" * 1100
QUERIES: dict[str, list[tuple[str, str]]] = {
    "run_id": [
        ("", "a text of 1 to 1024 bytes"),
        (LONG, "1024 bytes"),
        ("a\0", "must not contain NUL"),
    ],
    "task_id": [("", "a text of 1 to 1024 characters"), (LONG, "1024 characters"), ("\0", "NUL")],
    "agent": [("", "a text of 1 to 1024 characters"), (LONG, "1024 characters"), ("\0", "NUL")],
    "status": [
        ("", "one of queued, running, completed, failed"),
        ("paused", "one of"),
        ("é", "one of"),
    ],
    "order": [(each, "order is id or changed") for each in ("time", "", "ID")],
    "limit": [
        (each, "a whole number from 1 to 1000")
        for each in ("", "0", "1001", "-1", "x", "1.0", "٣", "9" * 50)
    ],
    "cursor": [
        (each, "the next_cursor of a page")
        for each in ("", "%%", "AA", "é", "_w", "A", "eHh4" * 400)
    ],
}


def test_every_parameter_has_bad_values() -> None:
    documented: list[dict[str, Any]] = [*FILTER, *PAGE]
    assert [*QUERIES] == [each["name"] for each in documented]


@pytest.mark.parametrize("name", QUERIES)
async def test_an_error_of_a_parameter_names_parameter_value_and_rule(
    api: httpx.AsyncClient, name: str
) -> None:
    for value, rule in QUERIES[name]:
        document = problem(await api.get("/api/runs", params={name: value}), 422)
        assert document["errors"] == [{"field": name, "message": document["detail"]}]
        assert document["detail"].startswith(name)
        assert ascii(value[:40]) in document["detail"]
        assert rule in document["detail"]


@pytest.mark.parametrize(
    ("query", "field", "sentence"),
    [
        (
            "stauts=running",
            "stauts",
            "unknown parameter 'stauts': /api/runs knows run_id, task_id,",
        ),
        (
            "snapshot=true",
            "snapshot",
            "/api/runs knows run_id, task_id, agent, status, order, limit, cursor",
        ),
        ("limit=1&limit=2", "limit", "limit may be given once, and '2' is another"),
        ("agent=%FF", "query", "the query is percent-encoded UTF-8, not 'agent=%FF'"),
        (
            "&".join(f"run_id={i}" for i in range(101)),
            "run_id",
            "a filter takes at most 100 values",
        ),
    ],
)
async def test_an_error_of_a_query_names_the_rule(
    api: httpx.AsyncClient, query: str, field: str, sentence: str
) -> None:
    document = problem(await api.get(f"/api/runs?{query}"), 422)
    assert sentence in document["detail"]
    assert fields(document) == [field]


async def test_an_error_of_the_path_names_the_value_and_the_rule(api: httpx.AsyncClient) -> None:
    for run_id in ("é" * 513, "a\0b"):
        document = problem(await api.get(f"/api/runs/{quote(run_id)}"), 422)
        assert fields(document) == ["run_id"]
        assert document["detail"].startswith("run_id ")
        assert ascii(run_id[:40]) in document["detail"]
    missing = problem(await api.get(f"/api/runs/{quote('é' * 100)}"), 404)["detail"]
    assert missing == f"there is no run {'é' * 40!a}"
