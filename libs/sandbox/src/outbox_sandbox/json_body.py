"""JSON bodies that must be objects."""

from __future__ import annotations

import json
from typing import NoReturn

from outbox_sandbox.exchange import Fields


class MalformedJson(ValueError):
    """The body is not a JSON object."""


def decode(body: bytes) -> Fields:
    """`body` as the members of a JSON object. Raises `MalformedJson` (also for NaN and Infinity, which JSON does not have)."""
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MalformedJson("the body is not a JSON object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
