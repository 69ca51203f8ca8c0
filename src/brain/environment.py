"""The settings as variables of the environment: unknown ones, errors, and the table of the docs.

`fields`: the fields of the settings by the name of their variable.
"""

import difflib
import os
from collections.abc import Iterable, Mapping

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from brain.validators import without_password

PREFIX = "BRAIN_"
SECRETS = ("BRAIN_DATABASE_URL", "BRAIN_JWT_SECRET", "BRAIN_TOKEN", "BRAIN_NATS_URL")
"""Errors never contain their values."""


def unknown(environ: Iterable[str], fields: Mapping[str, FieldInfo]) -> dict[str, str | None]:
    """The names that begin with BRAIN_ but are no settings, each with the most similar setting."""
    known = {variable.removeprefix(PREFIX): variable for variable in fields}
    found: dict[str, str | None] = {}
    for name in sorted(environ):
        if (
            name.upper().startswith(PREFIX)
            and (rest := name.upper().removeprefix(PREFIX)) not in known
        ):
            nearest = difflib.get_close_matches(rest, known, 1)
            found[name] = known[nearest[0]] if nearest else None
    return found


def describe(error: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    """The variable, its value and the rule that it breaks."""
    variable = PREFIX + str(error["loc"][0]).upper().removeprefix(PREFIX)
    extra = fields[variable].json_schema_extra
    assert isinstance(extra, dict)
    rule = error["ctx"]["error"] if error["type"] == "value_error" else extra["rule"]
    if variable == "BRAIN_DATABASE_URL" and not os.environ.get(variable):
        alias = "DATABASE_URL"
        return f"{alias if os.environ.get(alias) else variable}: {rule}"
    if variable in SECRETS:
        return f"{variable}: {rule}"
    given = error["input"]
    value = repr(without_password(given) if variable == "BRAIN_URL" else given)
    return f"{variable}={value if len(value) <= 200 else value[:200] + '…'}: {rule}"


def table(fields: Mapping[str, FieldInfo]) -> str:
    """The table of docs/reference/settings.md."""
    lines = ["| variable | default | unit | what |", "|---|---|---|---|"]
    for variable, field in fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        default = _environment_text(field.default)
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{variable}` | {shown} | {extra['unit']} | {field.description} |")
    return "\n".join(lines) + "\n"


def _environment_text(value: object) -> str:
    """The value as written in the environment; empty if unset."""
    match value:
        case None | () | {}:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)
