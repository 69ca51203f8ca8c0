"""`import brain`: exactly the documented names, and nothing of the server."""

import inspect
import json
import subprocess
import sys

import pytest

import brain

SERVER = ("fastapi", "starlette", "uvicorn", "psycopg", "psycopg_pool", "structlog", "typer", "jwt")


def test_the_public_names_are_those_of_the_docs() -> None:
    assert set(brain.__all__) == {
        "Away",
        "Change",
        "Connected",
        "Deleted",
        "Freshness",
        "Message",
        "Ready",
        "Runs",
        "Source",
        "WatchError",
        "__version__",
        "wait",
        "watch",
    }


@pytest.mark.parametrize("name", sorted(set(brain.__all__) - {"__version__"}))
def test_a_public_name_exists_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(brain, name))


def test_another_name_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'brain' has no attribute 'serve'"):
        brain.serve  # type: ignore[attr-defined]  # noqa: B018 - the access is the test


def test_the_client_loads_nothing_of_the_server() -> None:
    program = (
        "import json, sys; from brain import *; wait, watch; "
        "print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    loaded = set(json.loads(printed))
    assert {"websockets", "pydantic"} <= loaded
    assert loaded.isdisjoint(SERVER)


def test_import_alone_loads_no_dependency() -> None:
    """`brain serve` handles signals only after this import, so it has to be quick."""
    program = "import brain, json, sys; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert {"websockets", "pydantic", "asyncio"}.isdisjoint(json.loads(printed))
