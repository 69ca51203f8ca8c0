"""A page in an installed Chromium, by DevTools: for a test that has an event loop of its own."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.support.browser import headless
from tests.support.patience import PATIENCE, eventually


class Tab:
    """What a page has requested and complained about so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.requests: list[str] = []
        self.statuses: dict[str, int] = {}
        """URL → status."""
        self.complaints: list[str] = []
        """Console errors and warnings, exceptions, and what the browser itself logs (CSP)."""
        self._socket = socket
        self._calls = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def listen(self) -> None:
        async for text in self._socket:
            event = json.loads(text)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event.get("result", event))
                continue
            given = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    self.requests.append(given["request"]["url"])
                case "Network.responseReceived":
                    self.statuses[given["response"]["url"]] = given["response"]["status"]
                case "Network.webSocketCreated":
                    self.requests.append(given["url"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(given["exceptionDetails"])[:500])
                case "Runtime.consoleAPICalled" if given["type"] in ("error", "warning", "assert"):
                    self.complaints.append(json.dumps(given["args"])[:500])
                case "Log.entryAdded" if given["entry"]["level"] in ("error", "warning"):
                    self.complaints.append(given["entry"]["text"])

    async def call(self, method: str, **params: Any) -> Any:
        self._calls += 1
        number = self._calls
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        return await asyncio.wait_for(answer, PATIENCE)

    async def evaluate(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await self.evaluate(f"Boolean({expression})"):
            assert asyncio.get_running_loop().time() < deadline, (expression, self.complaints)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Tab]:
    """A tab that shows `url`. `folder` is for the browser's profile."""
    with headless(folder, "about:blank"):
        address = folder / "profile" / "DevToolsActivePort"
        await eventually(lambda: address.exists() and address.read_text().count("\n") == 1)
        port = address.read_text().splitlines()[0]
        async with httpx.AsyncClient(trust_env=False, verify=False) as http:
            tabs = (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
        target = next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"]
        async with connect(target, max_size=None, compression=None, proxy=None) as socket:
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            for domain in ("Network", "Runtime", "Log", "Page"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            yield tab
            listening.cancel()
            await asyncio.wait([listening])
