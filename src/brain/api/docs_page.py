"""`/docs`: Swagger UI, from files of this package, so that it works without the internet."""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse

SWAGGER_UI: Final = "5.35.0"
"""The version of npm's `swagger-ui-dist` whose files are in the folder swagger_ui, as published.
`make swagger` fetches those of this version."""

ASSETS: Final = tuple(
    f"/docs/{SWAGGER_UI}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css")
)
"""The version is in the path, so a browser may keep them for ever."""

_SCRIPT: Final = """
SwaggerUIBundle({
  url: 'openapi.json', dom_id: '#swagger-ui', deepLinking: true, validatorUrl: null,
  displayRequestDuration: true, defaultModelsExpandDepth: 0,
});
"""

_PAGE: Final = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Brain: HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/{SWAGGER_UI}/swagger-ui.css">
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. The document that it shows: <a href="openapi.json">
openapi.json</a></noscript>
<script src="docs/{SWAGGER_UI}/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</html>
"""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CSP: Final = "; ".join(
    (
        "default-src 'none'",
        f"script-src 'self' 'sha256-{_hash(_SCRIPT)}'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def _sending(file: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(file, headers={"Cache-Control": "public, max-age=31536000, immutable"})

    return send


def add_docs_page(app: FastAPI) -> None:
    folder = Path(str(files("brain.api") / "swagger_ui"))

    async def page() -> Response:
        headers = {"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(_PAGE, headers={**headers, "Cache-Control": "no-cache"})

    app.add_api_route("/docs", page, include_in_schema=False)
    for path in ASSETS:
        app.add_api_route(path, _sending(folder / Path(path).name), include_in_schema=False)
