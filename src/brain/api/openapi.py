"""What /openapi.json says beyond the routes: problem documents, and the message of `/ws`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from brain.access.limits import MAX_BODY
from brain.contract.messages import WSMessage
from brain.contract.problems import CONTENT_TYPE

DESCRIPTIONS = {
    401: "Brain requires a token, and the request has none, or none that is valid",
    403: "The client, or its token, does not permit this: `detail` names the rule",
    404: "There is no such run",
    409: "The run already exists, or its status does not allow the change",
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


class API(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """With the schemas that no route refers to by itself."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, extra = models_json_schema(
                [(WSMessage, "serialization"), (ProblemDocument, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"] |= extra["$defs"]
        return super().openapi()
