"""One example of each request and each answer: for /openapi.json, and for docs/reference/api.md.

A test plays STORY, in this order, on an empty table. It cannot play the others: they need a token,
a busy server, or a database that does not answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from brain.access.grants import TokenError
from brain.access.limits import BODY_TOO_LARGE
from brain.access.rejections import status_headers
from brain.api.concurrency import MAX_REQUESTS, MAX_WAIT
from brain.api.errors import BeyondToken, IdNotUnique, TooManyRequests
from brain.contract.problems import problem_document

Method = Literal["GET", "POST", "PATCH"]
JSON = Mapping[str, Any]

LIST: Final = "/api/runs"
RUN: Final = "/api/runs/{run_id}"


@dataclass(frozen=True, slots=True)
class Example:
    summary: str
    method: Method
    target: str
    """The path, with its query."""
    status: int
    answer: JSON | None
    """None where there is no body."""
    body: JSON | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """`{etag}` in a value stands for the ETag of the last answer that had one."""

    @property
    def route(self) -> str:
        return LIST if self.target.partition("?")[0] == LIST else RUN

    @property
    def name(self) -> str:
        """Within its operation and status."""
        return self.summary.lower().replace(" ", "-").replace("`", "").replace(":", "")


def _problem(status: int, target: str, detail: str, **fields: str) -> dict[str, object]:
    path = target.partition("?")[0]
    return problem_document(status, detail, instance=path, errors=fields.items())


ONE: Final = "/api/runs/run-1"
NOW: Final = "2026-11-21T09:30:04.502771Z"
QUEUED: Final[JSON] = {"id": "run-1", "status": "queued", "agent": "agent-1"}
RUNNING: Final[JSON] = {
    "id": "run-1",
    "status": "running",
    "progress": 40,
    "agent": "agent-1",
    "started_at": NOW,
}
COMPLETED: Final[JSON] = {**RUNNING, "status": "completed", "progress": 100, "completed_at": NOW}

_NUL = "run_id must not contain NUL, which PostgreSQL cannot store: 'a\\x00'"
_UNKNOWN = "order is id or changed, not 'time'"
_PROGRESS = "progress is a number from 0 to 100, or null, not 140"
_FIELD = (
    "the body has an unknown field state with the value 'running': the fields here are "
    "status, progress, task_id, agent, error"
)
_CONTENT = "the Content-Type is application/json (with or without a charset), not 'text/plain'"
_STALE = (
    "run 'run-1' is no longer, or not yet, as If-Match or If-None-Match says: its ETag is "
    '"9d6bf4d2c5f6a7b1-3c1e5a90be6f3d42"'
)
_BACK = (
    "run 'run-1' is running and cannot become queued: "
    "from running it can become completed or failed"
)
_ENDED = "run 'run-1' is completed, and an end is final: the change would give it another progress"

STORY: Final = (
    Example("A new run", "POST", LIST, 201, QUEUED, body={"id": "run-1", "agent": "agent-1"}),
    Example(
        "The id is taken",
        "POST",
        LIST,
        409,
        _problem(409, LIST, "there is a run 'run-1' already: change that one"),
        body={"id": "run-1"},
    ),
    Example(
        "A value out of range",
        "POST",
        LIST,
        422,
        _problem(422, LIST, _PROGRESS, progress=_PROGRESS),
        body={"progress": 140},
    ),
    Example(
        "Not JSON",
        "POST",
        LIST,
        415,
        _problem(415, LIST, _CONTENT),
        body={"id": "run-2"},
        headers={"Content-Type": "text/plain"},
    ),
    Example("One run", "GET", ONE, 200, QUEUED),
    Example("Not changed since", "GET", ONE, 304, None, headers={"If-None-Match": "{etag}"}),
    Example(
        "Another ETag",
        "GET",
        ONE,
        412,
        _problem(412, ONE, _STALE),
        headers={"If-Match": '"an-earlier-one"'},
    ),
    Example(
        "No such run",
        "GET",
        "/api/runs/nobody",
        404,
        _problem(404, "/api/runs/nobody", "there is no run 'nobody'"),
    ),
    Example(
        "An id that PostgreSQL cannot store",
        "GET",
        "/api/runs/a%00",
        422,
        _problem(422, "/api/runs/a%00", _NUL, run_id=_NUL),
    ),
    Example(
        "Claim it, and begin",
        "PATCH",
        ONE,
        200,
        RUNNING,
        body={"status": "running", "progress": 40},
        headers={"If-Match": "{etag}"},
    ),
    Example(
        "Somebody else was first",
        "PATCH",
        ONE,
        412,
        _problem(412, ONE, _STALE),
        body={"status": "running"},
        headers={"If-Match": '"an-earlier-one"'},
    ),
    Example(
        "Not allowed from here",
        "PATCH",
        ONE,
        409,
        _problem(409, ONE, _BACK),
        body={"status": "queued"},
    ),
    Example(
        "An unknown field",
        "PATCH",
        ONE,
        422,
        _problem(422, ONE, _FIELD, state=_FIELD),
        body={"state": "running"},
    ),
    Example(
        "Not JSON",
        "PATCH",
        ONE,
        415,
        _problem(415, ONE, _CONTENT),
        body={"status": "running"},
        headers={"Content-Type": "text/plain"},
    ),
    Example(
        "No such run",
        "PATCH",
        "/api/runs/nobody",
        404,
        _problem(404, "/api/runs/nobody", "there is no run 'nobody'"),
        body={"status": "running"},
    ),
    Example("The end", "PATCH", ONE, 200, COMPLETED, body={"status": "completed", "progress": 100}),
    Example(
        "An end is final",
        "PATCH",
        ONE,
        409,
        _problem(409, ONE, _ENDED, progress="progress of an ended run stays as it is"),
        body={"progress": 50},
    ),
    Example(
        "A page of all runs",
        "GET",
        "/api/runs?limit=100",
        200,
        {"runs": [COMPLETED], "next_cursor": None, "timestamp": NOW},
    ),
    Example(
        "The last changes",
        "GET",
        "/api/runs?order=changed&limit=20&status=completed&status=failed",
        200,
        {
            "runs": [COMPLETED],
            "next_cursor": None,
            "timestamp": NOW,
            "changed_at": [NOW],
            "exact_after": NOW,
            "complete": False,
            "total": 1,
            "total_is_estimate": False,
        },
    ),
    Example(
        "A wrong parameter",
        "GET",
        "/api/runs?order=time",
        422,
        _problem(422, LIST, _UNKNOWN, order=_UNKNOWN),
    ),
)

_BUSY = str(TooManyRequests("192.168.1.9", MAX_REQUESTS, MAX_WAIT))
_OPERATIONS: Final[tuple[tuple[Method, str, JSON | None], ...]] = (
    ("GET", LIST, None),
    ("POST", LIST, {"id": "run-2", "agent": "agent-2"}),
    ("GET", ONE, None),
    ("PATCH", ONE, {"status": "failed", "error": "out of memory"}),
)


def _others() -> list[Example]:
    found = []
    for method, target, body in _OPERATIONS:
        scope = "read" if method == "GET" else "write"
        details = {
            401: ("No token", "a token is required: send it as Authorization: Bearer"),
            403: (
                "Beyond the token",
                str(TokenError("scope", f"the token's scope does not contain {scope!r}")),
            ),
            429: ("Too many requests", _BUSY),
            503: ("No database", "the database does not answer: try again"),
        }
        if method != "GET":
            details[403] = "Beyond the token", str(BeyondToken("agent"))
            details[413] = "Too large", BODY_TOO_LARGE.detail
        if method == "GET" and target == ONE:
            details[409] = "Two rows have this id", str(IdNotUnique("run-1", "public.runs"))
        found += [
            Example(summary, method, target, status, _problem(status, target, detail), body)
            for status, (summary, detail) in details.items()
        ]
    return found


EXAMPLES: Final = (*STORY, *_others())


def add_examples(schema: dict[str, Any]) -> None:
    """Put each example into its operation of an OpenAPI document."""
    for example in EXAMPLES:
        operation = schema["paths"][example.route][example.method.lower()]
        shown = {"summary": example.summary, "value": example.answer}
        answer = operation["responses"][str(example.status)]
        if example.answer is not None:
            (content,) = answer["content"].values()
            content.setdefault("examples", {})[example.name] = shown
        if example.status in (401, 429, 503):
            answer["headers"] = {
                name: {"schema": {"type": "string", "const": value}}
                for name, value in status_headers(example.status).items()
            }
        if example.body is not None and example.status in (200, 201):
            (content,) = operation["requestBody"]["content"].values()
            asked = {"summary": example.summary, "value": example.body}
            content.setdefault("examples", {})[example.name] = asked
