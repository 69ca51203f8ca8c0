"""The examples of /openapi.json and docs/reference/api.md are what Brain answers."""

import re
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import pytest

from brain.api.examples import EXAMPLES, STORY, Example
from brain.contract.events import Snapshot
from brain.delivery.board import Board
from tests.support.api import serving

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z")


def timeless(value: Any) -> Any:
    """With each time as the word `time`, and each ETag as `{etag}`."""
    if isinstance(value, Mapping):
        return {name: timeless(each) for name, each in value.items()}
    if isinstance(value, list):
        return [timeless(each) for each in value]
    if isinstance(value, str):
        return re.sub(r'its ETag is "[^"]+"', "its ETag is {etag}", TIME.sub("time", value))
    return value


def send(api: httpx.AsyncClient, example: Example, etag: str) -> Any:
    headers = {name: value.format(etag=etag) for name, value in example.headers.items()}
    return api.request(
        example.method,
        example.target,
        headers={"Content-Type": "application/json"} | headers if example.body else headers,
        json=example.body,
    )


async def test_brain_answers_each_example_of_the_story_as_it_says(database: str) -> None:
    board = Board(1 << 20)
    board.apply(Snapshot([], 1_700_000_000_000_000))
    etag = ""
    async with serving(database, board=board) as api:
        for example in STORY:
            answer = await send(api, example, etag)
            assert answer.status_code == example.status, (example.summary, answer.text)
            expected = timeless(example.answer)
            if "order=changed" in example.target:
                expected |= {"runs": [], "changed_at": []}  # nothing follows the table here
            found = answer.json() if answer.content else None
            assert timeless(found) == expected, example.summary
            etag = answer.headers.get("etag", etag)


async def test_every_request_and_every_answer_has_an_example(database: str) -> None:
    async with serving(database) as api:
        schema = (await api.get("/openapi.json")).json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            for status, answer in operation["responses"].items():
                if status == "304":
                    assert "content" not in answer
                else:
                    bodies.append(answer)
            for body in bodies:
                (content,) = body["content"].values()
                assert content.get("examples"), (method, path, body["description"])
                for each in content["examples"].values():
                    jsonschema.validate(
                        each["value"], {**content["schema"], "components": schema["components"]}
                    )


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda example: f"{example.method}-{example.status}-{example.name}"
)
def test_an_example_has_a_name_of_its_own(example: Example) -> None:
    same = [
        each
        for each in EXAMPLES
        if (each.method, each.route, each.status, each.name)
        == (example.method, example.route, example.status, example.name)
    ]
    assert same == [example]
