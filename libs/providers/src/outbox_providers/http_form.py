"""The driver `http_form`: `application/x-www-form-urlencoded` with brackets for what is nested, as Stripe's v1 reads it.

Source: docs.stripe.com/api (request bodies are form-encoded; `metadata[k]=v`), stripe-python `_encode.py` (lists carry indices).
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from outbox_domain.json_text import member_path
from outbox_providers.templates import refuse

CONTENT_TYPE = "application/x-www-form-urlencoded"


def encode(body: dict[str, Any]) -> bytes:
    """Writes a body as a form.

    The same body always gives the same bytes (members sorted by name), because a resend must be the identical request. A null
    says nothing and is left out, as are empty containers, which a form cannot say.

    Args:
        body: the JSON object to send.

    Returns:
        ASCII bytes.

    Raises:
        OutboxError: `invalid-input` if a member's name is empty or holds a bracket: it would address another field.
    """
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in _pairs(body, "", "$")).encode("ascii")


def _pairs(value: Any, name: str, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for member in sorted(value):
            if not member or "[" in member or "]" in member:
                refuse(path, "names of fields that are not empty and hold no bracket")
            yield from _pairs(value[member], f"{name}[{member}]" if name else member, member_path(path, member))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _pairs(item, f"{name}[{index}]", f"{path}[{index}]")
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value, allow_nan=False)
