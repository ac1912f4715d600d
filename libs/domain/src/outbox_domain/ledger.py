"""The leaf form of a ledger entry: the bytes that a Merkle log seals (design sections 7 and 16).

A leaf is a pure function of the entry's row:

    "agent-outbox/ledger-entry/v1" + LF + RFC 8785 of an object

The object holds the members of `MEMBERS` that are not null, so that a column added later changes no older leaf. In it

* `id` is a decimal string, because identity values may exceed what a double carries;
* `at` is UTC with microseconds (`2026-01-31T08:15:00.123456Z`), as exact as Postgres keeps it;
* UUIDs are in their lower-case text form; `input_digest` is `hmac-sha256:` and hexadecimal;
* `from_state` and `to_state` are written `from` and `to`, as in the API.

The row's `xid` is no part of it: it only orders readers, and a restored database gives it another value.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from outbox_domain.canonical import canonical, digest_text, domain_separated

_PURPOSE = "ledger-entry"
_LEAF_PREFIX = b"\x00"


def _moment(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("the time of a ledger entry knows its zone")
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _uuid(value: UUID | str) -> str:
    return str(value if isinstance(value, UUID) else UUID(value))


def _text(value: str) -> str:
    return value.value if isinstance(value, Enum) else value


def _json(value: Any) -> Any:
    return value


MEMBERS: Mapping[str, tuple[str, Callable[[Any], object]]] = MappingProxyType(
    {
        "organization_id": ("organization_id", _uuid),
        "id": ("id", str),
        "at": ("at", _moment),
        "environment_id": ("environment_id", _uuid),
        "kind": ("kind", _text),
        "reservation_id": ("reservation_id", _uuid),
        "attempt_id": ("attempt_id", _uuid),
        "from_state": ("from", _text),
        "to_state": ("to", _text),
        "outcome": ("outcome", _text),
        "decision": ("decision", _json),
        "actor_chain": ("actor_chain", _json),
        "run": ("run", _text),
        "tool": ("tool", _text),
        "operation_key": ("operation_key", _text),
        "input_digest": ("input_digest", digest_text),
        "declared": ("declared", _json),
        "trace_id": ("trace_id", _text),
        "detail": ("detail", _json),
    }
)
"""Column -> member of the leaf, and how its value is written. The whole of version 1."""

_REQUIRED = ("organization_id", "id", "at", "kind", "actor_chain")


def leaf(entry: Mapping[str, Any]) -> bytes:
    """The leaf of a ledger entry.

    Args:
        entry: the row, by column names; columns that are null may be left out.

    Returns:
        The bytes that are sealed.

    Raises:
        ValueError: for a column that version 1 does not know (it would look sealed and be not), for a missing required one, and
            for JSON that cannot be carried exactly.
    """
    unknown = entry.keys() - MEMBERS.keys() - {"xid"}
    if unknown:
        raise ValueError(f"a leaf of version 1 has no member for {', '.join(sorted(unknown))}")
    missing = [column for column in _REQUIRED if entry.get(column) is None]
    if missing:
        raise ValueError(f"a ledger entry needs {', '.join(missing)}")
    members = {member: write(entry[column]) for column, (member, write) in MEMBERS.items() if entry.get(column) is not None}
    return domain_separated(_PURPOSE, canonical(members))


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf in the tree: SHA-256 over a zero byte and the leaf (RFC 6962 section 2.1).

    Args:
        leaf: what `leaf` returned.

    Returns:
        32 bytes.
    """
    return hashlib.sha256(_LEAF_PREFIX + leaf).digest()
