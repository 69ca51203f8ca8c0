"""The routes of the page.

`/` and `/client.js` keep their addresses, so a browser asks each time whether they changed, and
mostly gets a 304. What the page refers to lies below a path that contains the hash of all files: it
never changes, and a browser need not ask. So a page never mixes the files of two versions.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import FastAPI, Request, Response

from brain.page.assets import Asset, digest, load

PUBLIC: Final = ("/", "/client.js", "/client.d.ts", "/favicon.ico")
"""Beside everything below FOLDERS. Without a token: a page has none before it has asked for it."""

FOLDERS: Final = ("/assets/", "/client/")

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""What the page may load: only what Brain serves; and text never becomes HTML or a script."""

GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")
"""In Accept-Encoding, unless it is refused (RFC 9110, section 12.5.3)."""

ASK: Final = "no-cache"
KEEP: Final = "public, max-age=31536000, immutable"


def add_page(app: FastAPI) -> None:
    content = load()
    version = digest(*(part for name in content for part in (name.encode(), content[name])))
    base = f"/assets/{version}"
    index = content.pop("index.html").replace(b"{base}", base.encode())
    page = {
        "Content-Security-Policy": CSP,
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    _add(app, "/", Asset.of("index.html", index), ASK, page)
    for name, body in content.items():
        asset = Asset.of(name, body)
        _add(app, f"{base}/{name}", asset, KEEP)
        if name.startswith("client"):  # client.js, its types, and what it imports
            _add(app, f"/{name}", asset, ASK)
        elif name == "page/icon.svg":  # what a browser asks for that shows /docs
            _add(app, "/favicon.ico", asset, ASK)


def _add(
    app: FastAPI, path: str, asset: Asset, cache: str, headers: Mapping[str, str] | None = None
) -> None:
    # No add_api_route: that analyses what each function depends on, which takes 5 ms of a start.
    app.add_route(path, _answering(asset, cache, headers or {}), ["GET"], include_in_schema=False)


def _answering(
    asset: Asset, cache: str, headers: Mapping[str, str]
) -> Callable[[Request], Awaitable[Response]]:
    plain = {
        "Cache-Control": cache,
        "ETag": asset.etag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
        **headers,
    }
    # Strong validators: the two representations are different bytes (RFC 9110, section 8.8.3.3).
    zipped = {**plain, "Content-Encoding": "gzip", "ETag": f'{asset.etag[:-1]}-gzip"'}

    async def answer(request: Request) -> Response:
        gzipped = GZIP.search(request.headers.get("accept-encoding", "")) is not None
        chosen = zipped if gzipped else plain
        known = request.headers.get("if-none-match", "")
        if chosen["ETag"] in known:
            return Response(status_code=304, headers=chosen)
        body = asset.zipped if gzipped else asset.body
        return Response(body, headers=chosen, media_type=asset.content_type)

    return answer
