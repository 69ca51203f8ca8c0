"""The routes of the page: caching, headers, access rules, and what the package contains."""

import gzip
import re
from collections.abc import Iterator

import httpx
import pytest

from brain.page.assets import load
from tests.support.issuer import SECRET
from tests.support.patience import PATIENCE
from tests.support.served import Brain, served


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared, jwt_secret=SECRET) as brain:
        yield brain


@pytest.fixture
def client(brain: Brain) -> Iterator[httpx.Client]:
    base = f"http://127.0.0.1:{brain.port}"
    with httpx.Client(base_url=base, timeout=PATIENCE, trust_env=False, verify=False) as client:
        yield client


def referred(client: httpx.Client) -> list[str]:
    """The files that the page names."""
    found = re.findall(r'(?:href|src)="(/[^"]+)"', client.get("/").text)
    assert len(found) > 10
    return found


def test_needs_no_token_unlike_the_api(client: httpx.Client) -> None:
    for path in ("/", "/client.js", "/client.d.ts", "/client/watch.js", "/favicon.ico"):
        assert client.get(path).status_code == 200, path
    assert client.get("/api/runs").status_code == 401
    assert client.get("/assets").status_code == 401
    assert client.get("/assets/nothing").status_code == 404


def test_every_file_of_the_page_is_there_and_kept_for_ever(client: httpx.Client) -> None:
    for path in referred(client):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_each_module_is_preloaded(client: httpx.Client) -> None:
    """Without it, the browser would learn of a module when it has parsed another."""
    names = {re.sub(r"^/assets/\w+/", "", path) for path in referred(client)}
    assert names == set(load()) - {"index.html", "client.d.ts"}


@pytest.mark.parametrize("path", ["/", "/client.js"])
def test_what_keeps_its_address_is_asked_for_each_time(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["etag"] == answer.headers["etag"]
    assert not again.content


def test_is_sent_compressed_to_clients_that_accept_it(client: httpx.Client) -> None:
    plain = client.get("/client/runs.js", headers={"Accept-Encoding": "identity"})
    zipped = client.get("/client/runs.js", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.content == plain.content
    assert zipped.headers["etag"] != plain.headers["etag"], "other bytes"
    for refused in ("gzip;q=0", "br, gzip; q=0"):
        answer = client.get("/client/runs.js", headers={"Accept-Encoding": refused})
        assert "content-encoding" not in answer.headers


def test_all_of_it_is_small() -> None:
    assert sum(len(gzip.compress(body, 9)) for body in load().values()) < 60 * 1024


def test_the_page_may_load_only_what_brain_serves(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert policy == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


@pytest.mark.parametrize("path", ["/", "/client.js", "/client/watch.js", "/favicon.ico"])
def test_head_and_wrong_methods_are_answered_as_elsewhere(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == 200
    assert head.headers["content-length"] == get.headers["content-length"]
    assert not head.content
    wrong = client.post(path)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET"
    assert wrong.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/client.js"])
def test_passes_the_access_rules(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
    assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get(path, headers=embedded).status_code == 403


def test_the_client_can_be_imported_by_a_page_of_another_origin(client: httpx.Client) -> None:
    answer = client.get("/client.js", headers={"Origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
