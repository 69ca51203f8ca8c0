"""/asyncapi.json: the official parser accepts it, and it says what the code does."""

import copy
import json
import shutil
import subprocess
from typing import Any

import httpx
import jsonschema
import pytest

from brain.api.asyncapi import asyncapi
from brain.contract.close_codes import CLOSE_CODES
from brain.contract.include import (
    NO_SOURCE,
    SourceReport,
    deleted_message,
    ready_message,
    source_message,
)
from brain.contract.messages import STATUSES, TYPES, Run, message
from brain.contract.subscription import parse_subscription
from tests.support import ROOT
from tests.support.api import serving
from tests.support.patience import PATIENCE

NODE = ROOT / "tests" / "support" / "node"


@pytest.fixture
def document() -> dict[str, Any]:
    return asyncapi(host="localhost:5221", protocol="ws", requires_token=False)


def parsed(*documents: dict[str, Any]) -> list[dict[str, Any]]:
    node = shutil.which("node")
    assert node
    result = subprocess.run(
        [node, "asyncapi.mjs"],
        cwd=NODE,
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.mark.skipif(
    not (NODE / "node_modules" / "@asyncapi").is_dir(),
    reason="@asyncapi/parser is not installed: make .venv/node.done",
)
def test_the_official_parser_finds_nothing() -> None:
    """With and without tokens. It would have found a message that is missing."""
    plain, guarded = (
        asyncapi(host="localhost:5221", protocol="ws", requires_token=required)
        for required in (False, True)
    )
    broken = copy.deepcopy(guarded)
    del broken["channels"]["changes"]["messages"]["ping"]
    *good, bad = parsed(plain, guarded, broken)
    for found in good:
        worse = [each for each in found["diagnostics"] if each["severity"] < 2]  # or information
        assert (found["valid"], worse) == (True, [])
    assert not bad["valid"]


@pytest.mark.parametrize("status", STATUSES)
def test_each_message_is_of_its_type_only(document: dict[str, Any], status: str) -> None:
    run: Run = ("a", status, 5.0, "t", None, "2026-11-21T09:30:00Z", None, "e")
    frame = message(run, 1_700_000_000_000_000)
    sent = json.loads(frame[frame.index(b"{") :])
    names = [each["$ref"].rpartition("/")[2] for each in document["operations"]["push"]["messages"]]
    fits = [name for name in names if _fits(document, name, sent)]
    assert fits == [TYPES[status]]
    assert not _fits(document, fits[0], sent | {"extra": 1})


def _fits(document: dict[str, Any], name: str, sent: Any) -> bool:
    payload = document["components"]["messages"][name]["payload"]
    schema = {**payload, "components": document["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(sent)


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (deleted_message("a", 1), "run_deleted"),
        (ready_message(1), "ready"),
        (source_message(SourceReport("poll", "role", "no right", 0.2), 1), "source"),
        (source_message(NO_SOURCE, 1), "source"),
    ],
)
def test_what_include_adds_is_of_its_type_only(
    document: dict[str, Any], frame: bytes, name: str
) -> None:
    sent = json.loads(frame[frame.index(b"{") :])
    assert sent["type"] == name
    found = document["components"]["messages"]
    assert [each for each in found if _fits(document, each, sent)] == [name]


def test_each_example_fits_its_message(document: dict[str, Any]) -> None:
    for name, each in document["components"]["messages"].items():
        assert each["examples"]
        for example in each["examples"]:
            assert _fits(document, name, example["payload"]), name


def test_the_query_is_what_brain_parses(document: dict[str, Any]) -> None:
    properties = document["channels"]["changes"]["bindings"]["ws"]["query"]["properties"]
    values = {
        "status": "failed",
        "include": "ready",
        "snapshot": "true",
        "since": "2026-11-21T09:30:00Z",
    }
    for name in properties:
        parse_subscription([(name, values.get(name, "x"))])
    with pytest.raises(ValueError, match="unknown parameter") as caught:
        parse_subscription([("other", "x")])
    assert str(caught.value).endswith(f"knows {', '.join(properties)}")


def test_it_has_each_close_code(document: dict[str, Any]) -> None:
    listed = document["channels"]["changes"]["x-close-codes"]
    assert [(each["code"], each["meaning"]) for each in listed] == [
        (each.code, each.meaning) for each in CLOSE_CODES.values()
    ]


async def test_it_names_the_server_that_was_asked(database: str) -> None:
    async with serving(database) as api:
        answer = await api.get("/asyncapi.json")
        assert answer.headers["content-type"] == "application/json"
        server = answer.json()["servers"]["brain"]
        assert server["host"] == httpx.URL(str(api.base_url)).netloc.decode()
        assert server["protocol"] == "ws"
        answer = await api.get("/asyncapi.json", headers={"X-Forwarded-Proto": "https"})
        assert answer.json()["servers"]["brain"]["protocol"] == "wss"
