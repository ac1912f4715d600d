"""The providers' published schemas, and a reader of form bodies that shares nothing with our writer of them.

The schemas are read from the folder `OUTBOX_SPECS_DIR`, else from `shared/specs` beside the repository; they are no part of the
product. Where the folder is absent, tests that need it are skipped with the reason.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def specification(name: str) -> dict[str, Any]:
    """A published schema file by its name (`stripe.json`); skips the test where the folder is absent."""
    folder = Path(os.environ.get("OUTBOX_SPECS_DIR") or _ROOT.parent / "shared" / "specs")
    if not folder.is_dir():
        pytest.skip(f"the providers' published schemas are not in {folder}; set OUTBOX_SPECS_DIR to their folder")
    document: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return document


def request_body(document: dict[str, Any], path: str, media_type: str) -> dict[str, Any]:
    """The schema of the POST body of a path, with the document's components beside it so that its references resolve."""
    body = document["paths"][path]["post"]["requestBody"]
    while "$ref" in body:
        found: Any = document
        for step in body["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        body = found
    return {**body["content"][media_type]["schema"], "components": document.get("components", {})}


def read_form(body: bytes) -> dict[str, Any]:
    """A form body as nested JSON: brackets make objects, and objects whose names are 0, 1, 2 ... are lists. Leaves are text."""
    root: dict[str, Any] = {}
    for name, value in parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body)):
        first, *rest = name.partition("[")
        steps = [first, *re.findall(r"\[([^\[\]]*)\]", "".join(rest))]
        holder = root
        for step in steps[:-1]:
            holder = holder.setdefault(step, {})
        assert steps[-1] not in holder, f"{name} is said twice"
        holder[steps[-1]] = value
    return {name: _with_lists(value) for name, value in root.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    members = {name: _with_lists(member) for name, member in value.items()}
    if members and set(members) == {str(index) for index in range(len(members))}:
        return [members[str(index)] for index in range(len(members))]
    return members


def typed(value: Any, schema: dict[str, Any]) -> Any:
    """Form text as the JSON types its schema asks for, as a form-reading server takes it."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return {name: typed(member, properties.get(name, {})) for name, member in value.items()}
    if schema.get("type") == "integer" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    if schema.get("type") == "boolean" and value in ("true", "false"):
        return value == "true"
    return value
