"""The driver `http_json`: `application/json` (RFC 8259)."""

from typing import Any

import msgspec

CONTENT_TYPE = "application/json"


def encode(body: dict[str, Any]) -> bytes:
    """Writes a body as JSON; the same body always gives the same bytes, because a resend must be the identical request.

    Args:
        body: the JSON object to send.

    Returns:
        UTF-8 bytes, members sorted by name.
    """
    return msgspec.json.encode(body, order="sorted")
