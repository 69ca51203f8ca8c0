"""What /openapi.json says beyond the routes: parameters, bodies, headers, problem documents, and
the message of `/ws`.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from brain.access.limits import MAX_BODY
from brain.api.examples import add_examples
from brain.api.models import RunCreate, RunPatch
from brain.contract.messages import MAX_ID_BYTES, STATUSES, WSMessage
from brain.contract.problems import CONTENT_TYPE
from brain.contract.subscription import MAX_CHARACTERS, MAX_VALUES

DESCRIPTIONS = {
    401: "Brain requires a token, and the request has none, or none that is valid",
    403: "The client, or its token, does not permit this: `detail` names the rule",
    404: "There is no such run",
    409: "The run already exists, its status does not allow the change, or its id is not unique",
    412: "The run is not as If-Match or If-None-Match says; ETag says how it is now",
    413: f"The body is larger than {MAX_BODY} bytes",
    415: "The Content-Type is not application/json",
    422: "The request is not valid, or the table rejects one of its values",
    429: "Too many requests of this address are under way: `detail` names the rule",
    503: "The database does not answer, or the table is not usable: `detail` says what to do",
}


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {
            "description": DESCRIPTIONS[status],
            "content": {CONTENT_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


ETAG: dict[str, Any] = {
    "ETag": {
        "description": "Changes with every change of the run. Strong: for If-Match",
        "schema": {"type": "string"},
    }
}
"""The header of every answer with one run."""


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, description: str, where: str = "query", **schema: Any) -> dict[str, Any]:
    schema = schema or {"type": "string"}
    return {"name": name, "in": where, "description": description, "schema": schema}


def _texts(name: str, bound: str, **items: Any) -> dict[str, Any]:
    description = f"any of these values{bound}; repeatable"
    items = {"type": "string", **items}
    return _parameter(name, description, type="array", items=items, maxItems=MAX_VALUES)


FILTER = [
    _texts("run_id", f", each of 1 to {MAX_ID_BYTES} bytes", minLength=1, maxLength=MAX_ID_BYTES),
    _texts("task_id", "", minLength=1, maxLength=MAX_CHARACTERS),
    _texts("agent", "", minLength=1, maxLength=MAX_CHARACTERS),
    _texts("status", "", enum=[*STATUSES]),
]
"""Those of `/ws`: contract/subscription.py reads them."""

ORDERS = ("id", "changed")

PAGE = [
    _parameter(
        "order",
        "`changed`: the runs that changed last, newest change first, from Brain's memory",
        type="string",
        enum=[*ORDERS],
        default="id",
    ),
    _parameter(
        "limit", "most runs of the page", type="integer", minimum=1, maximum=1000, default=100
    ),
    _parameter("cursor", "`next_cursor` of the previous page, of the same order"),
]

IF_MATCH = _parameter(
    "If-Match",
    "change the run only if its ETag is one of these, or `*` (RFC 9110, 13.1.1)",
    "header",
)
IF_NONE_MATCH = _parameter(
    "If-None-Match", "answer 304 if the ETag is one of these (RFC 9110, 13.1.2)", "header"
)


TOKEN: dict[str, Any] = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "Reading takes the scope `read`, POST and PATCH `write` (settings.md)",
}


class API(FastAPI):
    requires_token = False
    """Then /docs has the button Authorize."""

    def openapi(self) -> dict[str, Any]:
        """With the schemas that no route refers to by itself, and examples."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, extra = models_json_schema(
                [
                    (WSMessage, "serialization"),
                    (ProblemDocument, "serialization"),
                    (RunCreate, "validation"),
                    (RunPatch, "validation"),
                ],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"] |= extra["$defs"]
            add_examples(schema)
            if self.requires_token:
                schema["components"]["securitySchemes"] = {"token": TOKEN}
                for path, operations in schema["paths"].items():
                    for operation in operations.values() if path.startswith("/api/") else ():
                        operation["security"] = [{"token": []}]
        return super().openapi()
