"""What is read alike from the bodies of requests: their members, names, texts that somebody wrote; and how they are refused."""

import re
from typing import NoReturn

from outbox_domain import json_text
from outbox_domain.errors import invalid
from outbox_domain.tool_call import NAME_CHARACTERS_MAX, plain_name

REASON_CHARACTERS_MAX = 500

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def refuse(path: str, expected: str) -> NoReturn:
    """Refuse a body for one of its members."""
    raise invalid(path, expected, code="invalid-request")


def read_members(document: object, known: tuple[str, ...], *, named: tuple[str, ...] | None = None) -> dict[str, object]:
    """A body that is an object with known members only.

    Args:
        document: the body.
        known: which members it may have.
        named: which of them a refusal tells of; all when left out.
    """
    if not isinstance(document, dict):
        *first, last = known if named is None else named
        refuse("$", f"an object with the members {', '.join(first)} and {last}" if first else f"an object with the member {last}")
    for name in document:
        if name not in known:
            refuse(json_text.member_path("$", name), "no such field")
    return document


def read_text(
    document: dict[str, object], name: str, *, characters_max: int = REASON_CHARACTERS_MAX, bytes_max: int | None = None
) -> str | None:
    """A member that is a text somebody wrote; None where it is left out."""
    value = document.get(name)
    if value is None:
        return None
    expected = f"1 to {bytes_max} bytes" if bytes_max is not None else f"1 to {characters_max} characters"
    path = json_text.member_path("$", name)
    if not isinstance(value, str) or not value.strip() or _CONTROL.search(value):
        refuse(path, f"a text of {expected} without control characters")
    if (len(value.encode()) > bytes_max) if bytes_max is not None else (len(value) > characters_max):
        refuse(path, expected)
    return value


def read_reason(document: dict[str, object]) -> str:
    """Why a person asks for it, which stands in the ledger."""
    reason = read_text(document, "reason")
    if reason is None:
        refuse("$.reason", f"a sentence of at most {REASON_CHARACTERS_MAX} characters")
    return reason


def read_flag(document: dict[str, object], name: str) -> bool:
    """A member that is true or false; false where it is left out."""
    value = document.get(name, False)
    if not isinstance(value, bool):
        refuse(json_text.member_path("$", name), "true or false")
    return value


def read_name(value: object, path: str) -> str | None:
    """A name that a caller gives; None where it is left out."""
    if value is None:
        return None
    name = plain_name(value) if isinstance(value, str) else None
    if name is None:
        refuse(path, f"text of 1 to {NAME_CHARACTERS_MAX} characters without control characters or white space around it")
    return name
