"""The private parts of uvicorn and httptools that Brain overrides or reads.

If one of these tests fails after an upgrade of uvicorn, compare its `HttpToolsProtocol` and
`Server` with src/brain/server/http.py and listener.py before you raise the upper bound.
"""

import asyncio
import inspect
from typing import Any

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from brain.server.http import HTTPProtocol
from brain.server.listener import Server


async def _app(_scope: Any, _receive: Any, _send: Any) -> None:
    pass


def protocol() -> HttpToolsProtocol:
    config = uvicorn.Config(_app, ws="none", lifespan="off", log_config=None)
    loop = asyncio.new_event_loop()
    try:
        return HttpToolsProtocol(config, ServerState(), {}, loop)
    finally:
        loop.close()


OVERRIDDEN = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "data_received": ["self", "data"],
    "eof_received": ["self"],
    "on_message_begin": ["self"],
    "on_url": ["self", "url"],
    "on_header": ["self", "name", "value"],
    "on_headers_complete": ["self"],
    "on_message_complete": ["self"],
    "_should_upgrade": ["self"],
}
"""Methods of HttpToolsProtocol → their parameters."""


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_the_protocol_overrides_is_there(name: str) -> None:
    method = inspect.getattr_static(HttpToolsProtocol, name, None)
    assert method is not None, f"uvicorn has no HttpToolsProtocol.{name} any more"
    assert list(inspect.signature(method).parameters) == OVERRIDDEN[name]
    assert inspect.getattr_static(HTTPProtocol, name) is not method


def test_the_protocol_overrides_nothing_else_by_accident() -> None:
    parents = set(vars(HttpToolsProtocol)) - {"__init__", "__module__", "__doc__"}
    ours = {name for name in vars(HTTPProtocol) if not name.startswith("__")}
    assert ours & parents == set(OVERRIDDEN)


@pytest.mark.parametrize("name", ["_unset_keepalive_if_required", "shutdown"])
def test_what_the_protocol_calls_is_there(name: str) -> None:
    assert callable(getattr(HttpToolsProtocol, name, None)), f"uvicorn has no {name} any more"


ATTRIBUTES = (
    "app", "config", "loop", "parser", "connections", "tasks", "transport", "flow", "scheme",
    "client",
    "scope", "headers", "cycle",
)  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_the_protocol_reads_or_sets_is_there(name: str) -> None:
    assert hasattr(protocol(), name), f"HttpToolsProtocol has no attribute {name} any more"


def test_it_overrides_no_attribute_of_uvicorn() -> None:
    brain = {
        name
        for name in HTTPProtocol.__init__.__code__.co_names
        if name.startswith("_") and not name.startswith("__")
    } | {"peer", "accepted"}
    assert not brain & set(vars(protocol()))


def test_what_a_request_is_told_by_is_there() -> None:
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    for name in ("disconnected", "message_event", "response_started", "response_complete"):
        assert f"self.{name}" in cycle, name
    assert "self.keep_alive" in cycle
    assert list(inspect.signature(FlowControl.__init__).parameters) == ["self", "transport"]
    assert "write_paused" in inspect.getsource(FlowControl)
    assert hasattr(uvicorn.Config(_app), "loaded_app") or "loaded_app" in inspect.getsource(
        uvicorn.Config.load
    )


def test_what_the_server_overrides_and_reads_is_there() -> None:
    for name in ("startup", "main_loop", "shutdown", "capture_signals", "serve"):
        assert callable(getattr(uvicorn.Server, name, None)), name
        assert name == "serve" or name in vars(Server)
    server = uvicorn.Server(uvicorn.Config(_app))
    for name in ("servers", "server_state", "started", "should_exit", "force_exit"):
        assert hasattr(server, name) or name == "servers", name
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)
    assert isinstance(server.server_state.connections, set)
    assert isinstance(server.server_state.tasks, set)


def test_what_the_parser_says_is_there() -> None:
    for name in ("feed_data", "get_method", "get_http_version", "should_upgrade"):
        assert callable(getattr(httptools.HttpRequestParser, name, None)), name
    assert issubclass(httptools.HttpParserUpgrade, Exception)
    assert issubclass(httptools.HttpParserInvalidURLError, httptools.HttpParserError)
