"""`/docs` in Chromium: it needs no other host, and its policy permits all that it does."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from brain.api.docs_page import ASSETS, CSP, SWAGGER_UI
from tests.support import ROOT
from tests.support.browser import needs_browser
from tests.support.chromium import opened
from tests.support.issuer import SECRET, token
from tests.support.postgres import execute
from tests.support.served import Brain, served

FOLDER = ROOT / "src" / "brain" / "api" / "swagger_ui"


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    """It requires tokens."""
    with served(database_url=shared, jwt_secret=SECRET) as brain:
        yield brain


def get(brain: Brain, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{brain.port}{path}"
    return httpx.request(method, url, headers=headers, trust_env=False)


def test_the_files_are_those_of_the_version_and_need_no_token(brain: Brain) -> None:
    for path in ASSETS:
        answer = get(brain, path)
        assert answer.status_code == 200
        assert answer.content == (FOLDER / Path(path).name).read_bytes()
        assert answer.headers["content-type"].startswith(("text/javascript", "text/css"))
        assert "immutable" in answer.headers["cache-control"]
        assert get(brain, path, "HEAD").headers["content-length"] == str(len(answer.content))
        assert get(brain, path, "POST").status_code == 405
    version = re.findall(
        r'PACKAGE_VERSION:"([^"]+)"', (FOLDER / "swagger-ui-bundle.js").read_text()
    )
    assert version == [SWAGGER_UI]
    assert "Apache License" in (FOLDER / "LICENSE").read_text()


def test_the_page_has_the_policy(brain: Brain) -> None:
    answer = get(brain, "/docs")
    assert answer.headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert get(brain, "/docs/").status_code == 200
    assert get(brain, "/docs", "HEAD").content == b""


def test_operations_have_examples_and_need_no_token(brain: Brain) -> None:
    paths = get(brain, "/openapi.json").json()["paths"]
    for path in ("/healthz", "/readyz", "/metrics"):
        assert "security" not in paths[path]["get"]
        for answer in paths[path]["get"]["responses"].values():
            assert all(content["examples"] for content in answer["content"].values())
    example = paths["/readyz"]["get"]["responses"]["200"]["content"]["application/json"]
    assert example["examples"]["example"]["value"].keys() == get(brain, "/readyz").json().keys()
    assert all(
        operation["security"] == [{"token": []}]
        for path in ("/api/runs", "/api/runs/{run_id}")
        for operation in paths[path].values()
    )


@needs_browser
async def test_in_chromium_it_loads_only_from_its_origin_and_nothing_complains(
    brain: Brain, shared: str, tmp_path: Path
) -> None:
    execute(shared, "INSERT INTO runs (id) VALUES ('shown')")
    origin = f"http://127.0.0.1:{brain.port}"
    async with opened(f"{origin}/docs", tmp_path) as tab:
        await tab.until("document.querySelectorAll('.opblock').length == 7")
        for operation in ("POST /api/runs", "PATCH /api/runs/{run_id}", "GET /readyz"):
            method, path = operation.split()
            assert await tab.evaluate(
                f"[...document.querySelectorAll('.opblock-{method.lower()} .opblock-summary-path')]"
                f".some(each => each.innerText.replace(/[^!-~]/g, '') == {json.dumps(path)})"
            ), operation
        # With a token, a request of the page gets its answer.
        await tab.evaluate("document.querySelector('.btn.authorize').click()")
        await tab.until("document.querySelector('.auth-container input')")
        await tab.evaluate(
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call("
            f"document.querySelector('.auth-container input'), {json.dumps(token())});"
            "document.querySelector('.auth-container input')"
            ".dispatchEvent(new Event('input', { bubbles: true }));"
            "document.querySelector('.auth-btn-wrapper .authorize').click()"
        )
        await tab.until("document.querySelector('.auth-btn-wrapper .btn-done')")
        await tab.evaluate("document.querySelector('.auth-btn-wrapper .btn-done').click()")
        await tab.evaluate(
            "document.querySelector('.opblock-get .opblock-summary-control').click()"
        )
        await tab.until("document.querySelector('.try-out__btn')")
        await tab.evaluate("document.querySelector('.try-out__btn').click()")
        await tab.until("document.querySelector('.execute')")
        await tab.evaluate("document.querySelector('.execute').click()")
        await tab.until(
            "document.querySelector('.live-responses-table')?.innerText.includes('shown')"
        )
        picture = await tab.call("Page.captureScreenshot", format="png")
        (tmp_path / "docs.png").write_bytes(base64.b64decode(picture["data"]))
    hosts = {urlsplit(url).netloc for url in tab.requests if not url.startswith("data:")}
    assert hosts == {urlsplit(origin).netloc}
    assert tab.complaints == []
    assert set(tab.statuses.values()) == {200}
